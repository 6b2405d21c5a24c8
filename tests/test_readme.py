"""README.md, its Turkish twin and the pages about results and metrics agree with each other and
with the runs that are kept. Every message names the page and what is missing there."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import readme
import torch

from synth_nb.evaluation.sentences import score_words
from synth_nb.evaluation.worlds import FAULTS

ROOT = Path(__file__).parent.parent
TWINS = ["README.md", "README.tr.md"]
RESULTS, STATUS = "nbs/guides/results.md", "nbs/guides/status.md"
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LANGUAGES = {"README.md", "README.tr.md"}  # each links to the other


def facts(section: str) -> dict[str, Counter]:
    "What two languages share: blocks of code, links, pictures, words of code and numbers."
    blocks, rest = FENCE.findall(section), FENCE.sub("", section)
    images = [one or other for one, other in IMAGE.findall(rest)]
    links = [link for link in LINK.findall(rest) if link not in LANGUAGES]
    words = re.findall(r"`[^`\n]+`", rest)
    plain = re.sub(r"`[^`\n]+`|\]\([^)\s]+\)|<[^>]+>", "", rest)
    numbers = [one.replace(",", "") for one in NUMBER.findall(plain)]
    found = {"code": blocks, "picture": images, "link": links, "word": words, "number": numbers}
    return {kind: Counter(values) for kind, values in found.items()}


def tables(section: str) -> list[list[int]]:
    "Columns of every row, table by table."
    rows = [line.count("|") - 1 if line.startswith("|") else 0 for line in section.splitlines()]
    parts = " ".join(map(str, rows)).split(" 0")
    return [list(map(int, part.split())) for part in parts if part.strip(" 0")]


def sections(text: str) -> list[tuple[int, str, str]]:
    "Level, heading and text of every part."
    marked = FENCE.sub(lambda block: re.sub(r"^#", "\0", block[0], flags=re.M), text)
    parts = re.split(r"^(#+) (.+)\n", marked, flags=re.M)[1:]
    parts = [part.replace("\0", "#") for part in parts]
    return [(len(one), two, three) for one, two, three in zip(*[iter(parts)] * 3, strict=True)]


def differences(one: str, other: str, names=TWINS) -> list[str]:
    "What one text has and the other has not, section by section."
    first, second = sections(one), sections(other)
    if [part[0] for part in first] != [part[0] for part in second]:
        heads = [" · ".join(part[1] for part in parts) for parts in (first, second)]
        return [f"{name} has {len(parts)} sections: {head}"
                for name, parts, head in zip(names, (first, second), heads, strict=True)]
    found = []
    for (_, here, mine), (_, there, theirs) in zip(first, second, strict=True):
        headings = [f"{names[0]}, “{here}”", f"{names[1]}, “{there}”"]
        ours, yours = facts(mine), facts(theirs)
        for kind in ours:
            lacking = (yours[kind] - ours[kind], ours[kind] - yours[kind])
            for section, lost in zip(headings, lacking, strict=True):
                found += [f"{section}: no {kind} {value}" for value in lost]
        if tables(mine) != tables(theirs):
            shapes = f"{tables(mine)} and {tables(theirs)}"
            found.append(f"{' and '.join(headings)}: tables with other rows or columns, {shapes}")
    return found


def test_a_difference_is_named():
    one = "# A\n\nSee [b](c.md), 3 of 4.\n\n## B\n\n```sh\n# no heading\nls\n```\n\n| x | 1.5 |\n"
    two = one.replace("A", "Ğ").replace("See", "Bkz.")
    assert differences(one, two, "EN TR".split()) == []
    assert differences(one, two.replace("1.5", "1.6"), "EN TR".split()) == [
        "EN, “B”: no number 1.6", "TR, “B”: no number 1.5"]  # fmt: skip
    assert differences(one, two.replace("c.md", "d.md"), "EN TR".split()) == [
        "EN, “A”: no link d.md", "TR, “Ğ”: no link c.md"]  # fmt: skip
    assert differences(one, two.replace("ls", "cd"), "EN TR".split())[1].startswith("TR, “B”: no")
    assert "tables" in differences(one, two.replace("| x | 1.5 |", "| x 1.5 |"))[0]
    assert differences(one, two[:20], "EN TR".split()) == [
        "EN has 2 sections: A · B", "TR has 1 sections: Ğ"]  # fmt: skip


def test_the_twins_say_the_same():
    one, other = ((ROOT / name).read_text(encoding="utf-8") for name in TWINS)
    assert "\n".join(differences(one, other)) == ""


@pytest.mark.parametrize("name", readme.PAGES)
def test_pictures_and_results_are_those_of_the_runs(name):
    "`python tests/readme.py` writes them."
    text = (ROOT / name).read_text(encoding="utf-8")
    old, new = text.splitlines(), readme.written(name).splitlines()
    stale = [line for line in new if line not in old] + [line for line in old if line not in new]
    assert stale == [], f"{name} is older than the runs: python tests/readme.py"


@pytest.mark.parametrize("name", [*TWINS, RESULTS, STATUS])
def test_links_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = LINK.findall(FENCE.sub("", text)) + [b for _, b in IMAGE.findall(text) if b]
    local = [link for link in named if not link.startswith(("http", "#"))]
    home = (ROOT / name).parent
    assert [link for link in local if not (home / link.split("#")[0]).exists()] == []


def table_of(run: str, name: str) -> list[dict]:
    "Rows of a kept run's table."
    file = ROOT / "outputs" / run / "readme" / name
    with file.open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def run_json(run: str, name: str) -> dict:
    return json.loads((ROOT / "outputs" / run / "readme" / name).read_text(encoding="utf-8"))


def text_of(name: str) -> str:
    "A page as one line."
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def values(run: str) -> dict[tuple[str, str], dict]:
    "Set and metric → row, by the first judge of a kept run."
    rows = table_of(run, "evaluation.csv")
    mine = [row for row in rows if row["extractor"] == rows[0]["extractor"]]
    return {(row["set"], row["metric"]): row for row in mine}


def number(text: str, digits: int = 0) -> str:
    return f"{float(text):.{digits}f}".replace("-", "−")


def lines_of_metrics() -> list[str]:
    "What the page says of the embedding GAN's kept run, as the run's table has it."
    scores = values("03_embedding_gan")
    gan, start, real = "synthetic", "untrained", "real, training"
    baseline = {metric: [scores[gan, metric][f"floor{end}"] for end in ("", "_low", "_high")]
             for metric in ("frechet", "kernel")}  # fmt: skip
    at, count = scores[gan, "frechet"]["at_count"], scores[gan, "frechet"]["count"]
    low, middle, high = (number(baseline["kernel"][i], 1) for i in (1, 0, 2))
    frechet = "{} ({} to {})".format(*map(number, baseline["frechet"]))
    rows = [f"| real against real | {count} | {frechet} | {middle} ({low} to {high}) |"]
    for name, title in ((real, "real, another region of the same section"),
                        (gan, "embedding GAN"), (start, "untrained")):  # fmt: skip
        pair = (number(scores[name, metric]["at_count"]) for metric in ("frechet", "kernel"))
        rows.append(f"| {title} | {count} | {' | '.join(pair)} |")
    full, ball = scores[gan, "frechet"], scores[start, "precision"]
    return [
        *rows,
        f"distance of {number(full['value'])} at {full['images']} images and of {number(at)} "
        f"at {count}",
        f"had a precision of {number(ball['value'])} here at {ball['images']} images "
        f"({number(ball['low'], 2)} to {number(ball['high'])} by its interval)",
        f"Its recall was {number(scores[start, 'recall']['value'])} and its coverage "
        f"{number(scores[start, 'coverage']['value'], 3)}",
        f"and {number(scores[gan, 'accuracy']['value'], 2)}, as for the GAN above",
    ]


def test_the_page_about_metrics_says_what_the_run_says():
    page = text_of("nbs/guides/reading_metrics.md")
    lost = [words for words in lines_of_metrics() if words not in page]
    assert lost == [], "reading_metrics.md does not say what outputs/03_embedding_gan says"
    report = (ROOT / "outputs/03_embedding_gan/readme/report.md").read_text(encoding="utf-8")
    flagged = re.search(r"(\d+ of \d+) images of `synthetic` lie nearer", report)
    assert f"{flagged[1]} flagged" in page


def test_the_page_about_metrics_says_what_the_demo_says():
    table = ROOT / "outputs/05_e2i/readme/evaluation.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    extractor = rows[0]["extractor"]
    rows = list(csv.DictReader(table.with_name("fidelity.csv").open(encoding="utf-8")))
    scores = {row["set"]: row for row in rows if row["extractor"] == extractor}
    synthetic = scores["synthetic"]
    page = text_of("nbs/guides/reading_metrics.md")
    times = float(synthetic["top1"]) / float(synthetic["top1_chance"])
    expected = [
        f"{number(synthetic['top1'], 3)} of {synthetic['images']} is {number(times)} times chance",
        f"gets {number(scores['reconstructions']['top1'], 2)}",
    ]
    assert [words for words in expected if words not in page] == []


def lines_of_power() -> list[str]:
    "The powers of the kept run, and how often what is stated is observed, by its own file."
    stored, lines, cells = run_json("08_power", "power.json"), [], {}
    for row in stored["rows"]:
        one = dict(zip(stored["columns"], row, strict=True))
        cells.setdefault((one["fault"], one["severity"]), []).append(one)
    for (fault, severity), part in cells.items():
        if severity == FAULTS[fault].severities[1]:
            ends = [[number(one[end], 2) for end in ("low", "high")] for one in part]
            text = " | ".join(a if a == b else f"{a} to {b}" for a, b in ends)
            words = FAULTS[fault].sentence(severity).replace("%", " %")
            lines.append(f"| {words} | {score_words(part[0]['metric'])} | {text} |")
    held = {(row["how"], row[""]): row for row in table_of("08_power", "held.csv")}
    titles = dict(letters="letters", phantoms="MR phantoms",
                  sections="sections of an electron microscope",
                  he_oral="photographs of oral tissue")  # fmt: skip
    held_copies = [fault for fault, one in FAULTS.items() if one.kind == "copies"]
    good = many = sure = 0
    for world, title in titles.items():
        own, table = held["own images", world], held["table", world]
        share, of, stated, right = (float(own[name]) for name in (
            "within 0.1", "settings", "said to be noticed", "of these with 0.7"))  # fmt: skip
        good, many, sure = good + round(share * of), many + of, sure + stated
        assert right == 1
        lines.append(
            f"| {title} | {share:.0%} of {of:.0f} | {stated:.0f}, 100% | "
            f"{float(table['within 0.1']):.0%} of {float(table['settings']):.0f} | "
            f"{number(table['width of the range'], 2)} | "
            f"{float(table['said to be noticed']):.0f}, {float(table['of these with 0.7']):.0%} |")
    lines.append(f"within 0.1 in {good / many:.0%} of {many:.0f} settings")
    lines.append(f"of {sure:.0f} faults that it said are noticed {sure:.0f} were")
    kinds = {round(float(held["own images", one]["within 0.1"]), 2) for one in held_copies}
    assert len(kinds) == 1
    lines.append(f"only {kinds.pop():.0%} of their settings hold")
    return [line.replace("%", " %").replace("  %", " %") for line in lines]


def test_the_page_about_metrics_says_what_the_power_study_says():
    page = text_of("nbs/guides/reading_metrics.md")
    assert [words for words in lines_of_power() if words not in page] == []


def test_what_digits_are_worth_is_what_the_run_says():
    rows = run_json("08_evaluation", "evaluation.json")["exchange"]
    beside_3 = {row["classifier"].split()[0]: [round(row[end]) for end in ("worth", "low", "high")]
                for row in rows if row["count"] == 3}
    assert [row["low"] < 0 for row in rows if row["count"] == 54] == [True, True]  # "none"
    (worth, low, high), (other, least, most) = beside_3["probe"], beside_3["small"]
    assert f"{worth} real ones, {low} to {high}; beside 54 none" in text_of("README.md")
    assert (f"worth {worth} ({low} to {high}) for a probe and {other} ({least} to {most}) for a "
            "small network, beside 54 none") in text_of("nbs/08_evaluation.ipynb")


def flagged(run: str) -> tuple[int, int, bool]:
    "Images that the copy audit flags, of how many, and whether chance does not explain them."
    audit = run_json(run, "evaluation.json")["copies"][0]
    return round(audit["flagged"] * audit["images"]), audit["images"], audit["found"]


def lines_of_gans() -> list[str]:
    "The numbers of the two GANs, as their kept runs have them."
    lines = []
    for run in ("02_dcgan", "03_embedding_gan"):
        manifest, scores, copies = run_json(run, "manifest.json"), values(run), flagged(run)
        sets = {f"{manifest['step']} steps of {manifest['parameters']['batch_size']}": "synthetic",
                "untrained": "untrained", "real, training": "real, training"}  # fmt: skip
        if ("baseline", "kernel") in scores:
            sets["pooled embedding alone"] = "baseline"
        for title, name in sets.items():
            row = [number(scores[name, metric]["value"]) for metric in ("kernel", "frechet")]
            row += [f"{float(scores[name, metric]['value']):.2f}".rstrip("0").rstrip(".")
                    for metric in ("spread", "recall")]  # fmt: skip
            share = f"{100 * copies[0] / copies[1]:.1f} % |" if name == "synthetic" else "|"
            lines.append(f"{title} | {' | '.join(row)} | {share}")
        kernel = scores["synthetic", "kernel"]
        ends = number(kernel["floor_high"])
        lines.append(f"upper end at {kernel['count']} images | {ends} |")
    (dcgan, *_, sure), (other, *_, also) = flagged("02_dcgan"), flagged("03_embedding_gan")
    assert not (sure or also), "one of the GANs copies: the page says that neither does"
    return [*lines, f"Neither the {dcgan} images flagged for the DCGAN",
            f"nor the {other} of the embedding GAN are more than chance explains"]  # fmt: skip


def lines_of_stylegan() -> dict[str, str]:
    "Page → what it says of StyleGAN2's kept run."
    log, scores = table_of("04_stylegan2", "metrics.csv"), values("04_stylegan2")
    manifest = run_json("04_stylegan2", "manifest.json")
    synthetic, start = scores["synthetic", "kernel"], scores["untrained", "kernel"]
    column = next(name for name in log[0] if name.startswith("kernel_"))
    course, kimg = [float(row[column]) for row in log], int(log[-1]["images"]) // 1000
    late = sum(course[-3:]) / 3
    spoken = (
        f"after {kimg} thousand images of {manifest['parameters']['image_size']} pixels, truncated "
        f"to 0.7. With {synthetic['extractor']}, {synthetic['images']} images against "
        f"{synthetic['real_images']} "
        "held-out ones, its kernel distance ×1000 is {} (95 % interval {} to {}; untruncated), "
        "that of the untrained network {}, and the real-vs-real interval ends at {} "
        "(with {} images)"
    ).format(*(number(synthetic[key]) for key in ("value", "low", "high")), number(start["value"]),
             number(synthetic["floor_high"]), synthetic["count"])  # fmt: skip
    return {
        RESULTS: spoken,
        "nbs/04_stylegan2.ipynb": f"after {kimg} kimg",
        "benchmarks/stylegan2.md": f"goes from {course[0]:.2f} at its first evaluation to "
                                   f"{late:.2f} on average over its last three, at {kimg} kimg: "
                                   f"{late / course[0]:.2f}",
    }  # fmt: skip


def lines_of_the_demo() -> list[str]:
    "The numbers of the demo, as its kept run has them."
    scores, rows = values("05_e2i"), table_of("05_e2i", "fidelity.csv")
    found = {(row["extractor"], row["set"]): row for row in rows}
    extractors = list(dict.fromkeys(row["extractor"] for row in rows))[:2]
    synthetic, lines = [found[extractor, "synthetic"] for extractor in extractors], []
    for name in ("synthetic", "first draws", "untrained", "reconstructions", "real, training",
                 "real, conditioning half"):  # fmt: skip
        one = scores[name, "kernel"]
        cells = [name, f"{one['images']} / {one['real_images']}"]
        cells.append(number(one["value"]))
        for row in (found.get((extractor, name)) for extractor in extractors):
            cells += [number(row["top1"], 3), number(row["times_chance"], 1)] if row else ["", ""]
        lines.append(" ".join(f"| {' | '.join(cells)} |".split()))
    ends = " and ".join(f"{number(row['top1_low'], 3)} to {number(row['top1_high'], 3)}"
                        for row in synthetic)  # fmt: skip
    count, images, sure = flagged("05_e2i")
    assert sure, "the page says that chance does not explain the demo's copies"
    return [*lines, f"chance is {number(synthetic[0]['top1_chance'], 4)}",
            f"intervals of the synthetic row are {ends}",
            f"{count} of {images} synthetic patches lie nearer to a training patch"]  # fmt: skip


def lines_of_pairs() -> list[str]:
    "The protocol's numbers: real pairs alone and with synthetic ones, by share of the labels."
    rows = {(row["labels"], row["arm"], row["against"]): row
            for row in table_of("06_em_protocol", "protocol.csv")}  # fmt: skip
    lines = []
    for share in dict.fromkeys(labels for labels, *_ in rows):
        real, both = rows[share, "R", "R"], rows[share, "R+S", "R"]
        difference, low, high = (f"{float(both[k]):+.3f}" for k in ("difference", "low", "high"))
        scores = f"{float(real['score']):.3f} | {float(both['score']):.3f}"
        lines.append(f"| {100 * float(share):.0f} % | {scores} | {difference} ({low} to {high}) | "
                    f"{both['verdict']} |")  # fmt: skip
    return lines


def lines_of_letters() -> list[str]:
    "What synthetic digits add to a small network."
    rows = {(row["real_per_class"], row["trained_on"]): row
            for row in table_of("07_emnist", "usefulness.csv")}  # fmt: skip
    lines = []
    for n_real in dict.fromkeys(n_real for n_real, _ in rows):
        synthetic = rows[n_real, "real and synthetic" if int(n_real) else "synthetic"]
        real = f"{float(rows[n_real, 'real']['accuracy']):.3f} |" if int(n_real) else "|"
        title = n_real if int(n_real) else "none"
        keys = ("difference", "diff_low", "diff_high")
        change, low, high = (f"{float(synthetic[key]):+.3f}" for key in keys)
        lines.append(f"| {title} | {real} {float(synthetic['accuracy']):.3f} | "
                    f"{change} ({low} to {high})")  # fmt: skip
    classes = table_of("07_emnist", "by_class.csv")
    images = sum(int(row["images"]) for row in classes)
    right = sum(int(row["images"]) * float(row["accuracy"]) for row in classes) / images
    real = table_of("07_emnist", "evaluation_metrics_epoch_10_random_seed.csv")[0]
    lines.append(f"has an accuracy of {float(real['real_against_real']):.3f} on "
                 f"{real['real_images']} held-out real digits, and assigns the conditioning label "
                 f"to {right:.3f} (")  # fmt: skip
    return lines


def lines_of_conditions() -> list[str]:
    "The three conditions by the first extractor, from the kept comparison."
    text = (ROOT / "outputs/05_comparison/readme/comparison.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()[2:5]]
    lines = []
    for title, _, kernel, ends, _, times, _, copies, *_ in rows:
        mean, low, high = map(float, re.findall(r"[\d.]+", times))
        times = f"{mean} ({low:.0f} to {high:.0f})"
        share = f"{float(copies.split()[0]):.1f}".removesuffix(".0")
        lines.append(f"| {title} | {kernel} | {ends} | {times} | {share} % |")
    return lines


def test_the_results_are_those_of_the_runs():
    page = text_of(RESULTS)
    lines = [lines_of_gans(), lines_of_the_demo(), lines_of_pairs(), lines_of_letters(),
            lines_of_conditions()]  # fmt: skip
    lost = [words for part in lines for words in part if words not in page]
    assert lost == [], f"{RESULTS} and the kept runs differ"


def test_pages_say_what_the_run_of_stylegan_says():
    lines = lines_of_stylegan()
    assert {page: words for page, words in lines.items() if words not in text_of(page)} == {}


def test_pages_count_the_flagged_images_of_latent_diffusion():
    "README and the results; the Turkish twin has the same numbers."
    found = [flagged(run) for run in ("05_e2i", "05_i2i", "05_t2i")]
    counts, images = sorted(count for count, _, _ in found), found[0][1]
    pairs, sections, sure = flagged("06_em_ddpm")
    assert sure and all(one for *_, one in found), "the page says that chance explains none"
    words = (f"{counts[0]} to {counts[-1]} of {images} in the three `05` stories and {pairs} of "
             f"{sections} in `06_em_ddpm`")
    assert words in text_of("README.md")
    (_, image, text), guide = [count for count, _, _ in found], text_of(RESULTS)
    assert f"{image} (image embedding) and {text} (text)" in guide
    assert f"{pairs} of {sections} pairs are flagged as copies" in guide


def test_the_worth_of_synthetic_pairs_is_that_of_the_kept_run():
    "In labelled chunks; where no interval ends, pages name no number."
    with open(ROOT / "outputs/06_em_protocol/membranes/exchange.csv") as file:
        rows = {row["count"]: row for row in csv.DictReader(file)}
    found = {count: [f"{float(row[name]):.0f}" for name in ("worth", "low", "high")]
             for count, row in rows.items()}
    (worth, low, high), (more, less, most) = found["9"], found["18"]
    for page in (RESULTS, "benchmarks/segmentation.md"):
        assert f"worth {worth} ({low} to {high}) more" in text_of(page) or (
            f"worth {worth} more ({low} to {high})" in text_of(page))
        assert f"beside 18 chunks {more} ({less} to {most})" in text_of(page)
    assert f"9 labelled chunks are worth {worth} more" in text_of("nbs/06_em_protocol.ipynb")
    assert float(rows["176"]["low"]) < 0 < float(rows["176"]["high"])


def test_the_lines_of_python_run(monkeypatch, tmp_path):
    "All but the training and the loading of its model, which other tests do."
    import papermill

    from synth_nb.core import runs
    from synth_nb.core.runs import Samples

    calls = []

    class Noise:
        def sample(self, n, seed):
            generator = torch.Generator().manual_seed(seed)
            return Samples(torch.rand(n, 3, 64, 64, generator=generator) * 2 - 1)

    monkeypatch.setattr(papermill, "execute_notebook", lambda *values: calls.append(values))
    monkeypatch.setattr(runs, "load_model", lambda folder: calls.append(folder) or Noise())
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)[1]
    names = {}
    exec(code, names)
    (notebook, _, parameters), folder = calls
    assert (ROOT / notebook).is_file()
    assert folder == f"outputs/{Path(notebook).stem}/{parameters['run_name']}"
    assert Path("samples.png").is_file() and len(names["features"]) == 2
    assert names["kernel_distance"](*names["features"]) > 0.5  # noise is far from tissue


def test_readme_is_short():
    "Words outside of code and tables, and the columns of its table of results."
    text = FENCE.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    prose = [line for line in text.splitlines() if not line.startswith(("|", "<!--"))]
    assert len(" ".join(prose).split()) <= 900
    assert max(max(columns) for columns in tables(text)) <= 6


@pytest.mark.parametrize("kind, helps", [("mitochondria", ["R=P"]), ("membranes", ["R=P", "R"])])
def test_the_gain_of_pretraining_is_that_of_the_kept_run(kind, helps):
    "Guide and benchmark give the protocol's differences on real sections."
    with open(ROOT / f"outputs/06_em_protocol/{kind}/protocol.csv") as file:
        rows = [row for row in csv.DictReader(file)
                if row["arm"] == "P" and row["labels"] in ("0.05", "0.1")]
    pages = [text_of(name) for name in (RESULTS, "benchmarks/segmentation.md")]
    assert {(row["labels"], row["against"]) for row in rows if row["verdict"] == "helps"} == {
        (labels, against) for labels in ("0.05", "0.1") for against in helps}
    for row in rows:
        gain, low, high = (f"{float(row[name]):+.3f}".replace("-", "−")
                           for name in ("difference", "low", "high"))  # fmt: skip
        assert f"{gain} ({low} to {high})" in pages[0]
        assert f"{gain} ({low} to {high}), {row['verdict']}" in pages[1]
        if row["against"] == "R=P":
            assert f"{float(row['difference']):.3f}" in text_of("nbs/06_em_protocol.ipynb")


@pytest.mark.parametrize("kind, arms", [("arms", 8), ("membranes", 10), ("membrane_features", 2)])
def test_all_arms_are_those_of_the_kept_run(kind, arms):
    with open(ROOT / f"outputs/06_em_protocol/{kind}/protocol.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["difference"]]
    page, guide = text_of("benchmarks/segmentation.md"), text_of(RESULTS)
    assert len({row["arm"] for row in rows}) == arms - 1  # beside R
    for row in rows:
        gain, low, high = (f"{float(row[name]):+.3f}".replace("-", "−")
                           for name in ("difference", "low", "high"))  # fmt: skip
        line = f"{gain} ({low} to {high}), {row['verdict']}"
        assert line in page
        assert f"{float(row['score']):.3f}" in page
        if (row["arm"], row["against"]) in (("R+S", "R"), ("R+S+aug", "R+aug"), ("P+aug", "R+aug")):
            assert f"{gain} ({low} to {high})" in guide


def test_lesions_put_in_and_taken_out_are_those_of_the_kept_run():
    found = json.loads(text_of("outputs/06_em_ddpm/lesions/pairs.json"))["replaced"]
    page, story = text_of("benchmarks/inpainting.md"), text_of("nbs/06_em_ddpm.ipynb")
    for name, title in (("put in", "put into healthy slices"), ("taken out", "taken out")):
        before, after = found[name]
        assert f"| {title} | {before:.3f} | {after:.3f} |" in page
        assert all(f"{round(value, 2):g} " in story for value in (before, after))


def test_agreement_of_stacks_is_that_of_the_kept_run():
    rows = json.loads(text_of("outputs/06_em_stacks/readme/stacks.json"))
    page = text_of("benchmarks/stacks.md")
    apart = ["r, 1 apart", "r, 2 apart", "r, 4 apart", "r where windows meet"]
    for title in ("real, held out", "synthetic", "windows on top of each other"):
        parts = [[float(part) for part in rows[title][name].split(" ± ")] for name in apart]
        cells = " | ".join(f"{value:.3f} ± {half:.3f}" for value, half in parts)
        assert f"| {title.removeprefix('real, ')} | {cells} |" in page
    joined, piled = (float(rows[title]["r where windows meet"].split()[0])
                     for title in ("synthetic", "windows on top of each other"))
    assert joined > 5 * abs(piled)


def test_what_helps_on_the_first_page_is_what_the_run_says():
    with open(ROOT / "outputs/06_em_protocol/membranes/protocol.csv") as file:
        scores = {row["arm"]: f"{float(row['score']):.3f}" for row in csv.DictReader(file)
                  if row["labels"] == "0.05"}
    for name in TWINS:
        arms = ("R", "R+S", "R+aug", "R+S+aug", "P", "P+aug")
        assert all(scores[arm] in text_of(name) for arm in arms)
