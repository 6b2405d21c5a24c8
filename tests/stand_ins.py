"""What profiles take from elsewhere, made up in its true form: networks, data sets, a tokenizer.

Networks are those of the published configurations in `published/`, with random weights, laid down
as the Hugging Face Hub, TensorFlow and PyTorch cache them; so the code that loads them is the code
that loads the published ones. `small` takes few and narrow layers.
"""

import io
import json
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

PUBLISHED = Path(__file__).parent / "published"
REVISION = "0" * 40
DATA = "Cilem/mixed-histopathology-512"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
CLASSES = ["mucosa", "tumour"]


def published(name: str, **changes) -> dict:
    "A configuration, without what this project noted beside it."
    found = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    return {k: v for k, v in found.items() if k not in ("_source", "_weights")} | changes


@torch.no_grad()
def drawn(make) -> torch.nn.Module:
    "A network with random weights of about the size of trained ones, without the time of its own."
    with torch.device("meta"):
        network = make()
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in network.parameters():
        size = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.02
        tensor.normal_(0, size, generator=generator)
        if tensor.ndim == 1 and tensor.numel() > 1:
            tensor.zero_()
    for module in network.modules():  # scales of normalisations
        if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            module.weight.fill_(1.0)
    for name, buffer in network.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
    return network.eval()


def snapshot(home: Path, name: str) -> Path:
    "Where the Hub's cache has a model's files."
    model = home / "hub" / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / "main").write_text(REVISION)
    folder = model / "snapshots" / REVISION
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def autoencoder(small: bool):
    from diffusers import AutoencoderKL

    narrow = dict(block_out_channels=[32, 32, 32, 32], layers_per_block=1) if small else {}
    config = published("sd-vae-ft-mse", **narrow)
    return drawn(lambda: AutoencoderKL.from_config(config))


def unet(small: bool):
    from diffusers import UNet2DConditionModel

    narrow = dict(block_out_channels=[32, 32, 64, 64], layers_per_block=1) if small else {}
    config = published("sd15-unet", **narrow)
    return drawn(lambda: UNet2DConditionModel.from_config(config))


def clip_config(small: bool):
    from transformers import CLIPConfig

    config = published("clip-vit-large-patch14")
    if small:
        config["text_config"]["num_hidden_layers"] = 1
        config["vision_config"]["num_hidden_layers"] = 1
    return CLIPConfig(**config)


def tokenizer():
    "49408 pieces, as CLIP's has them: all bytes, pairs of bytes, and the two ends."
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    ended = [letter + "</w>" for letter in letters]
    count = 49408 - len(letters) - len(ended) - 2
    pairs = [pair for pair, _ in zip(product(letters, letters), range(count), strict=False)]
    pieces = [*letters, *ended, *("".join(pair) for pair in pairs)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def clip(home: Path, name: str, small: bool):
    from transformers import CLIPModel

    folder = snapshot(home, name)
    drawn(lambda: CLIPModel(clip_config(small))).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(published("clip-preprocessor")))


def pipeline(home: Path, name: str, small: bool):
    "Stable Diffusion 1.5, without its safety checker."
    from transformers import CLIPTextModel

    folder = snapshot(home, name)
    autoencoder(small).save_pretrained(folder / "vae")
    unet(small).save_pretrained(folder / "unet")
    config = clip_config(small).text_config
    drawn(lambda: CLIPTextModel(config)).save_pretrained(folder / "text_encoder")
    tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = json.dumps(published("sd15-scheduler"))
    (folder / "scheduler" / "scheduler_config.json").write_text(scheduler)
    parts = dict(vae=["diffusers", "AutoencoderKL"], unet=["diffusers", "UNet2DConditionModel"],
                 text_encoder=["transformers", "CLIPTextModel"],
                 tokenizer=["transformers", "CLIPTokenizer"],
                 scheduler=["diffusers", "PNDMScheduler"], safety_checker=[None, None],
                 feature_extractor=[None, None])
    index = dict(_class_name="StableDiffusionPipeline", requires_safety_checker=False) | parts
    (folder / "model_index.json").write_text(json.dumps(index))


def path_foundation(home: Path, name: str, small: bool):
    "A SavedModel with Path Foundation's signature: 224 pixels in [0, 1] to 384 numbers."
    from synth_nb.embedders.savedmodel import start_tensorflow

    tf = start_tensorflow("this stand-in")
    rng = np.random.default_rng(0)
    module = tf.Module()
    module.patch = tf.Variable(rng.normal(0, 0.05, (16, 16, 3, 384)).astype("float32"))
    module.mix = tf.Variable(rng.normal(0, 0.05, (384, 384)).astype("float32"))

    def network(inputs):
        x = tf.nn.conv2d(2 * inputs - 1, module.patch, 16, "VALID")
        x = tf.reshape(x, (-1, 196, 384))
        return tf.reduce_mean(tf.tanh(x @ module.mix), 1)

    spec = tf.TensorSpec((None, 224, 224, 3), "float32", name="inputs")
    module.run = tf.function(network, [spec], autograph=False)
    run = module.run.get_concrete_function()
    tf.saved_model.save(module, str(snapshot(home, name)), {"serving_default": run})


def inception(folder: Path):
    "The file of torch-fidelity's network where PyTorch caches it, with other weights."
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Net

    path = folder / "hub" / "checkpoints" / INCEPTION
    if path.is_file():
        return
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    with patch("torch.load", return_value={}), patch.object(Net, "load_state_dict"):
        network = Net("inception", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), path)


def hub_network(home: Path, name: str, small: bool):
    "A network of the Hub by its name."
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    if folder.is_dir():
        return
    if "clip" in name:
        clip(home, name, small)
    elif "vae" in name:
        autoencoder(small).save_pretrained(snapshot(home, name))
    elif name == "google/path-foundation":
        path_foundation(home, name, small)
    else:
        pipeline(home, name, small)


# data


def tissue(number: int, size: int = 512) -> np.ndarray:  # (size, size, 3) uint8
    "Stained tissue: a part of scikit-image's section, another for each number."
    from skimage.data import immunohistochemistry

    section = immunohistochemistry()
    rng = np.random.default_rng(number)
    side = int(rng.integers(128, 256))
    y, x = rng.integers(0, 512 - side, 2)
    part = Image.fromarray(section[y : y + side, x : x + side])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def hub_data(home: Path, name: str, counts: dict[str, int]):
    "Patches of 512 pixels in two classes, as `datasets` caches what it has downloaded."
    import datasets
    from datasets.arrow_writer import ArrowWriter

    short = name.split("/")[-1]
    folder = home / "datasets" / name.replace("/", "___") / "default" / "0.0.0" / REVISION
    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    info = datasets.DatasetInfo(features=features, builder_name="parquet", dataset_name=short,
                                config_name="default", version="0.0.0",
                                splits=datasets.SplitDict())
    number = 0
    for part, count in counts.items():
        with ArrowWriter(path=str(folder / f"{short}-{part}.arrow"), features=features) as writer:
            for label in range(count):
                image = dict(bytes=encoded(tissue(number)), path=None)
                writer.write(dict(image=image, label=label % 2))
                number += 1
            rows, size = writer.finalize()
        info.splits.add(datasets.SplitInfo(part, size, rows, dataset_name=short))
    info.write_to_directory(str(folder))


def slides(folder: Path):
    "Five slides at 0.25 µm per pixel, as CAMELYON16's, each with 1024 pixels of tissue."
    import tifffile

    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    for number in range(5):
        pixels = np.full((1024, 1280, 3), 242, np.uint8)
        pixels[:, :1024] = tissue(number, 1024)
        with tifffile.TiffWriter(folder / f"normal_{number:03}.tif", bigtiff=True) as f:
            for level in range(2):
                size = dict(resolution=(4e4 / 2**level,) * 2, resolutionunit="CENTIMETER")
                f.write(pixels[:: 2**level, :: 2**level], tile=(256, 256), photometric="rgb",
                        compression="zlib", subfiletype=level, **size)


def volume(path: Path, sections: int, repeats: int = 1):
    "Sections of 1024x768 pixels, or several times that, as EPFL's hippocampus, or their masks."
    import tifffile

    from synth_nb.data.phantoms.em import em_phantom

    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = [em_phantom(768, 1024, 0, number) for number in range(sections)]
    side = 1 if "groundtruth" in path.name else 0
    stack = np.stack([pair[side] for pair in pairs])
    tifffile.imwrite(path, np.tile(stack, (1, repeats, repeats)))


def heads(folder: Path, count: int):
    "Grey slices of 512 pixels as JPEG files."
    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    for number in range(count):
        grey = tissue(number)[..., 0]
        (folder / f"slice_{number:04}.jpg").write_bytes(encoded(grey, "JPEG"))


def letters(folder: Path, count: int):
    "EMNIST's byclass in its own files, rows and columns exchanged, so many images of a class."
    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, each in dict(train=count, test=max(count // 4, 2)).items():
        labels = np.repeat(np.arange(62, dtype=np.uint8), each)
        images = np.zeros((len(labels), 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            left = int(rng.integers(10, 14))
            image[4:24, left : left + 4] = 255  # a tall stroke, and a bar whose place tells them
            image[4 + label % 20, 5 : 8 + label // 4] = 255
        head = np.array([2051, len(images), 28, 28], ">i4").tobytes()
        stem = folder / f"emnist-byclass-{part}"
        Path(f"{stem}-images-idx3-ubyte").write_bytes(head + images.transpose(0, 2, 1).tobytes())
        head = np.array([2049, len(labels)], ">i4").tobytes()
        Path(f"{stem}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
