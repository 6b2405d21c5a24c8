"Notebooks are tests too: `pytest nbs/07_emnist.ipynb` tests what `nbdev_test` would test."

import sys
from pathlib import Path

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
pytest_plugins = ["notebooks"]  # it lies in tests/
