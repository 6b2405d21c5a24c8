"""README.md, its Turkish twin and the page about metrics say the same as each other and as the
runs that are kept. Every message names the place and what is missing there."""

import csv
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


def values(run: str) -> dict[tuple[str, str], dict]:
    "Set and metric → row, by the first judge of a kept run."
    file = ROOT / "outputs" / run / "readme" / "evaluation.csv"
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
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
    page = " ".join((ROOT / "nbs/reading_metrics.md").read_text(encoding="utf-8").split())
    lost = [words for words in said_of_metrics() if words not in page]
    assert lost == [], "nbs/reading_metrics.md does not say what outputs/03_embedding_gan says"
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
    page = " ".join((ROOT / "nbs/reading_metrics.md").read_text(encoding="utf-8").split())
    times = float(made["top1"]) / float(made["top1_chance"])
    expected = [
        f"{number(made['top1'], 3)} of {made['images']} is {number(times)} times chance",
        f"gets {number(kept['reconstructions']['top1'], 2)}",
    ]
    assert [words for words in expected if words not in page] == []
