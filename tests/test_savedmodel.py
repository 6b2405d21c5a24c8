"TensorFlow SavedModels as embedders: values, gradients, refusals, and what shares a process."

import importlib.util
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import warnings

import httpx
import numpy as np
import pytest
import torch

from synth_nb.core.testing import assert_near
from synth_nb.embedders import embed_images, load_embedder
from synth_nb.embedders.hub import WARNED
from synth_nb.embedders.images import cache_folder
from synth_nb.embedders.savedmodel import SavedModel, start_tensorflow

pytestmark = pytest.mark.loads_tensorflow
if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("TensorFlow is not installed", allow_module_level=True)

WIDTH = 5


@pytest.fixture(autouse=True, scope="module")
def tensorflow():
    "Loaded when these tests begin: a process that holds it starts no others."
    global tf
    tf = start_tensorflow("the tests")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def drawn(*shape):
    scale = np.prod(shape[:-1]) ** -0.5
    return np.random.default_rng(len(shape)).normal(0, scale, shape)


def attend(x, weights, lib, softmax):
    "One layer of attention over patches, in the operations of either library."
    q, k, v = (x @ weights[name] for name in "qkv")
    mixed = softmax(q @ lib.swapaxes(k, -1, -2) / WIDTH**0.5) @ v
    return lib.mean(lib.tanh(x + mixed), 1)


def all_weights(dtype):
    shapes = dict(patch=(8, 8, 3, WIDTH), q=(WIDTH,) * 2, k=(WIDTH,) * 2, v=(WIDTH,) * 2)
    return {name: 3 * drawn(*shape).astype(dtype) for name, shape in shapes.items()}


def tf_network(dtype="float32"):
    module = tf.Module()
    module.weights = {name: tf.Variable(w) for name, w in all_weights(dtype).items()}
    lib = tf.experimental.numpy

    def network(x):
        w = module.weights
        x = tf.nn.conv2d(2 * x - 1, w["patch"], 8, "VALID")
        x = tf.reshape(x, (-1, x.shape[1] * x.shape[2], WIDTH))
        return attend(x, w, lib, tf.nn.softmax)

    return module, network


def save(folder, module, network, *shape, dtype="float32", **options):
    spec = tf.TensorSpec(shape or (None, 32, 32, 3), dtype, name="inputs")
    module.run = tf.function(lambda inputs: network(inputs), [spec], autograph=False)
    options = tf.saved_model.SaveOptions(**options)
    run = module.run.get_concrete_function()
    tf.saved_model.save(module, str(folder), {"serving_default": run}, options)
    return folder


def save_jax(folder, gradients=True):
    "The same network from JAX, as native serialisation exports it."
    jax = pytest.importorskip("jax")
    from jax.experimental import jax2tf

    def network(w, x):
        order = ("NHWC", "HWIO", "NHWC")
        x = 2 * x - 1
        x = jax.lax.conv_general_dilated(x, w["patch"], (8, 8), "VALID", dimension_numbers=order)
        return attend(x.reshape(x.shape[0], 16, WIDTH), w, jax.numpy, jax.nn.softmax)

    shapes = [None, "(b, 32, 32, 3)"]
    converted = jax2tf.convert(network, polymorphic_shapes=shapes, with_gradient=gradients)
    module = tf.Module()
    module.weights = {name: tf.Variable(w) for name, w in all_weights("float32").items()}
    options = dict(experimental_custom_gradients=gradients)
    return save(folder, module, lambda x: converted(module.weights, x), **options)


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    "Folders of one network: single and double precision, from JAX, and at 224 pixels."
    folder = tmp_path_factory.mktemp("models")
    save(folder / "tf", *tf_network())
    save(folder / "double", *tf_network("float64"), dtype="float64")
    save(folder / "large", *tf_network(), None, 224, 224, 3)
    save_jax(folder / "jax")
    return folder


def named(folder, **options):
    return load_embedder(f"savedmodel:{folder}", **options)


def directly(folder, images):
    "What TensorFlow gives, of images (B, 3, H, W)."
    model = tf.saved_model.load(str(folder))
    rows = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    (y,) = model.signatures["serving_default"](inputs=tf.constant(rows)).values()
    return torch.from_numpy(y.numpy())


@pytest.mark.parametrize("kind, size", [("tf", 32), ("jax", 32), ("large", 224)])
def test_values_are_those_of_tensorflow(kind, size, saved_models):
    embedder, images = named(saved_models / kind), torch.rand(4, 3, size, size)
    assert (embedder.dim, embedder.input_size) == (WIDTH, size)
    expected = directly(saved_models / kind, images)
    assert expected.std(0).min() > 1e-3
    for count in (4, 1, 3):  # batch sizes vary
        found = embedder(images[:count])
        assert_near(found, expected[:count])
    assert embedder(images[:0]).shape == (0, WIDTH)


def test_both_exports_are_one_network(saved_models):
    images = torch.rand(3, 3, 32, 32, requires_grad=True)
    found = {}
    for kind in ("tf", "jax"):
        y = named(saved_models / kind)(images)
        (gradient,) = torch.autograd.grad(y.square().sum(), images)
        found[kind] = y.detach(), gradient
    for a, b in zip(found["tf"], found["jax"], strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 40, 56), (1, 24, 24)])
def test_gradients_are_those_of_differences(shape, saved_models):
    embedder = named(saved_models / "double").double()
    x, way = torch.rand(2, *shape).double(), torch.randn(2, WIDTH).double()
    direction = torch.randn_like(x)

    def loss(x):
        return (embedder(x) * way).sum()

    x = x * 0.8 + 0.1
    inputs = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(inputs), inputs)
    ends = [loss(x + s * direction) for s in (1e-6, -1e-6)]
    expected = (ends[0] - ends[1]) / 2e-6
    assert_near((gradient * direction).sum(), expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["tf", "jax"])
def test_gradients_in_single_precision(kind, saved_models):
    embedder, x = named(saved_models / kind), torch.rand(2, 3, 32, 32) * 0.8 + 0.1
    way, step = torch.randn(2, WIDTH), 1e-5
    inputs = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((embedder(inputs) * way).sum(), inputs)
    direction = gradient.sign()  # the steepest, so that rounding is small beside the slope
    ends = [(embedder(x + s * direction) * way).double().sum() for s in (step, -step)]
    expected = (ends[0] - ends[1]).item() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=5e-3)


def test_a_generator_learns_through_it(saved_models):
    embedder = named(saved_models / "tf")
    generator = torch.nn.Sequential(
        torch.nn.Linear(6, 3 * 8 * 8), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (3, 8, 8))
    )
    z, wanted = torch.randn(8, 6), named(saved_models / "tf")(torch.rand(8, 3, 32, 32)).detach()
    optimizer, losses = torch.optim.Adam(generator.parameters(), 0.03), []
    for _ in range(40):
        losses.append((embedder(generator(z)) - wanted).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad.abs().sum() > 0 for p in generator.parameters())
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_a_critic_of_features_may_have_a_penalty(saved_models):
    embedder, critic = named(saved_models / "tf"), torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    y = embedder(images)
    (first,) = torch.autograd.grad(critic(y).sum(), y, create_graph=True)
    first.square().sum().backward()
    assert critic[0].weight.grad.norm() > 0 and images.grad.norm() > 0


def test_second_derivatives_and_second_ways_back_are_refused(saved_models):
    x = torch.rand(1, 3, 48, 48, requires_grad=True)
    loss = named(saved_models / "tf")(x).square().sum()
    with pytest.raises(RuntimeError, match="first derivatives only: put the penalty on the feat"):
        torch.autograd.grad(loss, x, create_graph=True)
    torch.autograd.grad(loss, x, retain_graph=True)
    with pytest.raises(RuntimeError, match="once per forward pass: add up the losses first"):
        torch.autograd.grad(loss, x)


def test_nothing_is_recorded_where_no_gradient_is_wanted(saved_models, monkeypatch):
    embedder, x = named(saved_models / "tf"), torch.rand(2, 3, 32, 32)
    tapes, tape = [], tf.GradientTape
    monkeypatch.setattr(tf, "GradientTape", lambda **options: tapes.append(1) or tape(**options))
    embedder(x)
    inputs = x.clone().requires_grad_()
    with torch.no_grad():
        assert not embedder(inputs).requires_grad
    with torch.inference_mode():
        embedder(x)
    assert not tapes
    embedder(inputs).sum().backward()
    assert tapes == [1]


def test_images_of_any_layout(saved_models):
    embedder, x = named(saved_models / "tf"), torch.rand(3, 3, 32, 32)
    plain = embedder(x)
    wide = torch.empty(3, 3, 32, 64)[..., ::2].copy_(x)
    for same in (x.contiguous(memory_format=torch.channels_last), wide):
        assert_near(embedder(same), plain)
    assert_near(embedder(x.flip(3).flip(3)[1:]), plain[1:])
    grey = torch.rand(1, 1, 32, 32)
    many = embedder(grey.expand(2, 3, -1, -1))
    assert_near(many, embedder(grey).expand(2, -1))
    shifted = torch.empty(3 * 3 * 32 * 32 + 1)[1:].view(3, 32, 32, 3)  # at no multiple of 64 bytes
    rows = shifted.copy_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert rows.data_ptr() % 64
    assert_near(embedder.body(rows), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(embedder(x.bfloat16().float()), embedder(x.bfloat16()))


def test_what_tensorflow_keeps_is_not_written_over(tmp_path):
    module = tf.Module()
    constant = save(tmp_path, module, lambda x: tf.ones((1, 3)), None, 32, 32, 3)
    embedder, x = named(constant), torch.rand(1, 3, 32, 32)
    embedder(x).add_(5)
    assert embedder(x).tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match=r"gives \(1, 3\) for 2 images, not one vector each"):
        embedder(x.expand(2, -1, -1, -1))


def test_two_models_at_once_keep_apart(saved_models):
    one, two = named(saved_models / "tf"), named(saved_models / "large")
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    (alone,) = torch.autograd.grad(one(x).sum(), x)
    (other,) = torch.autograd.grad(two(x).sum(), x)
    (both,) = torch.autograd.grad(one(x).sum() + two(x).sum(), x)
    assert_near(both, alone + other)
    assert one.id != two.id and one.id.endswith("tf@32") and two.id.endswith("large@224")


def test_image_sets_go_through_the_cache(saved_models, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 40, 40), dtype=np.uint8)
    folder = shutil.copytree(saved_models / "tf", tmp_path / "model")
    embedder, calls = named(folder), []
    call = embedder.body.call
    embedder.body.call = lambda x: calls.append(len(x)) or call(x)
    first = embed_images(embedder, images, batch_size=3)
    assert torch.equal(embed_images(embedder, images, batch_size=2), first) and sum(calls) == 8
    expected = embedder(torch.from_numpy(images) / 255)
    assert_near(first, expected)
    module, network = tf_network()
    module.weights["q"].assign_add(tf.ones_like(module.weights["q"]))
    save(folder, module, network)
    assert cache_folder(named(folder)) != cache_folder(embedder)  # other weights, other features
    assert named(saved_models / "tf").revision == embedder.revision


def test_open_sizes_and_widths_are_tried(tmp_path):
    module = tf.Module()
    pool = save(tmp_path / "pool", module, lambda x: tf.reduce_mean(x, (1, 2)), None, None, None, 3)
    embedder = named(f"{pool}@48")
    assert (embedder.input_size, embedder.dim) == (48, 3) and embedder.id.endswith("pool@48")
    x = torch.rand(2, 3, 48, 48)
    assert_near(embedder(x), x.mean((2, 3)))

    def strict(x):
        return tf.reshape(tf.ensure_shape(x, (None, 64, 64, 3)), (tf.shape(x)[0], -1))[:, ::4096]

    folder = save(tmp_path / "strict", tf.Module(), strict, None, None, None, 3)
    assert named(f"{folder}@64").dim == 3


def refused(name, kind=ValueError):
    with pytest.raises(kind) as caught:
        load_embedder(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def test_models_of_another_kind_are_refused_in_one_sentence(saved_models, tmp_path):
    def saved_as(name, network, *shape, **options):
        return f"savedmodel:{save(tmp_path / name, tf.Module(), network, *shape, **options)}"

    def pool(x):
        return tf.reduce_mean(x, (1, 2))

    assert "images must be square" in refused(saved_as("oblong", pool, None, 32, 48, 3))
    assert "takes string (None,)" in refused(
        saved_as("text", lambda x: tf.strings.to_number(x)[:, None], None, dtype="string")
    )
    assert "floats (N, height, width, 3)" in refused(saved_as("first", pool, None, 3, 32, 32))
    message = refused(saved_as("bytes", lambda x: pool(tf.cast(x, "float32")), dtype="uint8"))
    assert "takes uint8 (None, 32, 32, 3)" in message
    assert "must be left open" in refused(saved_as("one", pool, 1, 32, 32, 3))
    assert "leaves its input size open" in refused(saved_as("open", pool, None, None, None, 3))
    assert "gives (None, 32, 32, 3), not one vector" in refused(saved_as("map", lambda x: x))
    message = refused(saved_as("two", lambda x: {"a": pool(x), "b": pool(x)}))
    assert "gives 2 outputs (a, b)" in message
    message = refused(f"savedmodel:{saved_models / 'tf'}@64")
    assert "its input size is 32 pixels, no other" in message
    folder = save(tmp_path / "train", tf.Module(), pool)
    run = tf.saved_model.load(str(folder)).signatures["serving_default"]
    module = tf.Module()
    module.run = run
    tf.saved_model.save(module, str(tmp_path / "other"), {"features": run})
    message = refused(f"savedmodel:{tmp_path / 'other'}")
    assert "no signature `serving_default` (it has features)" in message
    broken = shutil.copytree(saved_models / "tf", tmp_path / "broken")
    shutil.rmtree(broken / "variables")
    assert "cannot be read by TensorFlow" in refused(f"savedmodel:{broken}")
    assert "saved_model.pb is missing" in refused(f"savedmodel:{tmp_path}", FileNotFoundError)
    assert "there is no folder" in refused("savedmodel:./nowhere/at/all", FileNotFoundError)


def test_two_inputs_are_refused(tmp_path):
    spec = [tf.TensorSpec((None, 32, 32, 3), name=name) for name in ("left", "right")]
    module = tf.Module()
    module.run = tf.function(lambda left, right: tf.reduce_mean(left + right, (1, 2)), spec)
    tf.saved_model.save(module, str(tmp_path), module.run.get_concrete_function())
    assert "takes 2 inputs (left, right)" in refused(f"savedmodel:{tmp_path}")


@pytest.mark.parametrize("kind", ["cut", "forbidden", "jax"])
def test_a_model_without_gradients_says_so_when_asked(kind, tmp_path):
    if kind == "jax":
        folder = save_jax(tmp_path, gradients=False)
    else:
        stop = dict(cut=tf.stop_gradient, forbidden=lambda x: tf.raw_ops.PreventGradient(input=x))
        folder = save(tmp_path, tf.Module(), lambda x: tf.reduce_mean(stop[kind](x), (1, 2)))
    embedder, x = named(folder), torch.rand(1, 3, 32, 32)
    assert embedder(x).isfinite().all()
    with pytest.raises(ValueError, match="has no gradient from features to images") as caught:
        embedder(x.requires_grad_()).sum().backward()
    assert "\n" not in str(caught.value)


def test_it_can_be_sent_to_a_spawned_process_but_not_forked(saved_models):
    body, x = SavedModel(saved_models / "tf", "eye"), torch.rand(1, 3, 32, 32)
    again = pickle.loads(pickle.dumps(body))
    assert_near(again(x), body(x))

    def child(pipe):
        try:
            pipe.send(body(x).tolist())
        except RuntimeError as error:
            pipe.send(str(error))
        finally:
            pipe.close()
            os._exit(0)

    here, there = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that forking threads is unwise is the point
        process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
        process.start()
    assert here.poll(30) and "`eye`: TensorFlow does not survive a fork" in here.recv()
    process.join()


def test_without_tensorflow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for name in ("path-foundation", "savedmodel:./anything"):
        message = refused(name, ModuleNotFoundError)
        assert f"`{name}` needs TensorFlow: pip install 'synth_nb[path-foundation]'" in message


def test_gpus_are_left_alone_and_an_early_start_is_told(monkeypatch):
    assert tf.config.get_visible_devices("GPU") == []

    def started(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", started)
    start_tensorflow("eye")  # nothing to say without a GPU
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU:0"])
    with pytest.warns(UserWarning, match="already holds GPU memory"):
        start_tensorflow("eye")


ORDER = """
import sys
import torch
from synth_nb.embedders import load_embedder
assert "tensorflow" not in sys.modules
embedder = load_embedder("savedmodel:" + sys.argv[1])
x = torch.rand(1, 3, 32, 32, requires_grad=True)
optimizer = torch.optim.Adam([x])
embedder(x).sum().backward()
optimizer.step()
print("done")
"""


def test_an_optimizer_can_be_made_afterwards(saved_models):
    program = [sys.executable, "-c", ORDER, str(saved_models / "tf")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "cpu_feature_guard" not in done.stderr  # quiet


@pytest.fixture
def offline_hub(tmp_path, monkeypatch, saved_models):
    "Path Foundation's place in the Hub's cache, with a network of its form, and nothing behind."
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    WARNED.clear()
    repo, commit = tmp_path / "hub" / "models--google--path-foundation", "89abcdef01" * 4
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    return shutil.copytree(saved_models / "large", repo / "snapshots" / commit)


def test_path_foundation_by_its_name(offline_hub, capsys):
    embedder = load_embedder("path-foundation")
    assert (embedder.id, embedder.revision) == ("path-foundation@224", "89abcdef")
    assert embedder.licence == "health-ai-developer-foundations"
    images = torch.rand(2, 3, 224, 224)
    expected = directly(offline_hub, images)  # in [0, 1], without mean and deviation
    assert_near(embedder(images), expected)
    load_embedder("path-foundation@224")
    message = capsys.readouterr().out.splitlines()
    assert len(message) == 1 and "`path-foundation` has the licence" in message[0]
    assert "https://huggingface.co/google/path-foundation" in message[0]
    assert "`path-foundation@512`: its input size is 224 pixels" in refused("path-foundation@512")
    pinned = load_embedder("savedmodel:google/path-foundation@main")
    assert pinned.id == "savedmodel:google/path-foundation@main@224"
    with pytest.raises(ValueError, match="offers no patch tokens"):
        embedder.tokens(images)
    with pytest.raises(ValueError, match="offers no early layers"):
        embedder.layers(images)


def test_gated_and_missing_weights_say_where_to_go(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def fetch(name, revision, allow_patterns):
        assert "variables/*" in allow_patterns and "saved_model.pb" in allow_patterns
        answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        raise errors.GatedRepoError("gated", response=answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    message = refused("path-foundation", PermissionError)
    assert "accept its terms at https://huggingface.co/google/path-foundation" in message
    assert "`hf auth login`" in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_images_on_a_gpu(saved_models):
    embedder, x = named(saved_models / "tf"), torch.rand(2, 3, 40, 40)
    there = x.cuda().requires_grad_()
    y = embedder.cuda()(there)
    (gradient,) = torch.autograd.grad(y.sum(), there)
    here = x.requires_grad_()
    expected = named(saved_models / "tf")(here)
    (on_cpu,) = torch.autograd.grad(expected.sum(), here)
    assert y.is_cuda and gradient.is_cuda
    assert_near(y.cpu(), expected)
    assert_near(gradient.cpu(), on_cpu)


def test_a_row_lookup_gives_a_whole_gradient(tmp_path):
    folder = save(tmp_path, tf.Module(), lambda x: tf.reduce_mean(tf.gather(x, [0, 0]), (1, 2)))
    body, x = SavedModel(folder, "eye"), torch.rand(2, 3, 32, 32, requires_grad=True)
    body(x).sum().backward()  # TensorFlow's gradient is sparse here
    expected = torch.zeros_like(x)
    expected[0] = 2 / 32**2
    assert_near(x.grad, expected)
