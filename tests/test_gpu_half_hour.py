"The half hour of a GPU runs through in small on the CPU, in two pieces, and leaves its files."

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def piece(tmp_path: Path, minutes: float) -> dict:
    "Run a piece; returns what it stored."
    command = ["sh", str(ROOT / "benchmarks" / "gpu_half_hour.sh"), "--tiny"]
    options = ["--home", str(tmp_path), "--minutes", str(minutes)]
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | dict(OUT=str(tmp_path / "out"))
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "tiny" / "store.json").read_text())


def test_it_goes_on_where_it_stopped(tmp_path):
    first = piece(tmp_path, 0.15)
    assert first["figures"] and not first["runs"]
    last = piece(tmp_path, 9)
    for name, row in first["figures"].items():
        assert last["figures"][name] == row  # not measured twice
    failed = [row for row in last["figures"].values() if "failed" in row]
    assert not failed
    names = {"stylegan2 16", "unet small", "sampling e2i", "sampling stylegan2"}
    assert names <= set(last["figures"])
    assert [run["status"] for run in last["runs"].values()] == ["complete", "complete"]
    files = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert len(files) <= 8 and max(files.values()) <= 16_000_000
    for name in ("e2i", "stylegan2"):
        wanted = ("manifest.json", "metrics.csv", "synthetic.png")
        assert {f"{name}_{end}" for end in wanted} <= set(files)
    text = (tmp_path / "out" / "figures.md").read_text()
    assert "s/kimg" in text and "share of a bf16 matrix product" in text and "images/s" in text
