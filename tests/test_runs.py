"What a run says while it works."

from synth_nb.runs import Progress, watched


def test_what_takes_long_says_once_in_a_log_how_long(capsys):
    parts = [[1], [2], [3]]
    assert list(watched(parts, 3, "embedding images", len, after=-1)) == parts
    said = capsys.readouterr().out.splitlines()
    assert said == ["embedding images 1/3, about 0 s left"]


def test_what_is_quick_or_stopped_says_nothing(capsys):
    assert list(watched("abc", 3, "reading images")) == ["a", "b", "c"]
    for _ in watched("abc", 3, "reading images"):
        break
    assert capsys.readouterr() == ("", "")


def test_a_training_logs_its_evaluations_only(capsys):
    line = Progress(20)
    for step in range(1, 21):
        line.show(step, "loss 0.5" if step % 10 == 0 else "")
    line.close()
    assert capsys.readouterr().out.splitlines() == [f"training {n}/20 loss 0.5" for n in (10, 20)]


def test_a_notebook_gets_one_line_that_is_redrawn(monkeypatch):
    drawn = []

    class Handle:
        def update(self, data, raw):
            drawn.append(data["text/plain"])

    def display(data, raw, display_id):
        drawn.append(data["text/plain"])
        return Handle()

    monkeypatch.setattr("synth_nb.runs.in_kernel", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    assert list(watched("abcd", 4, "reading images", after=60)) == list("abcd") and not drawn
    assert list(watched("abcd", 4, "reading images", after=0)) == list("abcd")
    assert [line.split(" · ")[0].split()[-1] for line in drawn] == ["1/4", "4/4"]
    assert "left" in drawn[0] and "left" not in drawn[1]
