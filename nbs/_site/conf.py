"""The site: nbdev's notebooks by Sphinx, MyST-NB and Furo. Built by `make docs`.

Nothing here runs a notebook or imports what it needs: figures are the committed outputs,
definitions are read from the library's text (`nbs/library/tools/pages.ipynb`).
"""

import sys
from pathlib import Path

from nbdev.config import get_config

sys.path.insert(0, str(Path(__file__).parent))
config = get_config()

project, author, copyright = config.title, config.author, config.copyright
version = release = config.version
language = "en"

extensions = ["myst_nb", "site_hooks"]
source_suffix = {".ipynb": "myst-nb", ".md": "myst-nb"}
exclude_patterns = ["_*", ".*", "**/.ipynb_checkpoints", "params"]
root_doc = "index"

nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"
nb_number_source_lines = False
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_ipywidgets_js = {}  # a page without a kernel has nothing to move
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline", "attrs_block"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"
html_title = config.title
html_baseurl = f"{config.doc_host}{config.doc_baseurl}/"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_math_renderer = "mathml"  # in the page itself: no script from elsewhere
html_copy_source = False
html_theme_options = {
    "source_repository": config.git_url,
    "source_branch": config.branch,
    "source_directory": f"{config.nbs_path.name}/",
    "top_of_page_buttons": ["view"],
}
pygments_style, pygments_dark_style = "friendly", "github-dark"
