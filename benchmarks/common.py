"Timing two sides against each other in one process."

import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch


def machine() -> str:
    "Processor, threads, versions and date, for the head of a table."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ", ".join(names)
    system = name or platform.processor()
    return f"{system}, {torch.get_num_threads()} threads, torch {torch.__version__}, {date.today()}"


def alternate(ours, theirs, rounds: int = 20, warm: int = 3, clock=time.perf_counter) -> dict:
    "Run two functions in turn; seconds of each and the ratio pair by pair: median, low, high."
    times = {"ours": [], "theirs": []}
    for number in range(warm + rounds):
        order = [("ours", ours), ("theirs", theirs)]
        for name, function in order if number % 2 else reversed(order):
            start = clock()
            function()
            times[name].append(clock() - start)
    pairs = list(zip(times["ours"][warm:], times["theirs"][warm:], strict=True))
    ratios = sorted(a / b for a, b in pairs)
    quarter = len(ratios) // 4
    return dict(
        ours=statistics.median(a for a, _ in pairs),
        theirs=statistics.median(b for _, b in pairs),
        ratio=statistics.median(ratios),
        low=ratios[quarter],
        high=ratios[-1 - quarter],
    )


def row(name: str, result: dict) -> str:
    "A line of the Markdown table."
    times = f"{1e3 * result['ours']:.0f} | {1e3 * result['theirs']:.0f}"
    return (
        f"| {name} | {times} | {result['ratio']:.3f} ({result['low']:.3f}–{result['high']:.3f}) |"
    )
