"""The `## Explore` panels, in JupyterLab, in a browser: run all cells, move a slider, press the
button, and the picture changes. One slider that does so is enough: images of a network that has
learnt for seconds may all be grey, and only their number changes.

One notebook by default; `make lab-test` (`--all-panels`) takes every notebook that has a panel.
Its short form is run (`IN_TEST`), on the panel's own defaults. Skipped without a browser.
"""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
CHEAPEST = "01_data_prep"
MINUTES = 15  # for all cells of a notebook
SETTINGS = {  # every cell is on the page, not only those in sight; no news from elsewhere
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def panels() -> list[str]:
    "Notebooks with a panel."
    found = sorted((ROOT / "nbs").glob("*.ipynb"))
    return [path.stem for path in found if "interact_manual(" in path.read_text(encoding="utf-8")]


def pytest_generate_tests(metafunc):
    if "notebook" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-panels")
        metafunc.parametrize("notebook", panels() if every else [CHEAPEST])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def lab(browser, tmp_path):
    """JupyterLab with settings and folders of its own, so that no notebook meets another's tabs
    and kernels: its address with a token, and its folder."""
    for name, values in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    (tmp_path / "nbs").mkdir()
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "RUNTIME")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "IN_TEST": "1",
               "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
               "SYNTH_NB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(
                   filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}  # fmt: skip
    port, token = free_port(), secrets.token_hex(16)
    options = [f"--ServerApp.root_dir={tmp_path / 'nbs'}", f"--ServerApp.port={port}",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
               "--no-browser", "--allow-root"]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options],
                                  env=os.environ | places, stdout=log, stderr=log)  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(server, f"{address}/api?token={token}", tmp_path / "log")
        yield f"{address}/lab/tree/{{name}}.ipynb?token={token}", tmp_path / "nbs"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(server: subprocess.Popen, address: str, log: Path, seconds: float = 120):
    "Until the server answers."
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def without_outputs(source: Path, target: Path):
    "A copy whose pictures can only come from running it."
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, target)


FAILED = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
PANEL = ".jp-CodeCell .widget-interact"
PICTURE, HANDLE = f"{PANEL} img", ".noUi-handle"
# a picture that was not there when `pressed` marked what it saw
NEW = f"""() => {{
    const shown = Array.from(document.querySelectorAll(`{PICTURE}`));
    const fresh = shown.filter(one => !one.dataset.seen && one.complete && one.naturalWidth);
    return fresh.length ? fresh[0].src : document.querySelector(`{PANEL} {FAILED}`)?.innerText;
}}"""
SEE = f"document.querySelectorAll(`{PICTURE}`).forEach(one => one.dataset.seen = 1)"


def pressed(tab, panel) -> str:
    "The picture (as data) that a panel's button makes."
    tab.evaluate(SEE)
    panel.locator("button").click()
    shown = tab.wait_for_function(NEW, timeout=120_000).json_value()
    assert shown.startswith("data:image/"), shown
    return shown


def moved(tab, panel, number: int) -> str:
    "The picture after five steps of one slider to the right."
    slider = panel.locator(HANDLE).nth(number)
    before = slider.get_attribute("aria-valuetext")
    for _ in range(5):
        slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") != before
    return pressed(tab, panel)


def test_a_slider_changes_the_picture(browser, lab, notebook, tmp_path):
    address, folder = lab
    without_outputs(ROOT / "nbs" / f"{notebook}.ipynb", folder / f"{notebook}.ipynb")
    tab = browser.new_page(viewport=dict(width=1400, height=1000))
    try:
        tab.goto(address.format(name=notebook))
        tab.get_by_text("| Idle").wait_for(timeout=120_000)  # the kernel, in the status bar
        tab.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=120_000)
        tab.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        source = (folder / f"{notebook}.ipynb").read_text(encoding="utf-8")
        last = tab.locator(f"{PANEL} button").nth(source.count("interact_manual(") - 1)
        last.or_(tab.locator(FAILED)).first.wait_for(timeout=60_000 * MINUTES)
        assert tab.locator(FAILED).all_inner_texts() == []

        for panel in tab.locator(PANEL).all():
            first = pressed(tab, panel)
            assert pressed(tab, panel) == first  # only what the sliders say decides the picture
            sliders = range(panel.locator(HANDLE).count())
            assert any(moved(tab, panel, number) != first for number in sliders)
    finally:
        tab.screenshot(path=tmp_path / f"{notebook}.png")
        tab.close()


def test_panels_wait_for_a_button():
    """With one that shows a picture at once, papermill never ends a story, one time in four: it
    misses the kernel's reply while it answers the panel (jupyter/nbclient, issue 312)."""
    stories = sorted((ROOT / "nbs").glob("*.ipynb"))
    at_once = re.compile(r"\binteract(ive|ive_output)?\b")
    assert [path.stem for path in stories if any(
        at_once.search(cell.source) for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code")] == []  # fmt: skip
