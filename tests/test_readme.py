"""README.md, its Turkish twin and the page about metrics say the same as each other and as the
runs that are kept. Every message names the place and what is missing there."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import readme

ROOT = Path(__file__).parent.parent
TWINS = ["README.md", "README.tr.md"]
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
        places = [f"{names[0]}, “{here}”", f"{names[1]}, “{there}”"]
        ours, yours = facts(mine), facts(theirs)
        for kind in ours:
            for place, lost in zip(places, (yours[kind] - ours[kind], ours[kind] - yours[kind]),
                                   strict=True):  # fmt: skip
                found += [f"{place}: no {kind} {value}" for value in lost]
        if tables(mine) != tables(theirs):
            shapes = f"{tables(mine)} and {tables(theirs)}"
            found.append(f"{' and '.join(places)}: tables with other rows or columns, {shapes}")
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


@pytest.mark.parametrize("name", TWINS)
def test_pictures_and_results_are_those_of_the_runs(name):
    "`python tests/readme.py` writes them."
    text = (ROOT / name).read_text(encoding="utf-8")
    old, new = text.splitlines(), readme.written(name).splitlines()
    stale = [line for line in new if line not in old] + [line for line in old if line not in new]
    assert stale == [], f"{name} is older than the runs: python tests/readme.py"


@pytest.mark.parametrize("name", TWINS)
def test_links_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = LINK.findall(FENCE.sub("", text)) + [b for _, b in IMAGE.findall(text) if b]
    local = [link for link in named if not link.startswith(("http", "#"))]
    assert [link for link in local if not (ROOT / link.split("#")[0]).exists()] == []


def table_of(run: str, name: str) -> list[dict]:
    "Rows of a kept run's table."
    file = ROOT / "outputs" / run / "readme" / name
    with file.open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def kept_json(run: str, name: str) -> dict:
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


def said_of_metrics() -> list[str]:
    "What the page says of the embedding GAN's kept run, as the run's table has it."
    kept = values("03_embedding_gan")
    gan, start, real = "synthetic", "untrained", "real, training"
    floor = {metric: [kept[gan, metric][f"floor{end}"] for end in ("", "_low", "_high")]
             for metric in ("frechet", "kernel")}  # fmt: skip
    at, count = kept[gan, "frechet"]["at_count"], kept[gan, "frechet"]["count"]
    low, middle, high = (number(floor["kernel"][i], 1) for i in (1, 0, 2))
    frechet = "{} ({} to {})".format(*map(number, floor["frechet"]))
    rows = [f"| real against real | {count} | {frechet} | {middle} ({low} to {high}) |"]
    for name, title in ((real, "real, another region of the same section"),
                        (gan, "embedding GAN"), (start, "untrained")):  # fmt: skip
        pair = (number(kept[name, metric]["at_count"]) for metric in ("frechet", "kernel"))
        rows.append(f"| {title} | {count} | {' | '.join(pair)} |")
    whole, ball = kept[gan, "frechet"], kept[start, "precision"]
    return [
        *rows,
        f"distance of {number(whole['value'])} at {whole['images']} images and of {number(at)} "
        f"at {count}",
        f"had a precision of {number(ball['value'])} here at {ball['images']} images "
        f"({number(ball['low'], 2)} to {number(ball['high'])} by its interval)",
        f"Its recall was {number(kept[start, 'recall']['value'])} and its coverage "
        f"{number(kept[start, 'coverage']['value'], 3)}",
        f"and {number(kept[gan, 'accuracy']['value'], 2)}, as for the GAN above",
    ]


def test_the_page_about_metrics_says_what_the_run_says():
    page = text_of("nbs/guides/reading_metrics.md")
    lost = [words for words in said_of_metrics() if words not in page]
    assert lost == [], "reading_metrics.md does not say what outputs/03_embedding_gan says"
    report = (ROOT / "outputs/03_embedding_gan/readme/report.md").read_text(encoding="utf-8")
    flagged = re.search(r"(\d+ of \d+) images of `synthetic` lie nearer", report)
    assert f"{flagged[1]} flagged" in page


def test_the_page_about_metrics_says_what_the_demo_says():
    table = ROOT / "outputs/05_e2i/readme/evaluation.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    judge = rows[0]["extractor"]
    rows = list(csv.DictReader(table.with_name("fidelity.csv").open(encoding="utf-8")))
    kept = {row["set"]: row for row in rows if row["extractor"] == judge}
    made = kept["synthetic"]
    page = text_of("nbs/guides/reading_metrics.md")
    times = float(made["top1"]) / float(made["top1_chance"])
    expected = [
        f"{number(made['top1'], 3)} of {made['images']} is {number(times)} times chance",
        f"gets {number(kept['reconstructions']['top1'], 2)}",
    ]
    assert [words for words in expected if words not in page] == []


def flagged(run: str) -> tuple[int, int, bool]:
    "Images that the copy audit flags, of how many, and whether chance does not explain them."
    audit = kept_json(run, "evaluation.json")["copies"][0]
    return round(audit["flagged"] * audit["images"]), audit["images"], audit["found"]


def said_of_gans() -> list[str]:
    "What README says of the two GANs, as their kept runs have it."
    said = []
    for run in ("02_dcgan", "03_embedding_gan"):
        manifest, kept, copies = kept_json(run, "manifest.json"), values(run), flagged(run)
        sets = {f"{manifest['step']} steps of {manifest['parameters']['batch_size']}": "synthetic",
                "untrained": "untrained", "real, training": "real, training"}  # fmt: skip
        for title, name in sets.items():
            row = [number(kept[name, metric]["value"]) for metric in ("kernel", "frechet")]
            row += [f"{float(kept[name, metric]['value']):.2f}".rstrip("0").rstrip(".")
                    for metric in ("spread", "recall")]  # fmt: skip
            share = f"{100 * copies[0] / copies[1]:.1f} % |" if name == "synthetic" else "|"
            said.append(f"{title} | {' | '.join(row)} | {share}")
        kernel = kept["synthetic", "kernel"]
        ends = number(kernel["floor_high"])
        said.append(f"upper end at {kernel['count']} images | {ends} |")
    (dcgan, *_, sure), (other, *_, also) = flagged("02_dcgan"), flagged("03_embedding_gan")
    assert sure and not also, "which of the GANs copies: README says that the DCGAN does"
    return [*said, f"The {dcgan} images flagged for the DCGAN are more than chance explains",
            f"the {other} of the embedding GAN are not"]  # fmt: skip


def said_of_stylegan() -> dict[str, str]:
    "Page → what it says of StyleGAN2's kept run."
    log, kept = table_of("04_stylegan2", "metrics.csv"), values("04_stylegan2")
    manifest = kept_json("04_stylegan2", "manifest.json")
    made, start = kept["synthetic", "kernel"], kept["untrained", "kernel"]
    column = next(name for name in log[0] if name.startswith("kernel_"))
    course, kimg = [float(row[column]) for row in log], int(log[-1]["images"]) // 1000
    late = sum(course[-3:]) / 3
    spoken = (
        f"after {kimg} thousand images of {manifest['parameters']['image_size']} pixels, truncated "
        f"to 0.7. By {made['extractor']}, {made['images']} images against {made['real_images']} "
        "held-out ones, its kernel distance ×1000 is {} (95 % interval {} to {}; untruncated), "
        "that of the untrained network {}, and the floor ends at {} (with {} images)"
    ).format(*(number(made[key]) for key in ("value", "low", "high")), number(start["value"]),
             number(made["floor_high"]), made["count"])  # fmt: skip
    return {
        "README.md": spoken,
        "nbs/04_stylegan2.ipynb": f"after {kimg} kimg",
        "benchmarks/README.md": f"goes from {course[0]:.2f} at its first evaluation to {late:.2f} "
                                f"on average over its last three, at {kimg} kimg: "
                                f"{late / course[0]:.2f}",
    }  # fmt: skip


def said_of_the_demo() -> list[str]:
    "What README says of the demo, as its kept run has it."
    kept, rows = values("05_e2i"), table_of("05_e2i", "fidelity.csv")
    found = {(row["extractor"], row["set"]): row for row in rows}
    judges = list(dict.fromkeys(row["extractor"] for row in rows))[:2]
    made, said = [found[judge, "synthetic"] for judge in judges], []
    for name in ("synthetic", "first draws", "untrained", "reconstructions", "real, training",
                 "real, asking half"):  # fmt: skip
        one = kept[name, "kernel"]
        cells = [name, f"{one['images']} / {one['real_images']}", number(one["value"])]
        for row in (found.get((judge, name)) for judge in judges):
            cells += [number(row["top1"], 3), number(row["times_chance"], 1)] if row else ["", ""]
        said.append(" ".join(f"| {' | '.join(cells)} |".split()))
    ends = " and ".join(f"{number(row['top1_low'], 3)} to {number(row['top1_high'], 3)}"
                        for row in made)  # fmt: skip
    count, images, sure = flagged("05_e2i")
    assert sure, "README says that chance does not explain the demo's copies"
    return [*said, f"chance is {number(made[0]['top1_chance'], 4)}",
            f"intervals of the synthetic row are {ends}",
            f"{count} of {images} synthetic patches lie nearer to a training patch"]  # fmt: skip


def test_readme_says_what_its_runs_say():
    "The Turkish twin has the same numbers."
    page = text_of("README.md")
    lost = [words for words in said_of_gans() + said_of_the_demo() if words not in page]
    assert lost == [], "README.md does not say what the kept runs say"


def test_pages_say_what_the_run_of_stylegan_says():
    said = said_of_stylegan()
    assert {page: words for page, words in said.items() if words not in text_of(page)} == {}
