"""The parts of both READMEs that kept runs decide: notebooks with a picture each, and results.

`python tests/readme.py` writes them anew; `tests/test_readme.py` says when it is time to.
"""

import csv
import json
import re
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = re.compile(r"^!\[([^]]+)\]\(\.\./(outputs/[^)]+)\)", re.M)
TITLE = re.compile(r"\A# (.+)\n+> (.+)")
HEADS = {
    "README.md": "notebook, judge | images made / real | kernel ×1000 (95 %) | untrained "
                 "| real, training | floor (95 %) | recall",
    "README.tr.md": "defter, hakem | üretilen / gerçek | çekirdek ×1000 (%95) | eğitilmemiş "
                    "| gerçek, eğitim | taban (%95) | duyarlılık",
}  # fmt: skip
TURKISH = {  # notebook → title and summary
    "01_data_prep": (
        "Veri",
        "Görüntüleri nerede olurlarsa olsunlar açın, nelerinin bozuk olduğunu bulun, bir modelin "
        "ne göreceğine bakın."),
    "02_dcgan": (
        "DCGAN",
        "İki ağ: biri resim yapar, öbürü yargılar; arada sentetik görüntüler oluşur."),
    "03_embedding_gan": (
        "Gömme GAN",
        "Üreteç hiç görüntü görmez, ayırt edici de görmez: yalnızca dondurulmuş bir ağın görüntü "
        "için söylediğini görür."),
    "04_stylegan2": (
        "StyleGAN2-ADA",
        "Az sayıda görüntüden, stilli bir üreteç: ilk inandırıcı sentetik tıbbi görüntüleri yapan "
        "ağ, eski programı olmadan."),
    "05_e2i": (
        "Gömmeden görüntüye",
        "Bir ağa görüntü gösterin, yalnızca doku kodlayıcısının onun için söylediğini saklayın ve "
        "aynı türden yeni görüntüler üretin."),
    "05_i2i": (
        "Görüntüden görüntüye",
        "Bir ağa görüntü gösterin, genel bir görüntü kodlayıcısının onun için söylediğini saklayın "
        "ve aynı türden yeni görüntüler üretin."),
    "05_t2i": (
        "Metinden görüntüye",
        "Bir parçada ne olduğunu sözle anlatın, görüntülerini üretin."),
    "06_em_ddpm": (
        "Maskeleriyle elektron mikrografları, gürültüden",
        "Bir görüntü ve ona ait maske; istenen sayıda, istenen nesne oranında."),
    "06_em_protocol": (
        "Sentetik çiftler ne işe yarar?",
        "Aynı bölütleme ağı gerçek çiftlerle, sentetiklerle, ikisiyle ve bilinen yöntemlerle; "
        "hiçbirinin görmediği doku bloklarında."),
    "06_em_segmentation": (
        "Elektron mikrograflarının bölütlenmesi",
        "Her kesitte mitokondriler nerede: her birinin yeri, büyüklüğü ve biçimi bir listede."),
    "07_emnist": (
        "Harfler: baştan difüzyon",
        "Buradan başlayın: yalnızca gürültü gideren bir ağ nasıl harf yazar; her fikir denklemi, "
        "bir resmi ve küçük bir testiyle."),
}  # fmt: skip


def pictured() -> dict[str, tuple[str, str, str, str]]:
    "Notebook → title, summary, words for its picture and the picture, where it has one."
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cell = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        picture = PICTURE.search(cell)
        if picture and (ROOT / picture[2]).is_file():  # the run is kept
            found[path.stem] = (*TITLE.match(cell).groups(), *picture.groups())
    return found


def pictures(readme: str) -> str:
    "A table of notebooks, one picture each, two in a row."
    cells = []
    for name, (title, summary, words, file) in pictured().items():
        if readme != "README.md":
            if name not in TURKISH:
                raise ValueError(f"tests/readme.py has no Turkish words for nbs/{name}.ipynb")
            title, summary = TURKISH[name]
            words = title
        image = f'<img src="{file}" alt="{words}" width="420">'
        cells.append(f"{image}<br>**[{title}](nbs/{name}.ipynb)** {summary}")
    pairs = zip_longest(cells[::2], cells[1::2], fillvalue="")
    return "\n".join(["| | |", "| --- | --- |", *(f"| {one} | {two} |" for one, two in pairs)])


def rounded(text: str) -> str:
    value = float(text)
    return (f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}").replace("-", "−")


def ranged(row: dict, name: str, low: str, high: str) -> str:
    "A value, with an interval where there is one."
    ends = f" ({rounded(row[low])} … {rounded(row[high])})" if row.get(low) else ""
    return rounded(row[name]) + ends


def result(file: Path) -> str:
    "One run's line, by its first judge; nothing for a run that was not judged like this."
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    if not {"extractor", "metric", "floor"} <= rows[0].keys():
        return ""
    judge = rows[0]["extractor"]
    mine = {(row["set"], row["metric"]): row for row in rows if row["extractor"] == judge}
    made = mine["synthetic", "kernel"]
    others = [mine.get((name, "kernel")) for name in ("untrained", "real, training")]
    name, report = file.parent.parent.name, file.with_name("report.md")
    link = (report if report.is_file() else file).relative_to(ROOT).as_posix()
    cells = [
        f"[`{name}`]({link})<br>{judge}", f"{made['images']} / {made['real_images']}",
        ranged(made, "value", "low", "high"),
        *(rounded(other["value"]) if other else "" for other in others),
        ranged(made, "floor", "floor_low", "floor_high"),
        rounded(mine["synthetic", "recall"]["value"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def results(readme: str) -> str:
    "The table of all kept runs that have been judged."
    head = HEADS[readme]
    lines = map(result, sorted(ROOT.glob("outputs/*/readme/evaluation.csv")))
    return "\n".join([f"| {head} |", "|" + " --- |" * len(head.split("|")), *filter(None, lines)])


def written(readme: str) -> str:
    "A README with these parts as the kept runs have them."
    text = (ROOT / readme).read_text(encoding="utf-8")
    for name, part in {"pictures": pictures, "results": results}.items():
        begin, end = f"<!-- {name}: python tests/readme.py -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{readme} has no place for {name}: {begin} … {end}")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{part(readme)}\n{end}{after}"
    return text


if __name__ == "__main__":
    for readme in HEADS:
        (ROOT / readme).write_text(written(readme), encoding="utf-8")
