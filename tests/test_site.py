"""The site as its readers get it: built as by `make docs`, its files checked, then in a browser.

Where there is no Chromium the tests in a browser are skipped.
"""

import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from nbdev.config import get_config

ROOT = Path(__file__).parent.parent
REPOSITORY = get_config().git_url
BLOB = f"{REPOSITORY}/blob/{get_config().branch}"
FILE = re.compile(rf"{BLOB}/([^?#]+)(?:[?]plain=true)?(?:#L(\d+))?")
DESKTOP, PHONE = dict(width=1400, height=900), dict(width=390, height=844)
# every page that is no notebook, and notebooks with all that a page can hold
SOURCES = {  # page → its file
    path.relative_to(ROOT / "nbs").with_suffix("").as_posix(): path
    for extension in ("md", "ipynb") for path in sorted((ROOT / "nbs").rglob(f"*.{extension}"))
    if ".ipynb_checkpoints" not in path.parts}  # fmt: skip
SHOWN = [name for name, path in SOURCES.items() if path.suffix == ".md"]
SHOWN += ["02_dcgan", "03_embedding_gan", "05_e2i", "06_em_segmentation", "08_evaluation",
          "library/metrics/index", "library/metrics/distances", "library/tools/pages"]  # fmt: skip


class Page(HTMLParser):
    "Links, pictures and anchors of a page."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.pictures = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "img":
            self.pictures.append((attrs.get("src", ""), attrs.get("alt") or ""))
        link = attrs.get("href") if tag in ("a", "link") else attrs.get("src")
        if link is not None:
            self.links.append(link)


def read(site: Path) -> dict[Path, Page]:
    return {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}


def dead_links(pages: dict[Path, Page]) -> list[str]:
    "Links within the site that lead to no file, or to no place in it."
    dead = []
    for file, page in pages.items():
        for link in page.links:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = (file.parent / unquote(to.path)).resolve() if to.path else file
            anchor = unquote(to.fragment)
            lost = anchor and target in pages and anchor not in pages[target].ids
            if lost or not target.exists():
                dead.append(f"{file.name} → {link}")
    return dead


def without_words(pages: dict[Path, Page]) -> list[str]:
    "Pictures that say nothing to those who do not see them; a file's name says nothing either."
    pictures = [(file, *one) for file, page in pages.items() for one in page.pictures]
    describes = re.compile(r"(?!.*/)(?!.*\.(png|jpe?g|svg)$).*\w.*\w")
    return [f"{file.name}: {source}" for file, source, words in pictures
            if not describes.match(words)]  # fmt: skip


def wrong_lines(links: list[str]) -> list[str]:
    "Links into the repository that lead to no file, or to a line that defines nothing."
    wrong = []
    for link in dict.fromkeys(links):
        found = FILE.fullmatch(link)
        file, line = (ROOT / unquote(found[1]), int(found[2] or 0)) if found else (ROOT / "-", 0)
        lines = file.read_text(encoding="utf-8").splitlines() if line and file.is_file() else []
        if not file.exists() or (line and not re.match(r"\s*(def|class) ", lines[line - 1])):
            wrong.append(link)
    return wrong


def test_the_checks_notice(tmp_path):
    "A page with one of each mistake."
    (tmp_path / "other.html").write_text('<p id="here">')
    (tmp_path / "page.html").write_text(
        '<a href="other.html#here"></a><a href="other.html#there"></a><a href="gone.html"></a>'
        '<img src="other.html" alt="two cats"><img src="other.html"><img src="other.html" '
        'alt="a.png"><img src="gone.png" alt="two dogs">'
    )
    pages = read(tmp_path)
    expected = ["other.html#there", "gone.html", "gone.png"]
    assert dead_links(pages) == [f"page.html → {link}" for link in expected]
    assert without_words(pages) == ["page.html: other.html"] * 2
    wrong = [f"{BLOB}/gone.py", f"{BLOB}/setup.py#L1", f"{REPOSITORY}/tree/other/setup.py"]
    right = [f"{BLOB}/setup.py", f"{BLOB}/nbs/guides/api.md?plain=true"]
    assert wrong_lines([*right, *wrong]) == wrong


def test_quarto_is_told_of_pages_that_are_there():
    "Its own build needs Quarto and is not tried here."
    quarto = yaml.safe_load((ROOT / "nbs/_quarto.yml").read_text(encoding="utf-8"))
    named = [one["file"] for one in quarto["website"]["navbar"]["left"]]
    assert named and [name for name in named if not (ROOT / "nbs" / name).is_file()] == []
    assert quarto["metadata-files"] == ["nbdev.yml", "sidebar.yml"]  # nbdev writes both


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-j", "auto", "-c", "nbs/_site", "-d", f"{folder}/.read"]
    command = [sys.executable, "-m", "sphinx", *options, "nbs", str(folder / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return read(site)


def test_every_source_has_a_page(site, pages):
    written = {file.relative_to(site).with_suffix("").as_posix() for file in pages}
    assert len(SOURCES) > 100 and SOURCES.keys() <= written


def test_links_lead_somewhere(pages):
    assert dead_links(pages) == []


def test_links_into_the_repository(pages):
    ours = [k for page in pages.values() for k in page.links if k.startswith(f"{REPOSITORY}/")]
    assert wrong_lines(ours) == []


def test_pictures_have_words(pages):
    assert sum(len(page.pictures) for page in pages.values()) > 100
    assert without_words(pages) == []


def test_every_name_leads_to_its_definition(site):
    "In the list of names."
    rows = re.findall(r"<tr.*?</tr>", (site / "guides/api.html").read_text(encoding="utf-8"), re.S)
    found = 0
    for row in rows:
        name, source = re.search(r"<code[^>]*>(.*?)</code>", row), FILE.search(row)
        if name and source:
            name = re.sub("<.*?>", "", name[1]).rsplit(".")[-1]
            line = (ROOT / source[1]).read_text(encoding="utf-8").splitlines()[int(source[2]) - 1]
            assert re.match(rf"(def|class) {name}\b", line), (name, source[0])
            found += 1
    assert found == len(rows) - sum("<th" in row for row in rows) > 300


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): ...


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def tab(browser, address):
    "A page of the site in the browser, which has nothing to complain about and asks nobody else."
    context = browser.new_context(base_url=address, viewport=DESKTOP, color_scheme="light")
    page, problems = context.new_page(), []
    page.on("console",
            lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response",
            lambda r: problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    outside = ("http:", "https:", "ws")
    page.on("request", lambda r: problems.append(f"asks for {r.url}")
            if r.url.startswith(outside) and not r.url.startswith(address) else None)  # fmt: skip
    yield page
    context.close()
    assert problems == []


PICTURES = "Array.from(document.images)"
EMPTY = f"{PICTURES}.filter(one => one.complete && !one.naturalWidth).map(one => one.src)"
WIDE = "document.documentElement.scrollWidth - window.innerWidth"


def test_pages_load(tab):
    seen = 0
    for name in SHOWN:
        tab.goto(f"/{name}.html")
        assert tab.locator("h1").count() >= 1, name
        assert tab.evaluate(EMPTY) == [], name
        seen += tab.evaluate(f"{PICTURES}.length")
    assert seen > 30


def test_a_phone_needs_no_sideways_scrolling(tab):
    tab.set_viewport_size(PHONE)
    for name in SHOWN:
        tab.goto(f"/{name}.html")
        assert tab.evaluate(WIDE) <= 0, name
    tab.locator(".nav-overlay-icon:visible").first.click()
    menu = tab.get_by_role("link", name="Learning path").first
    menu.click()
    tab.wait_for_url("**/guides/learning_path.html")


@pytest.mark.parametrize("query, expected", [
    ("frechet", "library/metrics/distances.html"),
    ("Fréchet distance", "guides/reading_metrics.html"),
    ("distances.ipynb", "library/metrics/distances.html"),
    ("open_dataset", "library/data/dataset.html"),
])  # fmt: skip
def test_search_finds(tab, query, expected):
    tab.goto("/index.html")
    box = tab.get_by_role("textbox").first
    box.fill(query)
    box.press("Enter")
    tab.wait_for_function("document.querySelector('p.search-summary')?.innerText.includes('found')")
    assert tab.locator(f"#search-results a[href^='{expected}']").count() >= 1


def test_search_says_when_it_finds_nothing(tab):
    tab.goto("/search.html?q=xylophone")
    tab.get_by_text("did not match any documents").wait_for()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_dark_mode(tab, size):
    "Light, dark and as the system: the button goes round, and the next page remembers."
    tab.set_viewport_size(size)
    tab.goto("/index.html")
    seen = {}
    for _ in range(3):
        tab.locator("button.theme-toggle:visible").click()
        theme = tab.evaluate("document.body.dataset.theme")
        tab.goto("/guides/learning_path.html")
        assert tab.evaluate("document.body.dataset.theme") == theme
        color = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        seen[theme] = max(map(int, re.findall(r"\d+", color)[:3]))
    assert seen.keys() == {"light", "dark", "auto"}
    assert seen["dark"] < 60 and seen["light"] > 230 and seen["auto"] > 230
