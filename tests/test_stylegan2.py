"StyleGAN2's operators and networks against the published definition, by numbers."

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from synth_nb.stylegan2.networks import Discriminator, Generator
from synth_nb.stylegan2.ops import (
    biased_leaky_relu,
    downsample,
    minibatch_std,
    modulated_conv,
    normalize_second_moment,
    resample,
    resampled_conv,
    smooth,
    upsample,
)

FOLDER = Path(__file__).parent / "reference"


def stored(name: str) -> dict:
    "Arrays of a reference file as tensors, texts as they are."
    with np.load(FOLDER / name) as file:
        arrays = {key: file[key] for key in file.files}
    return {k: v if v.dtype.kind == "U" else torch.from_numpy(v) for k, v in arrays.items()}


def near(made, expected, tolerance=1e-5):
    "Within a share of the largest value."
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(scope="module")
def ops() -> dict:
    return stored("stylegan2_ops.npz")


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["rows", "pixels"])
def x(request, ops):
    return ops["x"].contiguous(memory_format=request.param)


def test_resampling(ops, x):
    f, even = ops["f"], x[:, :, :8]
    near(smooth(x, f), ops["filter2d"])
    near(upsample(x, f), ops["upsample2d"])
    near(downsample(even, f), ops["downsample2d"])
    near(resample(x, f, up=2, down=3, padding=(2, -1, 3, -2), gain=1.7), ops["updown_asym"])


def test_resampled_convolution(ops, x):
    f, even = ops["f"], x[:, :, :8]
    near(resampled_conv(x, ops["w"], f, up=2, padding=1, flip=True), ops["conv_up2"])
    near(resampled_conv(x, ops["w1"], f, up=2), ops["conv1_up2"])
    near(resampled_conv(even, ops["w"], f, down=2, padding=1), ops["conv_down2"])
    near(resampled_conv(even, ops["w1"], f, down=2), ops["conv1_down2"])


def test_modulated_convolution(ops, x):
    s, w, f = ops["styles"], ops["w"], ops["f"]
    near(modulated_conv(x, w, s, None, ops["noise"], padding=1), ops["modconv"])
    up = modulated_conv(x, w, s, f, ops["noise_up"], 2, 1, flip=True)
    near(up, ops["modconv_up"])
    near(modulated_conv(x, ops["w1"], s, demodulate=False), ops["modconv_nodemod"])


def test_activation_and_normalisation(ops, x):
    near(biased_leaky_relu(x, ops["bias"]), ops["bias_lrelu"])
    near(biased_leaky_relu(x, ops["bias"], gain=2, clamp=1.5), ops["bias_lrelu_clamp"])
    near(normalize_second_moment(x.flatten(1)), ops["normalize_2nd_moment"])
    near(minibatch_std(ops["x6"], 3), ops["mbstd3"])
    near(minibatch_std(ops["x6"], 2, 2), ops["mbstd2_c2"])


def part(file: dict, word: str) -> dict:
    return {k[len(word) :]: v for k, v in file.items() if k.startswith(word)}


@pytest.fixture(scope="module")
def case():
    "Networks with the reference's weights, its inputs and its outputs."
    file = stored("stylegan2_res32_rgb.npz")
    given = json.loads(str(file["config"]))
    size = dict(channel_base=given["channel_base"], channel_max=given["channel_max"])
    image = (given["res"], given["img_channels"])
    dims = (given["z_dim"], given["c_dim"], given["w_dim"])
    G = Generator(*dims, *image, dict(num_layers=given["map_depth"]), size).eval()
    head = dict(mbstd_group_size=given["mbstd"])
    D = Discriminator(dims[1], *image, **size, epilogue_kwargs=head)
    G.load_state_dict(part(file, "G/"), strict=True)
    D.load_state_dict(part(file, "D/"), strict=True)
    return G, D.eval(), part(file, "in/"), part(file, "out/")


def test_styles(case):
    G, _, given, out = case
    z, c = given["z"], given["c"]
    with torch.no_grad():
        found = dict(
            ws=G.mapping(z, c),
            ws_psi07=G.mapping(z, c, truncation_psi=0.7),
            ws_psi05_cut4=G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=4),
        )
    for name, ws in found.items():
        assert (ws - out[name]).abs().max() <= 1e-6, name


def test_images(case):
    G, _, given, out = case
    z, ws = given["z"], out["ws"]
    mixed = torch.cat([ws[:, :4], ws.roll(-1, 0)[:, 4:]], 1)
    with torch.no_grad():
        near(G(z, noise_mode="const"), out["img_const"])
        near(G(z, noise_mode="none"), out["img_none"])
        near(G(z, truncation_psi=0.7, noise_mode="const"), out["img_psi07"])
        cut = dict(truncation_psi=0.5, truncation_cutoff=4)
        near(G(z, **cut, noise_mode="const"), out["img_psi05_cut4"])
        near(G.synthesis(mixed, noise_mode="const"), out["img_mix4"])
        u8 = (G(z, noise_mode="const") * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert (u8.permute(0, 2, 3, 1).int() - out["u8_img_const"].int()).abs().max() <= 1


def test_answers(case):
    _, D, given, out = case
    with torch.no_grad():
        near(D(given["x"], given["c"]), out["logits_x"])
        near(D(out["img_const"]), out["logits_img_const"])
        near(D(given["x"][:2]), out["logits_x2"])


def norms(network, loss, names) -> torch.Tensor:
    "Gradient norm of each parameter, 0 where it has none."
    found = dict(network.named_parameters())
    assert list(found) == list(names)
    grads = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
    return torch.stack([torch.zeros(()) if g is None else g.norm() for g in grads]).double()


def test_gradients_of_both_losses(case):
    G, D, given, out = case
    fake = G(given["z"], noise_mode="const")
    loss = F.softplus(-D(fake)).mean()
    near(loss.detach(), out["loss_Gmain"])
    made = norms(G, loss, out["names_G"])
    torch.testing.assert_close(made, out["gradnorm_Gmain"], rtol=1e-4, atol=1e-8)
    loss = (F.softplus(D(fake.detach())) + F.softplus(-D(given["x"]))).mean()
    near(loss.detach(), out["loss_Dmain"])
    made = norms(D, loss, out["names_D"])
    torch.testing.assert_close(made, out["gradnorm_Dmain"], rtol=1e-4, atol=1e-8)


def test_gradient_penalty(case):
    _, D, given, out = case
    x = given["x"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    near(grad.detach(), out["r1_grad_x"])
    r1 = grad.square().sum((1, 2, 3))
    near(r1.detach(), out["r1"])
    made = norms(D, r1.mean(), out["names_D"])
    torch.testing.assert_close(made, out["gradnorm_r1"], rtol=1e-4, atol=1e-8)


def test_path_lengths(case):
    G, _, given, out = case
    ws = G.mapping(given["z"])
    image = G.synthesis(ws, noise_mode="const")
    (grad,) = torch.autograd.grad((image * given["pl_noise"]).sum(), ws, create_graph=True)
    lengths = grad.square().sum(2).mean(1).sqrt()
    near(lengths.detach(), out["pl_lengths"])
    made = norms(G, lengths.square().mean(), out["names_G"])
    torch.testing.assert_close(made, out["gradnorm_pl"], rtol=1e-4, atol=1e-8)


def test_average_style(case):
    G, _, given, out = case
    before = G.mapping.w_avg.clone()
    G.mapping.train()(given["z"])
    G.mapping.eval()
    assert (G.mapping.w_avg - out["w_avg_after_1"]).abs().max() <= 1e-6
    G.mapping.w_avg.copy_(before)


def listed() -> dict[str, dict[str, tuple]]:
    "Published names and shapes at 64 pixels: heading → name → shape; the first is complete."
    found, heading = {}, ""
    for line in (FOLDER / "stylegan2_state_dicts_res64.txt").read_text().splitlines():
        if line.startswith("#"):
            heading = line[2:]
            found[heading] = {}
        elif line:
            name, shape, *_ = line.split("\t")
            found[heading][name] = tuple(json.loads(shape))
    return found


@pytest.mark.parametrize("number", range(3), ids=["auto", "classes", "stylegan2"])
def test_published_names_and_shapes(number):
    (first, same), *_ = tables = list(listed().items())
    heading, changes = tables[number]
    classes = int(re.search(r"c_dim=(\d+)", heading + first)[1])
    base, layers = (32768, 8) if "stylegan2" in heading else (16384, 2)
    with torch.device("meta"):
        G = Generator(512, classes, 512, 64, 3, dict(num_layers=layers), dict(channel_base=base))
        D = Discriminator(classes, 64, 3, channel_base=base)
    parts = [(f"{w}.{k}", v) for w, n in (("G", G), ("D", D)) for k, v in n.state_dict().items()]
    assert {k: tuple(v.shape) for k, v in parts} == same | changes
    counts = [int(n) for n in re.findall(r"params G (\d+) D (\d+)", heading)[0]]
    assert [sum(p.numel() for p in n.parameters()) for n in (G, D)] == counts
    assert f"num_ws={G.num_ws};" in heading
