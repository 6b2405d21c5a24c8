"The line of progress on terminals, in logs and under papermill, and how a run ends or is stopped."

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import nbformat
import pytest

from synth_nb.core.progress import (
    Pace,
    Progress,
    Terminal,
    board,
    fit_line,
    read_feed,
    stage,
    with_progress,
)
from synth_nb.tools.summary import (
    copies_sentence,
    drawn_table,
    nearness_sentence,
    read_rows,
    run_summary,
)

ROOT = Path(__file__).parent.parent
README_RUN = ROOT / "outputs/05_e2i/readme"


def clean_environment(**more) -> dict:
    "The environment of a person who starts a program from a terminal."
    # ipykernel leaves its error stream alone where it sees pytest
    without = ("IN_TEST", "SYNTH_NB_PROGRESS", "PYTEST_CURRENT_TEST")
    env = {k: v for k, v in os.environ.items() if k not in without}
    path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    return env | dict(PYTHONPATH=path, TERM="xterm") | more


def on_terminal(command: list, columns: int = 80, stop: str = "", **env) -> tuple[str, int]:
    "What a program writes to a terminal, and its exit code; Ctrl-C once a text has appeared."
    pid, screen = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
        os.execvpe(command[0], [str(word) for word in command], clean_environment(**env))
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    seen, end = "", time.monotonic() + 120
    while time.monotonic() < end:
        if not select.select([screen], [], [], 1)[0]:
            continue
        try:
            part = os.read(screen, 65536)
        except OSError:  # the program has ended
            break
        if not part:
            break
        seen += part.decode(errors="replace")
        if stop and stop in seen:
            os.write(screen, b"\x03")
            stop = ""
    os.close(screen)
    return seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def rows_of(screen: str) -> list[str]:
    "All states of all lines, without control characters."
    return [line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[\w", "", screen)) if line]


LOOP = """
import time
from synth_nb.core.progress import Progress
with Progress(40, what="training", unit="steps") as line:
    for step in range(1, 41):
        time.sleep(0.1)
        line.show(step, "loss 0.1234, loss_held_out 0.5678 that fits into no line of 60")
"""


def test_a_terminal_has_one_line_that_fits():
    screen, code = on_terminal([sys.executable, "-c", LOOP], columns=40)
    lines = rows_of(screen)
    assert code == 0 and max(map(len, lines)) <= 39
    assert any(re.fullmatch(r"training \d+/40, \d s left, loss 0.1234", x) for x in lines), lines
    assert screen.count("\n") <= 6  # the last line stays, wrapped
    assert "training, 40 steps" in screen


def test_a_terminal_without_a_cursor_gets_whole_lines():
    screen, _ = on_terminal([sys.executable, "-c", LOOP], TERM="dumb")
    assert "\x1b" not in screen and screen.replace("\r\n", "").count("\r") == 0
    first, last = rows_of(screen)  # it takes less than a minute
    assert first.startswith("training 0/40") and last.startswith("training, 40 steps, ")


def test_a_log_gets_a_line_a_minute(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("synth_nb.core.progress.time.monotonic", lambda: now)
    with open(tmp_path / "log", "w") as log:
        terminal = Terminal(log)
        monkeypatch.setattr("synth_nb.core.progress.progress_sink", lambda: terminal)
        with Progress(300, what="training") as line:
            for step in range(1, 301):
                now += 1.0
                line.show(step)
                board.tick()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "training 0/300" and lines[-1] == "training 300/300, 5 min 0 s"
    assert lines[1:-1] == [f"training {n}/300, {s} left" for n, s in (
        (60, "4 min 0 s"), (120, "3 min 0 s"), (180, "2 min 0 s"), (240, "1 min 0 s"))
    ] + ["training 300/300"]


def test_the_time_left_follows_what_steps_take_now():
    now = 0.0
    pace = Pace(clock=lambda: now)
    for step in range(1, 201):
        now += 30 if step == 1 else 0.5 if step <= 100 else 2.0
        pace.update(step)
        if step == 100:
            assert pace.left(100) == pytest.approx(50, rel=0.02)  # the start does not count
    assert pace.left(100) == pytest.approx(200, rel=0.02)
    assert now / 200 * 100 == pytest.approx(139.75)  # what a mean over everything would say


def test_pauses_are_counted_as_often_as_they_come(monkeypatch):
    now = 0.0
    monkeypatch.setattr("synth_nb.core.progress.time.monotonic", lambda: now)
    monkeypatch.setattr("synth_nb.core.progress.progress_sink", lambda: None)
    with Progress(40, pauses=4) as line:
        for step in range(1, 21):
            now += 1
            line.show(step)
            if step % 10 == 0:
                with line.pause():
                    now += 30
        assert line.left() == "1 min 20 s left"  # 20 steps of 1 s, 2 pauses of 30 s


def test_what_is_quick_says_nothing(capsys):
    assert list(with_progress("abc", 3, "reading images")) == ["a", "b", "c"]
    for _ in with_progress("abc", 3, "reading images"):
        break
    with stage("looking for copies"):
        pass
    assert capsys.readouterr() == ("", "")
    assert not board.stages


def test_a_notebook_gets_one_line_that_is_redrawn(monkeypatch):
    drawn = []

    class Handle:
        def update(self, data, raw):
            drawn.append(data["text/plain"])

    def display(data, raw, display_id):
        drawn.append(data["text/plain"])
        return Handle()

    monkeypatch.setattr("synth_nb.core.progress.in_kernel", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    assert list(with_progress("abcd", 4, "reading images", after=60)) == list("abcd") and not drawn
    assert list(with_progress("abcd", 4, "reading images", after=0)) == list("abcd")
    assert [line.split(" · ")[0].split()[-1] for line in drawn] == ["1/4", "4/4"]
    assert "left" in drawn[0] and "left" not in drawn[1]


def test_an_error_ends_its_line(capsys):
    with pytest.raises(RuntimeError), Progress(8) as line:
        line.show(3)
        raise RuntimeError
    assert not board.stages
    assert capsys.readouterr().err.splitlines() == ["training 0/8", "training 3/8, ended after 0 s"]


def test_no_width_is_too_small():
    for width in range(1, 60):
        assert len(fit_line(["training 1234/1600", "5 min 20 s left"], width)) <= max(width, 3)


def notebook(path: Path, *cells: str) -> Path:
    "A notebook of these code cells."
    about = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    first = nbformat.v4.new_code_cell("seed: int = 0", metadata=dict(tags=["parameters"]))
    cells = [first, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), path)
    return path


def test_stock_papermill_shows_the_line_of_its_kernel(tmp_path):
    source = notebook(tmp_path / "a.ipynb", LOOP)
    command = [sys.executable, "-m", "papermill", source, tmp_path / "out.ipynb"]
    lines = rows_of(on_terminal(command, columns=60)[0])
    assert any(re.match(r"training \d+/40, \d+ s left, loss 0.1234", x) for x in lines), lines
    assert any(line.startswith("training, 40 steps") for line in lines)
    done = subprocess.run(map(str, command), capture_output=True, text=True,
                          env=clean_environment())
    assert "training 0/40\n" in done.stderr and "training, 40 steps, " in done.stderr
    out = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs
    assert len(out) == 1 and "40/40" in out[0].data["text/plain"]


def test_other_kernels_leave_the_log_of_their_server_alone(tmp_path):
    source = notebook(tmp_path / "a.ipynb", LOOP)
    command = [sys.executable, "-m", "jupyter", "execute", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0 and "training" not in done.stderr


RUN = """
import time
from synth_nb.core.progress import stage
from synth_nb.core.runs import open_run
run = open_run("none", dict(outputs={outputs!r}, run_name="mine"), dict(fingerprint="a"))
with stage("waiting", after=0): time.sleep(60)
"""


@pytest.mark.parametrize("engine", [["--engine", "synth_nb"], []], ids=["ours", "stock"])
def test_a_stop_leaves_a_stopped_run_and_a_sentence(tmp_path, engine):
    source = notebook(tmp_path / "a.ipynb", RUN.format(outputs=str(tmp_path)))
    command = [sys.executable, "-m", "papermill", *engine, source, tmp_path / "out.ipynb"]
    screen, code = on_terminal(command, stop="waiting, 0 s")
    manifest = json.loads((tmp_path / "none" / "mine" / "manifest.json").read_text())
    assert manifest["status"] == "stopped" and code not in (0, None)
    words = " ".join(rows_of(screen))
    assert "what was reached is kept in" in words and "the same command goes on" in words
    if engine:
        assert code == 130 and "Traceback" not in screen


def test_a_kernel_that_is_killed_says_its_last_words(tmp_path):
    source = notebook(tmp_path / "a.ipynb", "import os\nos.write(2, b'last words\\n')\nos.abort()")
    command = [sys.executable, "-m", "papermill", "--engine", "synth_nb", source, "-"]
    done = subprocess.run(map(str, command), capture_output=True, text=True,
                          env=clean_environment())
    *words, sentence = done.stderr.splitlines()[-4:]
    assert done.returncode and "last words" in "\n".join(words)
    assert sentence.startswith("the kernel died at ") and "same command" in sentence


def test_the_engine_hands_its_line_to_whoever_asks(tmp_path):
    source = notebook(tmp_path / "a.ipynb", LOOP + "time.sleep(1.5)")
    feed = tmp_path / "feed.json"
    command = [sys.executable, "-m", "papermill", "--engine", "synth_nb", "--no-progress-bar",
               str(source), str(tmp_path / "out.ipynb")]
    env, lines = clean_environment(SYNTH_NB_PROGRESS=str(feed)), set()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    while process.poll() is None:
        lines.add(tuple(read_feed(feed)["line"][:1]))
        time.sleep(0.1)
    assert "training" not in process.stderr.read() and process.returncode == 0
    assert any(re.match(r"training \d+/40", line[0]) for line in lines if line), lines


def test_the_ending_fits_every_screen():
    for width in (40, 60, 80, 200):
        lines = run_summary(README_RUN, width).splitlines()
        assert max(map(len, lines)) < max(width, 41)
    assert len(run_summary(README_RUN, 80).splitlines()) <= 23
    lines = run_summary(README_RUN, 80).splitlines()
    head = next(line for line in lines if line.startswith("set "))
    assert len(re.split(r" {2,}", head)) <= 6


def test_the_ending_says_what_the_files_say():
    words = " ".join(run_summary(README_RUN).split())
    kernel = {row["set"]: row for row in read_rows(README_RUN / "evaluation.csv")
              if row["metric"] == "kernel" and row["extractor"].startswith("efficientnet_lite2")}
    synthetic, first, baseline = (kernel["synthetic"]["at_count"], kernel["untrained"]["at_count"],
                          kernel["synthetic"]["floor"])
    share = 100 * (first - synthetic) / (first - baseline)
    assert f"is {synthetic:.0f} at 49 images" in words
    assert f"untrained {first:.0f}: {share:.0f} % of the way" in words
    found = {row["extractor"].partition("@")[0]: row
             for row in read_rows(README_RUN / "fidelity.csv") if row["set"] == "synthetic"}
    for name in ("efficientnet_lite2", "efficientnet_lite1"):
        times = f"{found[name]['times_chance']:.1f} times chance, {name}"
        assert f"{100 * found[name]['top1']:.1f} % ({times})" in words
    assert "lite0" not in words  # it conditions: it flatters
    copies = json.loads((README_RUN / "evaluation.json").read_text(encoding="utf-8"))["copies"][0]
    flagged, usual = copies["flagged"] * 128, copies["false_alarms"] * 128
    assert f"{flagged:.0f} of 128 lie nearer" in words
    assert f"{usual:.1f}, is what chance explains: look" in words


def test_the_ending_does_not_fail_for_what_is_missing(tmp_path):
    for name in ("evaluation.csv", "fidelity.csv", "evaluation.json", "manifest.json"):
        folder = tmp_path / name
        shutil.copytree(README_RUN, folder)
        (folder / name).unlink()
        text = run_summary(folder)
        assert re.search("missing|not measured|not looked for|without a manifest", text)
        (folder / name).write_text("{not what it was", encoding="utf-8")
        if name != "manifest.json":  # that one is refused in one sentence everywhere
            run_summary(folder)
    assert "were not looked for" in copies_sentence({})
    worse = [dict(set=name, extractor="a", metric="kernel", at_count=value, count=9.0, floor=0.0)
             for name, value in (("synthetic", 5.0), ("untrained", 4.0))]
    assert "no nearer" in nearness_sentence(worse, "a")
    assert drawn_table([], 80) == ""


CHANGES = """
import os
import re
from pathlib import Path
from synth_nb.tools import grid
from synth_nb.tools.story import run_state
images = Path("images"); images.mkdir(); (images / "a.png").write_bytes(b"1")

def state(**more):
    grid.code_hash.cache_clear(); grid.defaults.cache_clear()
    return run_state("05_e2i", dict(epochs=10, dataset="images") | more)

def changed(name, pattern, new):
    file = Path(name); text = file.read_text(encoding="utf-8")
    other, count = re.subn(pattern, new, text, count=1)
    assert count == 1 and other != text, (name, pattern)
    before, times = state(), file.stat()
    file.write_text(other, encoding="utf-8")
    after = state()
    file.write_text(text, encoding="utf-8")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert state() == before
    return after != before

assert state() == state() != state(epochs=11)
assert state() != state(dataset="demo")
print(changed("nbs/05_e2i.ipynb", '"# ', '"# Other words: '),
      changed("nbs/05_e2i.ipynb", r"train_model\\(", "train_model( "),
      changed("nbs/05_e2i.ipynb", r"print\\(finish", "print(1, finish"),
      changed("nbs/05_e2i.ipynb", "guidance_scale: float = ", "guidance_scale: float = 1 + "),
      changed("synth_nb/diffusion/experiment.py", r"\\Z", "\\nADDED = 1\\n"),
      changed("synth_nb/evaluation/scores.py", r"\\Z", "\\nADDED = 1\\n"),
      changed("images/a.png", "1", "22"))
"""


def test_what_a_second_run_notices(tmp_path):
    for name in ("nbs", "synth_nb"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "settings.ini", tmp_path)
    env = clean_environment() | dict(PYTHONPATH=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", CHANGES], cwd=tmp_path, env=env, text=True,
                          capture_output=True)
    assert done.stdout.split() == ["False", "False", *["True"] * 5], done.stderr


def test_a_wrong_parameter_ends_before_anything_starts(tmp_path):
    command = [sys.executable, "-m", "synth_nb.tools.story", "05_e2i", str(tmp_path / "run")]
    done = subprocess.run([*command, "-p", "epoch", "3"], capture_output=True, text=True,
                          cwd=ROOT, env=clean_environment())
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "run").exists()
    assert done.stderr == "ParameterError: no parameter `epoch`; did you mean `epochs`?\n"


def test_a_stop_during_the_imports_has_no_traceback():
    process = subprocess.Popen([sys.executable, "-m", "synth_nb.tools.story", "05_e2i", "nowhere"],
                               stderr=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment())
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in errors
