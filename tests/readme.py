"""The parts of both READMEs and of the results page that kept runs decide: stories and scores.

`python tests/readme.py` writes them anew; `tests/test_readme.py` says when it is time to.
"""

import csv
import json
import os
import re
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = re.compile(r"^!\[[^]]+\]\(\.\./(outputs/[^)]+)\)", re.M)
TITLE = re.compile(r"\A# (.+)\n+> (.+)")
PAGES = {  # page → the parts it has
    "README.md": ("pictures", "results"),
    "README.tr.md": ("pictures", "results"),
    "nbs/guides/results.md": ("results",),
}
HEADS = {
    "README.md": "story | images, synthetic/real | kernel distance ×1000 (95 %) | untrained "
                 "| real vs real (95 %) | recall",
    "README.tr.md": "defter | görüntü, sentetik/gerçek | çekirdek uzaklığı ×1000 (%95) "
                    "| eğitilmemiş | gerçeğe karşı gerçek (%95) | duyarlılık",
    "nbs/guides/results.md": "story | images, synthetic/real | kernel distance ×1000 (95 %) "
                             "| untrained | real, training | real vs real (95 %) | recall",
}  # fmt: skip
ORDER = [  # in which the stories are read
    "07_emnist", "01_data_prep", "02_dcgan", "03_embedding_gan", "04_stylegan2", "05_e2i",
    "05_i2i", "05_t2i", "05_comparison", "05_fields", "06_em_segmentation", "06_em_ddpm",
    "06_em_protocol", "06_em_stacks", "08_power"]  # fmt: skip
TURKISH = {  # notebook → title and summary
    "01_data_prep": (
        "Veri",
        "Görüntü veri kümelerini açın, bozuk ve yinelenen dosyaları bulun, bölün ve dışa aktarın."),
    "02_dcgan": (
        "DCGAN",
        "Birbirine karşı eğitilen bir üreteç ve bir ayırt edici (DCGAN, Radford ve ark. 2016)."),
    "03_embedding_gan": (
        "Gömme GAN",
        "Ayırt edicisi pikseller yerine dondurulmuş bir görüntü kodlayıcısının özniteliklerini "
        "gören bir GAN (Projected GANs izinde, Sauer ve ark. 2021)."),
    "04_stylegan2": (
        "StyleGAN2-ADA",
        "Az görüntü için uyarlanır veri artırmalı, stil tabanlı bir GAN (StyleGAN2-ADA, Karras ve "
        "ark. 2020), düz PyTorch ile."),
    "05_e2i": (
        "Gömmeden görüntüye",
        "Koşulu bir doku kodlayıcısının gömmesi olan gizil difüzyon (Rombach ve ark. 2022)."),
    "05_i2i": (
        "Görüntüden görüntüye",
        "Koşulu genel bir görüntü kodlayıcısının gömmesi olan gizil difüzyon."),
    "05_t2i": (
        "Metinden görüntüye",
        "Koşulu bir CLIP metin kodlayıcısından geçen açıklamalar olan gizil difüzyon."),
    "05_comparison": (
        "Metin, görüntü ya da doku gömmesi?",
        "Tek bir difüzyon modelinin koşulu olarak metin, görüntü ve doku gömmesi: biten "
        "çalıştırmalardan, tohumlar üzerinden aralıklarıyla puanlar."),
    "05_fields": (
        "Parçadan büyük alanlar",
        "Parça modelinden her boyda slayt (örtüşen gürültü giderme, MultiDiffusion, Bar-Tal ve "
        "ark. 2023), koşulu bir gömme ızgarası: dikişler, süre ve kırpmalarının parçalar kadar "
        "iyi olup olmadığı."),
    "06_em_ddpm": (
        "Maskeleriyle elektron mikrografları, gürültüden",
        "Elektron mikrograflarını bölütleme maskeleriyle birlikte üreten gizil difüzyon."),
    "06_em_protocol": (
        "Sentetik çiftler ne işe yarar?",
        "Karşılaştırmalı deney: gerçek, sentetik ve karışık çiftlerle ya da bir üretecin "
        "bildiklerinden başlayarak eğitilen, ayrı tutulan bloklarda sınanan bir bölütleme ağı."),
    "06_em_segmentation": (
        "Elektron mikrograflarının bölütlenmesi",
        "Elektron mikrograflarında mitokondrileri bölütleyen ve her nesneyi listeleyen artık "
        "bağlantılı bir U-Net."),
    "06_em_stacks": (
        "Kesit yığınları",
        "Birkaç komşu kesitin birlikte gizil difüzyonu ve z boyunca örtüşen gürültü gidermeyle her "
        "derinlikte yığınlar (MultiDiffusion, Bar-Tal ve ark. 2023)."),
    "08_power": (
        "Sizin n'nizde hangi sayıya güvenmeli",
        "Fréchet ve çekirdek uzaklığı, kesinlik, duyarlılık, kopya denetimi ve başkalarının, "
        "şiddeti bilinen yerleştirilmiş hatalara karşı gücü, görüntü sayısına göre."),
    "07_emnist": (
        "Harfler: baştan difüzyon",
        "Buradan başlayın: gürültü giderme difüzyonu (Ho ve ark. 2020) ve sınıflandırıcısız "
        "yönlendirme, el yazısı rakam ve harflerde, fikir fikir."),
}  # fmt: skip


def pictured() -> dict[str, tuple[str, str, str]]:
    "Story → title, summary and picture, where it has one; in the order of reading."
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cell = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        picture = PICTURE.search(cell)
        if picture and (ROOT / picture[1]).is_file():  # the run is kept
            found[path.stem] = (*TITLE.match(cell).groups(), picture[1])
    if lost := found.keys() - ORDER:
        raise ValueError(f"tests/readme.py has no place in ORDER for {', '.join(sorted(lost))}")
    return {name: found[name] for name in ORDER if name in found}


def pictures(readme: str) -> str:
    "A table of stories, one picture each, two in a row."
    cells = []
    for name, (title, summary, file) in pictured().items():
        if readme != "README.md":
            if name not in TURKISH:
                raise ValueError(f"tests/readme.py has no Turkish words for nbs/{name}.ipynb")
            title, summary = TURKISH[name]
        image = f'<img src="{file}" alt="{title}" width="420">'
        cells.append(f"{image}<br>**[{title}](nbs/{name}.ipynb)** {summary}")
    pairs = zip_longest(cells[::2], cells[1::2], fillvalue="")
    return "\n".join(["| | |", "|---|---|", *(f"| {one} | {two} |" for one, two in pairs)])


def rounded(text: str) -> str:
    value = float(text)
    return (f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}").replace("-", "−")


def ranged(row: dict, name: str, low: str, high: str) -> str:
    "A value, with an interval where there is one."
    ends = f" ({rounded(row[low])}…{rounded(row[high])})" if row.get(low) else ""
    return rounded(row[name]) + ends


def result(file: Path, page: str) -> str:
    "One run's line, by its first extractor; nothing for a run that was not evaluated like this."
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    if not {"extractor", "metric", "floor"} <= rows[0].keys():
        return ""
    extractor = rows[0]["extractor"]
    mine = {(row["set"], row["metric"]): row for row in rows if row["extractor"] == extractor}
    if (synthetic := mine.get(("synthetic", "kernel"))) is None:  # a set by another name
        return ""
    sets = ["untrained", "real, training"] if page.startswith("nbs/") else ["untrained"]
    others = [mine.get((name, "kernel")) for name in sets]
    name, report = file.parent.parent.name, file.with_name("report.md")
    target = report if report.is_file() else file
    link = Path(os.path.relpath(target, (ROOT / page).parent)).as_posix()
    cells = [
        f"[`{name}`]({link})<br>{extractor}", f"{synthetic['images']}/{synthetic['real_images']}",
        ranged(synthetic, "value", "low", "high"),
        *(rounded(other["value"]) if other else "" for other in others),
        ranged(synthetic, "floor", "floor_low", "floor_high"),
        rounded(mine["synthetic", "recall"]["value"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def results(page: str) -> str:
    "The table of all kept runs that have been evaluated."
    head, files = HEADS[page], sorted(ROOT.glob("outputs/*/readme/evaluation.csv"))
    lines = [result(file, page) for file in files]
    return "\n".join([f"| {head} |", "|" + "---|" * len(head.split("|")), *filter(None, lines)])


def written(page: str) -> str:
    "A page with these parts as the kept runs have them."
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = dict(pictures=pictures, results=results)
    for name in PAGES[page]:
        begin, end = f"<!-- {name}: python tests/readme.py -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page} has no place for {name}: {begin} … {end}")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{parts[name](page)}\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(written(page), encoding="utf-8")
