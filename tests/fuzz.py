"""Damaged inputs for every reader: each is read, listed with a reason, or refused in one sentence.

    python tests/fuzz.py [INPUTS] [READER …]     10,000 inputs over all readers

Prints a line for each reader. What else is raised, more than three gigabytes, more than a minute,
and the end of the process count as failures; their seeds belong into tests/fuzz_seeds.json, and
tests/test_fuzz.py tries them for ever. Input n of a reader is the same on every machine.
"""

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

SEEDS = Path(__file__).with_name("fuzz_seeds.json")
SECONDS, MEMORY = 60, 3 * 2**30  # of one input; bytes above what the process begins with
PIXELS = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)


def encoded(kind, pixels=PIXELS, **options):
    Image.fromarray(pixels).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def written(save, *args, **kwargs):
    "What a function writes into a file."
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "x.pt", *args, **kwargs)
        [path] = Path(folder).iterdir()
        return path.read_bytes()


# --- what is damaged


def pages(**options):
    first, *rest = (Image.fromarray(np.roll(PIXELS[..., 0], i, 0)) for i in range(4))
    first.save(file := io.BytesIO(), "TIFF", save_all=True, append_images=rest, **options)
    return file.getvalue()


def ome():
    from tifffile import imwrite

    planes = np.random.default_rng(1).integers(0, 256, (4, 3, 24, 20), dtype=np.uint8)
    return written(lambda path: imwrite(path, planes, ome=True, metadata=dict(axes="TCYX")))


def array(save, *args, **kwargs):
    save(file := io.BytesIO(), *args, **kwargs)
    return file.getvalue()


def images(n=4):
    return {f"{i}.png": encoded("PNG", np.roll(PIXELS, i, 0)) for i in range(n)}


def zipped(members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file := io.BytesIO(), "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(mode, **options):
    with tarfile.open(fileobj=(file := io.BytesIO()), mode=mode, **options) as archive:
        for name, content in images().items():
            entry = tarfile.TarInfo(f"{'long ' * 30}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def dicom(**options):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    values = dict(Rows=24, Columns=20, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                  BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0,
                  NumberOfFrames=3, PatientID="a", WindowCenter=100, WindowWidth=200,
                  RescaleSlope=2, RescaleIntercept=-5, SOPClassUID=SecondaryCaptureImageStorage)
    for name, value in (values | options).items():
        setattr(ds, name, value)
    ds.PixelData = np.arange(3 * 24 * 20, dtype="<u2").tobytes()
    ds.save_as(file := io.BytesIO(), enforce_file_format=True)
    return file.getvalue()


def hdf5():
    import h5py

    with h5py.File(file := io.BytesIO(), "w") as h5:
        h5.create_dataset("x", data=np.stack([PIXELS] * 4), chunks=(1, 24, 20, 3),
                          compression="gzip")
        h5.create_dataset("y", data=np.arange(4))
    return file.getvalue()


def nifti():
    import nibabel

    values = np.arange(24 * 20 * 9, dtype=np.int16).reshape(24, 20, 9)
    return nibabel.Nifti1Image(values, np.eye(4)).to_bytes()


def matlab(packed=True):
    from scipy.io import savemat

    part = dict(images=np.zeros((3, 784), np.uint8), labels=np.ones((3, 1)))
    savemat(file := io.BytesIO(), dict(dataset=dict(train=part, test=part)), do_compression=packed)
    return file.getvalue()


def idx(shape):
    head = bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", side) for side in shape)
    return head + bytes([1 + i % 9 for i in range(int(np.prod(shape)))])


def slide():
    from tifffile import TiffWriter

    pixels = np.random.default_rng(0).integers(90, 255, (256, 256, 3), dtype=np.uint8)
    pixels[..., 1] //= 2

    def save(path):
        with TiffWriter(path) as file:
            for step in (1, 2):
                level = np.ascontiguousarray(pixels[::step, ::step])
                file.write(level, tile=(64, 64), photometric="rgb", subfiletype=step - 1,
                           resolution=(20000 / step, 20000 / step), resolutionunit="CENTIMETER")

    return written(save)


# --- how it is opened


def folder_of(name, n=4, **others):
    "A damaged file among sound ones; `others`: more files, sound."
    def put(folder, content):
        for other, sound in (images(n) | others).items():
            (folder / other).write_bytes(sound)
        (folder / name).write_bytes(content)
        return folder

    return put


def file_of(name):
    def put(folder, content):
        (folder / name).write_bytes(content)
        return folder / name

    return put


def opened(**options):
    from synth_nb.data import open_dataset

    def read(path):
        kind = options.get("kind", "")
        rest = {k: v for k, v in options.items() if k != "kind"}
        ds = open_dataset(f"{kind}{path}" if kind else path, 16, val_fraction=0, **rest)
        len(ds), ds.explain()

    return read


def captioned(path):
    from synth_nb.data import open_dataset
    from synth_nb.diffusion.captions import open_captions

    open_captions("column:text", open_dataset(path, 16, val_fraction=0), str(path))


def run_of(loader, save, name):
    "A run folder with a model, of which one file is damaged."
    def put(folder, content):
        (folder / "manifest.json").write_text(json.dumps(dict(loader=loader)))
        (folder / "model").mkdir(parents=True)
        save(folder / "model")
        (folder / "model" / name).write_bytes(content)
        return folder

    return put


def of_model(save, name):
    "The intact content of a file of a model."
    def content():
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            return (Path(folder) / name).read_bytes()

    return content


def save_segmenter(folder):
    from synth_nb.segmentation import fit

    fit.save(fit.Segmenter(fit.ResidualUNet(widths=(4, 8))), folder)


def save_dcgan(folder):
    from synth_nb.dcgan import model
    from synth_nb.dcgan.networks import Generator

    model.save(model.NoiseToImage(Generator(16, z_dim=4, width=4)), folder)


def save_stylegan(folder):
    from synth_nb.stylegan2 import model

    model.save(model.StyleToImage(small_generator()), folder)


def small_generator():
    from synth_nb.stylegan2.networks import Generator

    return Generator(8, 0, 8, 8, 3, dict(num_layers=2), dict(channel_base=64, channel_max=8))


def exported():
    from synth_nb.stylegan2.checkpoints import export_official

    return written(export_official, G_ema=small_generator())


def official():
    from bills import generator

    return b"\x80\x04}\x8c\x05G_ema" + generator(b"}\x8c\x05z_dimK\x08s") + b"s."


def checkpoint():
    import torch

    return written(lambda path: torch.save(dict(a=torch.arange(9.0), b=[1, "c"]), path))


def load_run(path):
    from synth_nb.core.runs import load_model

    load_model(path, "cpu")


def in_module(module, name):
    "A function, imported when it is first needed."
    def read(path):
        getattr(import_module(f"synth_nb.{module}"), name)(path)

    return read


@dataclass
class Reader:
    "One kind of input."
    intact: Callable[[], bytes]
    put: Callable[[Path, bytes], Path]  # writes an input; what is opened
    read: Callable[[Path], None]
    errors: tuple[str, ...] = ("DataError",)  # names of what it may raise, and nothing else
    text: bool = False  # damaged as text, too


def table(*rows):
    return lambda: "\n".join(rows).encode()


MASKS = [json.dumps(dict(file_name=f"{i}.png", mask_file_name="m.png", text="pale"))
         for i in range(4)]
LABELS = json.dumps(dict(labels=[[f"{i}.png", i % 2] for i in range(4)]))
MASK = encoded("PNG", np.where(PIXELS[..., 0] > 99, 255, 0).astype(np.uint8))
COCO = json.dumps(dict(
    images=[dict(id=i, file_name=f"{i}.png") for i in range(4)],
    annotations=[dict(image_id=i, category_id=i % 2) for i in range(4)],
    categories=[dict(id=i, name="ab"[i]) for i in range(2)]))
RECORD = json.dumps(dict(notebook="02_dcgan", parameters=dict(symmetry=2, seed=0, mode="masks"),
                         identity=dict(parameters=dict(views=1)), data={}, starts=["a"],
                         environment=dict(threads=1), loader="synth_nb.dcgan.model:load"))
LOADER = "synth_nb.{}:load".format
MODEL_ERRORS = ("FileNotFoundError", "ValueError", "ParameterError", "CheckpointError")
SECTION_ERRORS = ("DataError", "ParameterError")

READERS = {
    "png": Reader(lambda: encoded("PNG"), folder_of("x.png"), opened()),
    "png of 16 bits": Reader(lambda: encoded("PNG", PIXELS[..., 0].astype(np.uint16) * 9),
                             folder_of("x.png"), opened()),
    "jpg": Reader(lambda: encoded("JPEG"), folder_of("x.jpg"), opened()),
    "webp": Reader(lambda: encoded("WEBP"), folder_of("x.webp"), opened()),
    "bmp": Reader(lambda: encoded("BMP"), folder_of("x.bmp"), opened()),
    "gif": Reader(lambda: encoded("GIF"), folder_of("x.gif"), opened()),
    "ppm": Reader(lambda: encoded("PPM"), folder_of("x.ppm"), opened()),
    "jp2": Reader(lambda: encoded("JPEG2000"), folder_of("x.jp2"), opened()),
    "tif": Reader(lambda: encoded("TIFF", compression="tiff_lzw"), folder_of("x.tif"), opened()),
    "tif with pages": Reader(pages, folder_of("x.tif"), opened()),
    "BigTIFF": Reader(lambda: pages(big_tiff=True), folder_of("x.tif"), opened()),
    "OME-TIFF": Reader(ome, folder_of("x.ome.tif"), opened()),
    "masks": Reader(lambda: MASK, folder_of("0_mask.png", **{
        f"{i}_mask.png": MASK for i in (1, 2, 3)}), opened()),
    "npy": Reader(lambda: array(np.save, np.stack([PIXELS] * 3)), folder_of("x.npy"), opened(),
                  text=True),
    "npz": Reader(lambda: array(np.savez_compressed, images=np.stack([PIXELS] * 3),
                                labels=np.arange(3)), file_of("x.npz"), opened()),
    "npz, stored": Reader(lambda: array(np.savez, images=np.stack([PIXELS] * 3),
                                        labels=np.array(["a", "b", "c"])), file_of("x.npz"),
                          opened(), text=True),
    "zip": Reader(lambda: zipped(images() | {"dataset.json": '{"labels": null}'}), file_of("x.zip"),
                  opened()),
    "zip, stored": Reader(lambda: zipped(images() | {"m.png": MASK, "metadata.jsonl":
                                                     "\n".join(MASKS)}, zipfile.ZIP_STORED),
                          file_of("x.zip"), opened()),
    "tar": Reader(lambda: tarred("w"), file_of("x.tar"), opened()),
    "tar, pax": Reader(lambda: tarred("w", format=tarfile.PAX_FORMAT), file_of("x.tar"), opened()),
    "tar.gz": Reader(lambda: tarred("w:gz"), file_of("x.tar.gz"), opened()),
    "DICOM": Reader(dicom, folder_of("x.dcm"), opened()),
    "HDF5": Reader(hdf5, file_of("x.h5"), opened()),
    "NIfTI": Reader(nifti, folder_of("x.nii", n=24), opened()),
    "labels.csv": Reader(table("name,class", *(f"{i}.png,{'ab'[i % 2]}" for i in range(4))),
                         folder_of("labels.csv"), opened(), text=True),
    "labels.json": Reader(table(COCO), folder_of("labels.json"), opened(), text=True),
    "label beside": Reader(table('{"label": 3}'), folder_of("0.json", **{
        f"{i}.json": b'{"label": 4}' for i in (1, 2, 3)}), opened(), text=True),
    "dataset.json": Reader(table(LABELS), folder_of("dataset.json"), opened(), text=True),
    "metadata.jsonl": Reader(table(*MASKS), folder_of("metadata.jsonl", **{"m.png": MASK}),
                             opened(), text=True),
    "captions.jsonl": Reader(table(*MASKS), folder_of("metadata.jsonl", **{"m.png": MASK}),
                             captioned, text=True),
    "captions.csv": Reader(table("file_name,text", *(f"{i}.png,pale" for i in range(4))),
                           folder_of("metadata.csv"), captioned, text=True),
    "EMNIST, IDX": Reader(lambda: idx((4, 28, 28)), folder_of(
        "emnist-letters-train-images-idx3-ubyte", n=0,
        **{"emnist-letters-train-labels-idx1-ubyte": idx((4,))}), opened(kind="emnist:")),
    "EMNIST, IDX labels": Reader(lambda: idx((4,)), folder_of(
        "emnist-letters-train-labels-idx1-ubyte", n=0,
        **{"emnist-letters-train-images-idx3-ubyte": idx((4, 28, 28))}), opened(kind="emnist:")),
    "EMNIST, MATLAB": Reader(matlab, file_of("emnist-letters.mat"), opened(kind="emnist:")),
    "EMNIST, MATLAB, not packed": Reader(lambda: matlab(False), file_of("emnist-letters.mat"),
                                         opened(kind="emnist:")),
    "EMNIST, CSV": Reader(table(*(",".join(["3", *["7"] * 784]) for _ in range(3))),
                          file_of("emnist-letters.csv"), opened(kind="emnist:"), text=True),
    "sections": Reader(pages, file_of("x.tif"), opened(kind="em:", chunk=16), SECTION_ERRORS),
    "sections, PNG": Reader(lambda: encoded("PNG", PIXELS[..., 0]), folder_of("x.png"),
                            opened(kind="em:", chunk=16), SECTION_ERRORS),
    "slide": Reader(slide, folder_of("x.tif", n=0), opened(kind="wsi:", tile=64)),
    "manifest": Reader(table(RECORD), folder_of("manifest.json", n=0),
                       in_module("core.runs", "read_manifest"), ("ValueError",), text=True),
    "metrics.csv": Reader(table("step,epoch,loss", "1,1,0.5", "2,1,"),
                          folder_of("metrics.csv", n=0), in_module("training.log", "read_metrics"),
                          ("ValueError",), text=True),
    "checkpoint": Reader(checkpoint, file_of("x.pt"),
                         in_module("training.checkpoints", "read_checkpoint"), ("RuntimeError",)),
    "state": Reader(checkpoint, file_of("x.pt"), in_module("core.weights", "load_tensors"),
                    ("ValueError",)),
    "official pickle": Reader(official, file_of("x.pkl"),
                              in_module("stylegan2.checkpoints", "read_official"),
                              ("CheckpointError",)),
    "exported weights": Reader(exported, file_of("x.pt"), in_module("stylegan2.model", "load"),
                               MODEL_ERRORS),
}
if not find_spec("nibabel"):
    del READERS["NIfTI"]
for loader, save, files in (
        ("segmentation.fit", save_segmenter, ("segmenter.json", "unet.safetensors")),
        ("dcgan.model", save_dcgan, ("config.json", "model.safetensors")),
        ("stylegan2.model", save_stylegan, ("config.json", "G_ema.safetensors"))):
    for name in files:
        READERS[f"{loader.partition('.')[0]}/{name}"] = Reader(
            of_model(save, name), run_of(LOADER(loader), save, name), load_run, MODEL_ERRORS,
            text=True)


# --- damage

EXTREMES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63,
            2**64 - 1]
ODD = ["0", "-1", "9" * 20, "9" * 5000, "1e999", "NaN", "null", "true", '""', "[]", "{}", "[[]]",
       '"a"', '{"a": 1}', "[" * 2000 + "]" * 2000, "[" * 100_000, '"\\ud800"', "\u2028", "\0", "\\",
       '"../x.png"', '"/etc/passwd"', '"' + "x" * 70_000 + '"', ",", "\r", '"', "-", "(", "1" * 40]


def damaged(content: bytes, seed: int, text: bool) -> bytes:
    "An input: cut, overwritten, with a piece missing or doubled, or with an odd number or word."
    draw = random.Random(seed)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        size, kind = len(content), draw.randrange(8 if text else 6)
        at = draw.randrange(size) if draw.random() < 0.6 else draw.randrange(min(size, 400))
        width = draw.randrange(1, 64)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            data = bytearray(content)
            for _ in range(1 + draw.randrange(20)):
                data[draw.randrange(size)] = draw.randrange(256)
            content = bytes(data)
        elif kind == 2:
            content = content[:at] + content[at + width :]
        elif kind == 3:
            content = content[: at + width] + content[at:]
        elif kind <= 5:
            bytes_, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
            number = (draw.choice(EXTREMES) % 2 ** (8 * bytes_)).to_bytes(bytes_, order)
            content = content[:at] + number + content[at + bytes_ :]
        else:
            words = rb'"[^"\n]*"|-?\d+(?:\.\d+)?|\w+|[\[\]{},:]'
            if spots := list(re.finditer(words, content[:20_000])):
                spot = draw.choice(spots)
                word = draw.choice(ODD).encode("utf-8", "surrogatepass")
                content = content[: spot.start()] + word + content[spot.end() :]
        if not content:
            break
    return content


class TooSlow(BaseException):
    "An input takes too long."


def try_one(reader: Reader, content: bytes) -> tuple[str, str]:
    "What became of an input: read, refused, or foreign; and what was said."
    def stop(*_):
        raise TooSlow

    with tempfile.TemporaryDirectory() as folder:
        path = reader.put(Path(folder), content)
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(SECONDS)
        try:
            reader.read(path)
            return "read", ""
        except TooSlow:
            return "slow", traceback.format_exc()
        except BaseException as error:
            known = type(error).__name__ in reader.errors and "\n" not in str(error)
            return ("refused", str(error)) if known else ("foreign", traceback.format_exc())
        finally:
            signal.alarm(0)


def work(name: str, seeds: list[int], log):
    "Try inputs of one reader; a line of JSON for each before and after it."
    warnings.simplefilter("ignore")
    os.environ["SYNTH_NB_CACHE"] = tempfile.mkdtemp()
    reader, intact = READERS[name], READERS[name].intact()
    before, message = try_one(reader, intact)
    assert before == "read", (name, message)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    try:
        for seed in seeds:
            log(dict(seed=seed))
            content = damaged(intact, zlib.crc32(name.encode()) + seed, reader.text)
            result, message = try_one(reader, content)
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
            log(dict(seed=seed, result=result, megabytes=peak,
                     message=message if result in ("foreign", "slow") else ""))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        shutil.rmtree(os.environ["SYNTH_NB_CACHE"])


def in_process(name: str, seeds: list[int]) -> list[dict]:
    "What became of each input, in a process of its own that is begun again where it ends early."
    rows = []
    while seeds:
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                work(name, seeds, lambda row: print(json.dumps(row), file=pipe, flush=True))
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            found = [json.loads(line) for line in pipe]
        _, status = os.waitpid(pid, 0)
        rows += [row for row in found if "result" in row]
        if status == 0:
            break
        if not found:
            raise RuntimeError(f"the sound input of {name} cannot be read: status {status}")
        last = found[-1]["seed"]
        rows.append(dict(seed=last, result="killed", megabytes=0, message=f"status {status}"))
        seeds = seeds[seeds.index(last) + 1 :]
    return rows


def stored_seeds() -> dict[str, list[int]]:  # reader → seeds that once failed
    return json.loads(SEEDS.read_text()) if SEEDS.is_file() else {}


def main(inputs: int = 10_000, names=()) -> int:
    "Try so many inputs, and print what became of them. The number of failures."
    names = list(names or READERS)
    total, failures = 0, 0
    print(f"{'reader':28}{'inputs':>8}{'read':>8}{'refused':>9}{'foreign':>9}{'slow':>6}"
          f"{'killed':>8}{'MB':>7}{'seconds':>9}")
    for name in names:
        start, seeds = time.monotonic(), [*range(-(-inputs // len(names)))]
        seeds += stored_seeds().get(name, [])
        rows = in_process(name, list(dict.fromkeys(seeds)))
        count = {kind: sum(row["result"] == kind for row in rows)
                 for kind in ("read", "refused", "foreign", "slow", "killed")}
        peak = max(row["megabytes"] for row in rows)
        print(f"{name:28}{len(rows):8}{count['read']:8}{count['refused']:9}{count['foreign']:9}"
              f"{count['slow']:6}{count['killed']:8}{peak:7.0f}{time.monotonic() - start:9.0f}",
              flush=True)
        bad = [row for row in rows if row["result"] in ("foreign", "slow", "killed")]
        for row in bad[:20]:
            print(f"  seed {row['seed']}: {row['result']}\n{row['message'][-1200:]}", flush=True)
        total, failures = total + len(rows), failures + len(bad)
    print(f"{total} inputs, {failures} failures")
    return failures


def preload():
    "Import what every process needs, once."
    if Path("/dev/shm").is_dir():
        tempfile.tempdir = "/dev/shm"  # nothing here must outlast a loss of power
    for module in ("data", "data.readers.slides", "diffusion.captions", "segmentation.fit",
                   "dcgan.model", "stylegan2.model", "training.checkpoints", "training.log"):
        import_module(f"synth_nb.{module}")
    for module in ("tifffile", "pydicom.pixels", "h5py", "scipy.io", "skimage.filters", "torch"):
        import_module(module)


if __name__ == "__main__":
    count = bool(sys.argv[1:2] and sys.argv[1].isdecimal())
    preload()
    sys.exit(bool(main(int(sys.argv[1]) if count else 10_000, sys.argv[1 + count :])))
