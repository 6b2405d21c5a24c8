"StyleGAN2's operators and networks against the published definition, by numbers."

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from synth_nb.core.testing import assert_near
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


def norms_near(actual, expected):
    """Gradient norms of the parameters, each by itself, since they differ by powers of ten; what
    is a millionth of the largest is the rounding of a sum of those."""
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6 * expected.max().item())


@pytest.fixture(scope="module")
def ops() -> dict:
    return stored("stylegan2_ops.npz")


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["rows", "pixels"])
def x(request, ops):
    return ops["x"].contiguous(memory_format=request.param)


def test_resampling(ops, x):
    f, even = ops["f"], x[:, :, :8]
    assert_near(smooth(x, f), ops["filter2d"])
    assert_near(upsample(x, f), ops["upsample2d"])
    assert_near(downsample(even, f), ops["downsample2d"])
    assert_near(resample(x, f, up=2, down=3, padding=(2, -1, 3, -2), gain=1.7), ops["updown_asym"])


def test_resampled_convolution(ops, x):
    f, even = ops["f"], x[:, :, :8]
    assert_near(resampled_conv(x, ops["w"], f, up=2, padding=1, flip=True), ops["conv_up2"])
    assert_near(resampled_conv(x, ops["w1"], f, up=2), ops["conv1_up2"])
    assert_near(resampled_conv(even, ops["w"], f, down=2, padding=1), ops["conv_down2"])
    assert_near(resampled_conv(even, ops["w1"], f, down=2), ops["conv1_down2"])


def test_modulated_convolution(ops, x):
    s, w, f = ops["styles"], ops["w"], ops["f"]
    assert_near(modulated_conv(x, w, s, None, ops["noise"], padding=1), ops["modconv"])
    up = modulated_conv(x, w, s, f, ops["noise_up"], 2, 1, flip=True)
    assert_near(up, ops["modconv_up"])
    assert_near(modulated_conv(x, ops["w1"], s, demodulate=False), ops["modconv_nodemod"])


def test_activation_and_normalisation(ops, x):
    assert_near(biased_leaky_relu(x, ops["bias"]), ops["bias_lrelu"])
    assert_near(biased_leaky_relu(x, ops["bias"], gain=2, clamp=1.5), ops["bias_lrelu_clamp"])
    assert_near(normalize_second_moment(x.flatten(1)), ops["normalize_2nd_moment"])
    assert_near(minibatch_std(ops["x6"], 3), ops["mbstd3"])
    assert_near(minibatch_std(ops["x6"], 2, 2), ops["mbstd2_c2"])


def part(file: dict, word: str) -> dict:
    return {k[len(word) :]: v for k, v in file.items() if k.startswith(word)}


@pytest.fixture(scope="module")
def case():
    "Networks with the reference's weights, its inputs and its outputs."
    file = stored("stylegan2_res32_rgb.npz")
    inputs = json.loads(str(file["config"]))
    size = dict(channel_base=inputs["channel_base"], channel_max=inputs["channel_max"])
    image = (inputs["res"], inputs["img_channels"])
    dims = (inputs["z_dim"], inputs["c_dim"], inputs["w_dim"])
    G = Generator(*dims, *image, dict(num_layers=inputs["map_depth"]), size).eval()
    head = dict(mbstd_group_size=inputs["mbstd"])
    D = Discriminator(dims[1], *image, **size, epilogue_kwargs=head)
    G.load_state_dict(part(file, "G/"), strict=True)
    D.load_state_dict(part(file, "D/"), strict=True)
    return G, D.eval(), part(file, "in/"), part(file, "out/")


def test_styles(case):
    G, _, inputs, out = case
    z, c = inputs["z"], inputs["c"]
    with torch.no_grad():
        found = dict(
            ws=G.mapping(z, c),
            ws_psi07=G.mapping(z, c, truncation_psi=0.7),
            ws_psi05_cut4=G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=4),
        )
    for name, ws in found.items():
        assert_near(ws, out[name], rel=1e-5)


def test_images(case):
    G, _, inputs, out = case
    z, ws = inputs["z"], out["ws"]
    mixed = torch.cat([ws[:, :4], ws.roll(-1, 0)[:, 4:]], 1)
    with torch.no_grad():
        assert_near(G(z, noise_mode="const"), out["img_const"])
        assert_near(G(z, noise_mode="none"), out["img_none"])
        assert_near(G(z, truncation_psi=0.7, noise_mode="const"), out["img_psi07"])
        cut = dict(truncation_psi=0.5, truncation_cutoff=4)
        assert_near(G(z, **cut, noise_mode="const"), out["img_psi05_cut4"])
        assert_near(G.synthesis(mixed, noise_mode="const"), out["img_mix4"])
        u8 = (G(z, noise_mode="const") * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert (u8.permute(0, 2, 3, 1).int() - out["u8_img_const"].int()).abs().max() <= 1


def test_answers(case):
    _, D, inputs, out = case
    with torch.no_grad():
        assert_near(D(inputs["x"], inputs["c"]), out["logits_x"])
        assert_near(D(out["img_const"]), out["logits_img_const"])
        assert_near(D(inputs["x"][:2]), out["logits_x2"])


def norms(network, loss, names) -> torch.Tensor:
    "Gradient norm of each parameter, 0 where it has none."
    found = dict(network.named_parameters())
    assert list(found) == list(names)
    grads = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
    return torch.stack([torch.zeros(()) if g is None else g.norm() for g in grads]).double()


def test_gradients_of_both_losses(case):
    G, D, inputs, out = case
    fake = G(inputs["z"], noise_mode="const")
    loss = F.softplus(-D(fake)).mean()
    assert_near(loss.detach(), out["loss_Gmain"])
    found_norms = norms(G, loss, out["names_G"])
    norms_near(found_norms, out["gradnorm_Gmain"])
    loss = (F.softplus(D(fake.detach())) + F.softplus(-D(inputs["x"]))).mean()
    assert_near(loss.detach(), out["loss_Dmain"])
    found_norms = norms(D, loss, out["names_D"])
    norms_near(found_norms, out["gradnorm_Dmain"])


def test_gradient_penalty(case):
    _, D, inputs, out = case
    x = inputs["x"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    assert_near(grad.detach(), out["r1_grad_x"])
    r1 = grad.square().sum((1, 2, 3))
    assert_near(r1.detach(), out["r1"])
    found_norms = norms(D, r1.mean(), out["names_D"])
    norms_near(found_norms, out["gradnorm_r1"])


def test_path_lengths(case):
    G, _, inputs, out = case
    ws = G.mapping(inputs["z"])
    image = G.synthesis(ws, noise_mode="const")
    (grad,) = torch.autograd.grad((image * inputs["pl_noise"]).sum(), ws, create_graph=True)
    lengths = grad.square().sum(2).mean(1).sqrt()
    # a pre-activation near 0 that rounding turns over makes a length jump by 2e-4
    assert_near(lengths.detach(), out["pl_lengths"], rel=1e-3)
    found_norms = norms(G, lengths.square().mean(), out["names_G"])
    norms_near(found_norms, out["gradnorm_pl"])


def test_average_style(case):
    G, _, inputs, out = case
    before = G.mapping.w_avg.clone()
    G.mapping.train()(inputs["z"])
    G.mapping.eval()
    assert_near(G.mapping.w_avg, out["w_avg_after_1"], rel=1e-5)
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


SMALL = dict(channel_base=128, channel_max=8)


def pair(resolution=16, channels=1, classes=3, architecture=("skip", "resnet"), **options):
    "A small generator and discriminator whose biases and strengths are not at their start."
    torch.manual_seed(0)
    words = SMALL | options
    own = [words | dict(architecture=a) for a in architecture]
    G = Generator(6, classes, 5, resolution, channels, dict(num_layers=2), own[0])
    D = Discriminator(classes, resolution, channels, **own[1])
    with torch.no_grad():
        for network in (G, D):
            for value in network.parameters():
                if value.ndim < 2:
                    value.add_(0.3 * torch.randn_like(value))
    return G.eval(), D.eval()


def filtered(x, taps, before, after):
    "Zeros around an image, then the separable filter."
    kernel = torch.tensor(taps) / sum(taps)
    kernel = (kernel[:, None] * kernel).flip(0, 1).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, [before, after] * 2), kernel, groups=x.shape[1])


def activated(layer, x, gain=1.0):
    "Bias, leaky ReLU and the clamp, where the layer has one."
    x = F.leaky_relu(x + layer.bias[:, None, None], 0.2) * 2**0.5 * gain
    return x if layer.clamp is None else x.clamp(-layer.clamp * gain, layer.clamp * gain)


def point(layer, x):
    "A convolution of single pixels, with weights at the scale they are used at."
    return F.conv2d(x, layer.weight / layer.weight[0].numel() ** 0.5)


def conv(layer, x, gain=1.0, halve=False):
    "A convolution of 3 pixels; of an image that was filtered with a border where it halves."
    weight = layer.weight / layer.weight[0].numel() ** 0.5
    x = F.conv2d(x, weight, stride=2 if halve else 1, padding=0 if halve else 1)
    return activated(layer, x, gain)


def by_definition(D, image, c):
    "The answer of a `resnet` discriminator with classes, step by step as the papers define it."
    x, taps = image, [1.0, 3, 3, 1]
    for res in D.block_resolutions:
        block = getattr(D, f"b{res}")
        if hasattr(block, "fromrgb"):
            x = activated(block.fromrgb, point(block.fromrgb, x))
        y = point(block.skip, filtered(x, taps, 1, 1)[..., ::2, ::2]) * 0.5**0.5
        x = filtered(conv(block.conv0, x), taps, 2, 2)
        x = conv(block.conv1, x, 0.5**0.5, halve=True) + y
    groups = x.unflatten(0, (min(4, len(x)), -1))
    std = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3)).repeat(len(groups))
    x = torch.cat([x, std[:, None, None, None].expand(-1, 1, 4, 4)], 1)
    x = conv(D.b4.conv, x).flatten(1)
    fc, out = D.b4.fc, D.b4.out
    x = F.leaky_relu(F.linear(x, fc.weight / fc.weight.shape[1] ** 0.5, fc.bias), 0.2) * 2**0.5
    x = F.linear(x, out.weight / out.weight.shape[1] ** 0.5, out.bias)
    embed = D.mapping.embed
    y = F.linear(c, embed.weight / embed.weight.shape[1] ** 0.5, embed.bias)
    y = y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(D.mapping.num_layers):
        layer = getattr(D.mapping, f"fc{i}")
        scale = 0.01 / layer.weight.shape[1] ** 0.5
        y = F.leaky_relu(F.linear(y, layer.weight * scale, layer.bias * 0.01), 0.2) * 2**0.5
    return (x * y).sum(1, keepdim=True) / y.shape[1] ** 0.5


@pytest.mark.parametrize("clamp", [None, 0.4])
def test_discriminator_with_classes_by_definition(clamp):
    _, D = pair(32, channels=2, conv_clamp=clamp)
    image, c = torch.randn(8, 2, 32, 32), torch.eye(3)[torch.arange(8) % 3]
    with torch.no_grad():
        assert_near(D(image, c), by_definition(D, image, c))


def enlarged(x, taps, border=0):
    "Zeros between pixels, then the filter."
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[..., ::2, ::2] = x
    k = len(taps)
    return 4 * filtered(wide, taps, border + (k + 1) // 2, border + (k - 2) // 2)


def styled(layer, x, w, demodulate=True):
    "One image at a time, with weights of its own."
    affine, rows = layer.affine, []
    styles = F.linear(w, affine.weight / affine.weight.shape[1] ** 0.5, affine.bias)
    for image, style in zip(x, styles, strict=True):
        weight = layer.weight.flip(2, 3) if getattr(layer, "up", 1) == 2 else layer.weight
        weight = weight * style[:, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        else:
            weight = weight / layer.weight[0].numel() ** 0.5
        rows.append(F.conv2d(image[None], weight)[0])
    return torch.stack(rows)


def drawn_by_definition(G, ws, taps=(1.0, 3, 3, 1)):
    "Images of styles with constant noise, step by step as the papers define them."

    def layer(layer, x, w, gain=1.0):
        x = styled(layer, enlarged(x, taps, 1) if layer.up == 2 else F.pad(x, [1] * 4), w)
        x = x + layer.noise_const * layer.noise_strength if layer.use_noise else x
        return activated(layer, x, gain)

    x = image = None
    ws = iter(ws.unbind(1))
    for res in G.synthesis.block_resolutions:
        block = getattr(G.synthesis, f"b{res}")
        if block.first:
            w = next(ws)
            x = layer(block.conv1, block.const.expand(len(w), -1, -1, -1), w)
        elif block.architecture == "resnet":
            weight = block.skip.weight / block.skip.weight.shape[1] ** 0.5
            y = F.conv2d(enlarged(x, taps), weight) * 0.5**0.5
            x = layer(block.conv0, x, next(ws))
            x = y + layer(block.conv1, x, next(ws), 0.5**0.5)
        else:
            x = layer(block.conv1, layer(block.conv0, x, next(ws)), next(ws))
        image = None if image is None else enlarged(image, taps)
        if block.num_torgb:
            last = res == G.img_resolution
            w, ws = _ahead(ws) if not last else (next(ws), ws)
            y = styled(block.torgb, x, w, False) + block.torgb.bias[:, None, None]
            y = y if block.torgb.clamp is None else y.clamp(-block.torgb.clamp, block.torgb.clamp)
            image = y if image is None else image + y
    assert not list(ws)
    return image


def _ahead(styles):
    "The next style, which the next block starts with too."
    first, *rest = styles
    return first, iter([first, *rest])


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize(
    ("resolution", "channels", "options"),
    [
        (64, 1, {}),
        (16, 4, dict(conv_clamp=0.3, use_noise=False)),
        (8, 2, dict(resample_filter=[1, 2, 1])),
        (16, 3, dict(resample_filter=[1, 2, 3, 4, 4, 3, 2, 1], num_fp16_res=4)),
        (4, 3, {}),
    ],
)
def test_generators_by_definition(architecture, resolution, channels, options):
    torch.manual_seed(1)
    words = SMALL | options | dict(architecture=architecture)
    depth = dict(num_layers=3, embed_features=7, layer_features=9, activation="lrelu",
                 lr_multiplier=0.1, w_avg_beta=0.9)
    G = Generator(6, 3, 5, resolution, channels, depth, words).eval()
    with torch.no_grad():
        for value in G.parameters():
            if value.ndim < 2:
                value.add_(0.3 * torch.randn_like(value))
        ws = torch.randn(2, G.num_ws, 5)
        expected = drawn_by_definition(G, ws, options.get("resample_filter", [1, 3, 3, 1]))
        assert_near(G.synthesis(ws, noise_mode="const", force_fp32=True), expected)
    held = G.state_dict()
    assert all(tuple(v.shape) == (4, 4) for k, v in held.items() if "conv1.resample_f" in k)
    if "resample_filter" in options and resolution > 4:
        k = len(options["resample_filter"])
        shape = (k,) if k > 7 else (k, k)
        assert tuple(held["synthesis.b8.conv0.resample_filter"].shape) == shape


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
def test_discriminators_by_definition(architecture):
    taps = [1.0, 2, 1]
    torch.manual_seed(2)
    words = dict(resample_filter=taps, freeze_layers=2, fp16_channels_last=True)
    D = Discriminator(0, 16, 4, architecture, **SMALL, block_kwargs=words,
                      epilogue_kwargs=dict(mbstd_num_channels=0)).eval()
    image = torch.randn(3, 4, 16, 16)

    with torch.no_grad():
        for value in D.state_dict().values():
            if value.ndim == 1:
                value.add_(0.3 * torch.randn_like(value))
        x, left = 0.0, image
        for res in (16, 8, 4):
            block = getattr(D, f"b{res}")
            if hasattr(block, "fromrgb"):
                x = x + activated(block.fromrgb, point(block.fromrgb, left))
            if res == 4:
                break
            left = filtered(left, taps, 1, 0)[..., ::2, ::2]
            y = conv(block.conv1, filtered(conv(block.conv0, x), taps, 2, 1), halve=True)
            if architecture == "resnet":
                y = (y + point(block.skip, filtered(x, taps, 1, 0)[..., ::2, ::2])) * 0.5**0.5
            x = y
        x = conv(D.b4.conv, x).flatten(1)
        x = F.linear(x, D.b4.fc.weight / D.b4.fc.weight.shape[1] ** 0.5, D.b4.fc.bias)
        x = F.leaky_relu(x, 0.2) * 2**0.5
        expected = F.linear(x, D.b4.out.weight / D.b4.out.weight.shape[1] ** 0.5, D.b4.out.bias)
        assert_near(D(image), expected)
    learnt = {name for name, _ in D.named_parameters()}
    assert "b16.fromrgb.weight" not in learnt and "b16.conv0.weight" not in learnt
    assert "b16.conv1.weight" in learnt and "b16.conv0.weight" in D.state_dict()
    held = {k: tuple(v.shape) for k, v in D.state_dict().items() if "resample_f" in k}
    assert held["b16.conv1.resample_filter"] == held["b8.resample_filter"] == (3, 3)
    assert held["b16.conv0.resample_filter"] == held["b16.fromrgb.resample_filter"] == (4, 4)


def test_generator_with_classes_normalises_both():
    G, _ = pair()
    z, c = torch.randn(3, 6), torch.eye(3)
    with torch.no_grad():
        assert_near(G.mapping(5 * z, c), G.mapping(z, c))
        G.mapping.embed.bias.zero_()
        assert_near(G.mapping(z, 7 * c), G.mapping(z, c))
        assert (G.mapping(z, c) - G.mapping(z, c.roll(1, 0))).abs().max() > 1e-3


@pytest.mark.parametrize("resolution", [4, 8, 128, 1024])
def test_names_at_other_resolutions(resolution):
    with torch.device("meta"):
        G = Generator(64, 0, 64, resolution, 1)
        D = Discriminator(0, resolution, 1)
    assert G.num_ws == 2 * resolution.bit_length() - 4
    first = f"b{resolution}.fromrgb.weight"
    assert tuple(D.state_dict()[first].shape) == (min(32768 // resolution, 512), 1, 1, 1)


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_architectures_hold_what_they_need(architecture):
    G, D = pair(architecture=(architecture, architecture))
    images = [k for k in G.state_dict() if k.endswith("torgb.weight")]
    assert len(images) == (3 if architecture == "skip" else 1)
    assert ("synthesis.b8.skip.weight" in G.state_dict()) == (architecture == "resnet")
    assert ("b8.fromrgb.weight" in D.state_dict()) == (architecture == "skip")
    assert ("b4.fromrgb.weight" in D.state_dict()) == (architecture == "skip")
    z, c = torch.randn(2, 6), torch.eye(3)[:2]
    assert D(G(z, c), c).shape == (2, 1)


def test_penalties_in_bfloat16_follow_full_precision():
    _, D = pair(32, channels=3, channel_base=1024, channel_max=32)
    image, c = torch.randn(4, 3, 32, 32), torch.eye(3)[[0, 1, 2, 0]]
    found = {}
    for rough in (False, True):
        x = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            answers = D(x, c)
            (grad,) = torch.autograd.grad(answers.sum(), x, create_graph=True)
        penalty = grad.square().sum((1, 2, 3)).mean()
        found[rough] = torch.autograd.grad(penalty, [D.b32.conv0.weight, D.b16.conv1.weight])
        assert answers.dtype == grad.dtype == torch.float32
    for a, b in zip(found[True], found[False], strict=True):
        assert (a - b).norm() < 0.3 * b.norm()  # of 8 bits, which processors sum differently


def test_two_orders_through_full_networks():
    G, D = (n.double() for n in pair(8, conv_clamp=3.0))
    z, c = torch.randn(4, 6).double(), torch.eye(3)[[0, 1, 2, 0]].double()

    def answers(ws):
        return D(G.synthesis(ws, noise_mode="const"), c).square()

    ws = G.mapping(z, c).detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(answers, ws, fast_mode=True)
    assert torch.autograd.gradgradcheck(answers, ws, fast_mode=True)


def test_networks_copy_and_store_like_any_other(tmp_path):
    import copy

    from synth_nb.stylegan2 import load_network, save_networks

    G, D = pair()
    z, c = torch.randn(2, 6), torch.eye(3)[:2]
    expected = G(z, c, noise_mode="const").detach()
    assert torch.equal(copy.deepcopy(G)(z, c, noise_mode="const"), expected)
    save_networks(tmp_path, G, D, G_ema=G)
    assert torch.equal(load_network(tmp_path)(z, c, noise_mode="const"), expected)
    G.to(memory_format=torch.contiguous_format)
    assert_near(G(z, c, noise_mode="const").detach(), expected)
    torch.save(G.state_dict(), tmp_path / "state.pt")
    G.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)


MALICIOUS = {
    "posix.system": b"cposix\nsystem\n(S'touch harm'\ntR.",
    "builtins.eval": b"\x80\x03cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    "torch.serialization.load": b"ctorch.serialization\nload\n(S'x'\ntR.",
    "collections.OrderedDict.__init__": (
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93."
    ),
}


@pytest.mark.parametrize("name", list(MALICIOUS))
def test_a_file_that_would_run_something_is_refused_by_name(name, tmp_path, monkeypatch):
    from synth_nb.stylegan2 import CheckpointError, read_official

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(MALICIOUS[name])
    with pytest.raises(CheckpointError, match=f"asks for `{re.escape(name)}`"):
        read_official(tmp_path / "bad.pkl")
    assert not (tmp_path / "harm").exists()
