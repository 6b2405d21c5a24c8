"""What small files cost: each is opened in a process of its own, whose memory is limited.

`python tests/bills.py FOLDER` prints a line of JSON for each case: what was said, the peak of
memory above what the process began with, and the processor's seconds; tests/test_budgets.py
reads them.
"""

import io
import json
import os
import resource
import struct
import sys
import warnings
import zipfile
import zlib
from collections import OrderedDict
from functools import partial
from pathlib import Path
from zlib import crc32

import h5py
import numpy as np
import pydicom.pixels  # noqa: F401 (else each case imports it)
import tifffile  # noqa: F401
import torch
from PIL import Image
from test_budgets import dicom, encoded, fill, opened, zipped

from synth_nb.core.runs import load_model
from synth_nb.segmentation.fit import Segmenter, save
from synth_nb.segmentation.networks import ResidualUNet
from synth_nb.stylegan2.checkpoints import read_official
from synth_nb.stylegan2.model import load

MB = 2**20


def measured(function, seconds: int = 30, megabytes: int = 3000) -> dict:
    """Call a function in a process of its own; what it returns or raises, in a dictionary.

    It is ended after so many seconds of the processor.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + megabytes * MB
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        try:
            found = dict(error="", said=str(function()))
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            found = dict(error=kinds[0], kinds=kinds, said=str(error)[:500])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(write, json.dumps(found | dict(megabytes=peak / 1024)).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read()
    _, status, used = os.wait4(pid, 0)
    ended = dict(error="killed", said=f"signal {status & 127}", megabytes=float("inf"))
    return (json.loads(text) if text else ended) | dict(seconds=used.ru_utime + used.ru_stime)


def official(folder, state: bytes) -> Path:
    "A pickle of the official form: a dictionary with a generator that holds this."
    path = folder / "network.pkl"
    head = b"\x80\x04}\x8c\x05G_ema"
    path.write_bytes(head + state + b"s.")
    return path


def generator(kwargs: bytes) -> bytes:
    "A generator whose arguments are what these steps leave on the stack."
    name = b"\x8c\x17torch_utils.persistence\x8c\x1b_reconstruct_persistent_obj\x93"
    return (name + b"}(\x8c\x0aclass_name\x8c\x09Generator\x8c\x05state}\x8c\x0c_init_kwargs"
            + kwargs + b"su\x85R")


def doubling_pickle(folder):
    steps, n = b"]\x940", 0
    for _ in range(40):
        steps += b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x940"
        n += 1
    return official(folder, steps + generator(b"}\x8c\x01a" + b"h" + bytes([n]) + b"s"))


def self_holding_pickle(folder):
    return official(folder, b"]\x94h\x00a0" + generator(b"}\x8c\x01ah\x00s"))


def far_memo_pickle(folder):
    return official(folder, b"Nr\xff\xff\xff\x7f")


def lists_pickle(folder):
    return official(folder, b"]" * 2_100_000)


def repeated_bytes_pickle(folder):
    "A text of a megabyte, encoded ten thousand times into a list."
    text = b"X" + MB.to_bytes(4, "little") + b"a" * MB
    name = b"\x8c\x07_codecs\x8c\x06encode\x93"
    once = b"h\x00h\x01h\x02\x86R"
    steps = name + b"\x94" + text + b"\x94\x8c\x06latin1\x94000]("
    return official(folder, steps + 10_000 * once + b"e")


def wide_tensor_pickle(folder):
    "A tensor of 3 GiB that has one number."
    old = dict(_use_new_zipfile_serialization=False)
    torch.save(torch.ones(1).storage(), storage := io.BytesIO(), **old)
    data = storage.getvalue()
    load_name = b"\x8c\x0dtorch.storage\x8c\x10_load_from_bytes\x93"
    make_name = b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93"
    size = len(data).to_bytes(4, "little")
    tensor = (make_name + b"(" + load_name + b"B" + size + data + b"\x85R"
              + b"K\x00(J" + (3 * 2**28).to_bytes(4, "little") + b"t(K\x00t\x89" + b"}tR")
    return official(folder, generator(b"}\x8c\x01a" + tensor + b"s"))


def exported_stride_0(folder):
    weights = OrderedDict(a=torch.ones(1).expand(3 * 2**28))
    torch.save(dict(G_ema=dict(init_kwargs={}, state_dict=weights)), folder / "a.pt")
    return folder / "a.pt"


def zipped_weights(folder):
    "Exported weights whose numbers are packed: a gigabyte of zeros in a megabyte."
    torch.save(dict(a=torch.zeros(2**20)), folder / "b.pt")
    with (zipfile.ZipFile(folder / "b.pt") as sound,
          zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed):
        for name in sound.namelist():
            content = sound.read(name)
            packed.writestr(name, content * 200 if name.endswith("data/0") else content)
    return folder / "a.pt"


def run_folder(folder, **changes):
    "A segmenter, and changes to its configuration."
    (model := folder / "model").mkdir(parents=True)
    save(Segmenter(ResidualUNet(widths=(4, 8))), model)
    about = json.loads((model / "segmenter.json").read_text())
    (model / "segmenter.json").write_text(json.dumps(about | changes))
    (folder / "manifest.json").write_text(json.dumps(dict(loader="synth_nb.segmentation.fit:load")))
    return folder


def labels_of_gigabytes(folder):
    images = np.random.default_rng(0).integers(0, 255, (4, 16, 16), dtype=np.uint8)
    np.savez_compressed(folder / "a.npz", images=images)
    with zipfile.ZipFile(folder / "a.npz", "a", zipfile.ZIP_DEFLATED) as file:
        with file.open("labels.npy", "w", force_zip64=True) as member:
            shape = dict(descr="|u1", fortran_order=False, shape=(2**31,))
            np.lib.format.write_array_header_1_0(member, shape)
            for _ in range(256):
                member.write(bytes(2**23))
    return folder / "a.npz"


def wide_table(folder):
    with open(fill(folder / "in") / "dataset.json", "w") as file:
        file.write('{"labels": [')
        for _ in range(200):
            file.write('["00000/img00000000.png", 0], ' * (MB // 29))
        file.write("null]}")
    return folder / "in"


def bomb(folder):
    (folder / "a.zip").write_bytes(zipped({f"{i}.png": bytes(400 * MB) for i in range(4)}))
    return folder / "a.zip"


def table_in_a_zip(folder):
    members = {f"{i}.png": encoded(pixels=np.full((16, 16, 3), 9 * i, np.uint8)) for i in range(4)}
    (folder / "a.zip").write_bytes(zipped(members | {"dataset.json": b"[" + b"[]," * 60 * MB}))
    return folder / "a.zip"


def sparse(folder):
    "An image of a terabyte that takes no room on the disk."
    with open(fill(folder / "in") / "huge.png", "wb") as file:
        file.write(encoded())
        file.truncate(2**40)
    return folder / "in"


def many_pages(folder):
    "An array with a ten million pages, none of which is on the disk."
    with open(fill(folder / "in") / "huge.npy", "wb") as file:
        shape = dict(descr="|u1", fortran_order=False, shape=(10**7, 16, 16))
        np.lib.format.write_array_header_1_0(file, shape)
        file.truncate(file.tell() + 256 * 10**7)
    return folder / "in"


def hdf5(folder):
    with h5py.File(fill(folder / "in") / "huge.h5", "w") as file:
        file.create_dataset("x", (10**9, 16, 16), "u1", chunks=(1, 16, 16))
    with h5py.File(folder / "in/outside.h5", "w") as file:
        file.create_dataset("x", (2, 16, 16), "u1", external=[("/etc/passwd", 0, 512)])
    return folder / "in"


def frames(n):
    return lambda folder: fill(folder / "in", **{"a.dcm": dicom(frames=n)})


def many_scans(folder):
    "A JPEG whose last scan is there a hundred thousand times: hours of decoding, 4 MB."
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8000, 8000), np.uint8)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return fill(folder / "in", **{"huge.jpg": content[:-2] + 10**5 * scan + content[-2:]})


def many_pieces(folder):
    "A PNG of 36 MB with three million pieces, each of which Pillow would keep."
    sound, piece = encoded(), struct.pack(">I", 0) + b"abCd" + struct.pack(">I", crc32(b"abCd"))
    return fill(folder / "in", **{"huge.png": sound[:33] + 3 * 10**6 * piece + sound[33:]})


def deep_colours(folder):
    "A PNG of half a megabyte with 88 million colours of 16 bits."
    def piece(kind, content):
        head, check = struct.pack(">I", len(content)), struct.pack(">I", crc32(kind + content))
        return head + kind + content + check

    packer, row, n = zlib.compressobj(9), bytes(1 + 6 * 9400), 9400
    rows = b"".join(packer.compress(row) for _ in range(n)) + packer.flush()
    header = piece(b"IHDR", struct.pack(">IIBBBBB", n, n, 16, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + piece(b"IDAT", rows) + piece(b"IEND", b"")
    return fill(folder / "in", **{"huge.png": content})


def skipped(path):
    ds = opened(path)
    return f"{len(ds)} read; " + "; ".join(f"{key}: {why}" for key, why in ds.skipped)


CASES = {  # makes the file, opens it
    "a pickle of doubling lists": (doubling_pickle, read_official),
    "a pickle that holds itself": (self_holding_pickle, read_official),
    "a pickle with a far memo": (far_memo_pickle, read_official),
    "a pickle of empty lists": (lists_pickle, read_official),
    "a pickle that repeats its bytes": (repeated_bytes_pickle, read_official),
    "a pickle with a tensor of stride 0": (wide_tensor_pickle, read_official),
    "exported weights of stride 0": (exported_stride_0, load),
    "exported weights in a zip that grows": (zipped_weights, load),
    "a segmenter of width 20,000": (lambda f: run_folder(f, widths=[20_000, 20_000]), load_model),
    "a segmenter of 100,000 levels": (lambda f: run_folder(f, widths=[8] * 10**5), load_model),
    "2 GiB of labels for 4 images": (labels_of_gigabytes, skipped),
    "200 MiB of dataset.json": (wide_table, skipped),
    "DICOM of 100,000 frames": (frames(10**5), skipped),
    "DICOM of 2^31 frames": (frames(2**31), skipped),
    "a zip that grows": (bomb, skipped),
    "a table in a zip that grows": (table_in_a_zip, skipped),
    "an image of a terabyte": (sparse, skipped),
    "an array of 10^7 pages": (many_pages, skipped),
    "HDF5 of 10^9 pages, and one outside of its file": (hdf5, skipped),
    "a JPEG of 100,000 scans": (many_scans, skipped),
    "a PNG of 3,000,000 pieces": (many_pieces, skipped),
    "88 million colours of 16 bits": (deep_colours, skipped),
}


def main(folder: Path):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for number, (name, (make, read)) in enumerate(CASES.items()):
        (here := folder / str(number)).mkdir(parents=True)
        path = make(here)
        print(json.dumps(dict(case=name) | measured(partial(read, path))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
