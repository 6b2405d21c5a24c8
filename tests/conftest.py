"What every test gets: its own cache, and runs that go to a temporary folder."

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "real_data: needs the folder named by SYNTH_NB_REAL_DATA")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SYNTH_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("IN_TEST", "1")
