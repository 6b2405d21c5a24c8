"What every test gets: its own cache, and runs that go to a temporary folder."

import shutil
from pathlib import Path

import pytest
from PIL import Image

BROWSERS = "chromium chromium-browser google-chrome-stable google-chrome".split()


def pytest_addoption(parser):
    text = "open every notebook that has a panel in JupyterLab, not only one"
    parser.addoption("--all-panels", action="store_true", help=text)


def pytest_configure(config):
    config.addinivalue_line("markers", "real_data: needs the folder named by SYNTH_NB_REAL_DATA")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:  # its own: what a test patches is undone before
        patch.setenv("SYNTH_NB_CACHE", str(folder))
        patch.setenv("IN_TEST", "1")
        yield
    shutil.rmtree(folder, ignore_errors=True)  # some are hundreds of megabytes


@pytest.fixture(scope="session")
def patches(tmp_path_factory) -> Path:
    "A folder of stained patches with splits and captions: 32 to learn from, 24 held out."
    folder = tmp_path_factory.mktemp("patches")
    from synth_nb.data import open_dataset  # after the cache of a test is set

    demo = open_dataset("demo", 64)
    for split, part, step in (("train", demo.train, 15), ("val", demo.held_out, 10)):
        (folder / split).mkdir()
        rows = [f"{i:02}.png,{'pale' if i % 2 else 'dark'} tissue {i % 4}" for i in range(24)]
        rows += [f"{i:02}.png,pale tissue" for i in range(24, 32)]
        (folder / split / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
        for i in range(32 if split == "train" else 24):
            pixels = part.images[i * step].transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / split / f"{i:02}.png")
    return folder


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
            text = "no browser here: install Chromium, or run `playwright install chromium`"
            pytest.skip(text if "Executable doesn't exist" in str(error) else str(error))
        yield opened
        opened.close()
