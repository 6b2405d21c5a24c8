"What every test gets: its own cache, and runs that go to a temporary folder."

import shutil

import pytest

BROWSERS = "chromium chromium-browser google-chrome-stable google-chrome".split()


def pytest_addoption(parser):
    said = "open every notebook that has a panel in JupyterLab, not only one"
    parser.addoption("--all-panels", action="store_true", help=said)


def pytest_configure(config):
    config.addinivalue_line("markers", "real_data: needs the folder named by SYNTH_NB_REAL_DATA")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SYNTH_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("IN_TEST", "1")


@pytest.fixture(scope="module")  # its event loop would be in the way of other tests
def browser():
    "A headless Chromium, the system's or playwright's own; without one the test is skipped."
    wanted = "needs playwright (`pip install playwright`)"
    api = pytest.importorskip("playwright.sync_api", reason=wanted)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=found)
        except api.Error as error:
            if found:
                raise
            said = "no browser here: install Chromium, or run `playwright install chromium`"
            pytest.skip(said if "Executable doesn't exist" in str(error) else str(error))
        yield opened
        opened.close()
