"""Which device is computed on, and that nothing takes every device for the processor."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import keras
import pytest
import torch
from keras import layers

from convscope.errors import UsageError
from convscope.lowering import emit, kernels, lower, optimise
from convscope.lowering.devices import (
    computing_on,
    current_device,
    device_of,
    forked_generators,
    require_device,
)
from convscope.lowering.layers.normalization import apply_statistics, normalize_elementwise
from convscope.lowering.processor import multiplies_bfloat16, takes_bfloat16

TESTS = Path(__file__).parent


def run_on_the_pretended_device(file, *arguments):
    environment = {**os.environ, "CONVSCOPE_TEST_DEVICE": "pretend", "KERAS_TORCH_DEVICE": "pretend"}
    plugins = ("-p", "pretend_device", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *plugins, str(TESTS / file), *arguments],
        capture_output=True, text=True, check=False, cwd=TESTS.parent,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", ["test_gpu.py", "test_lowering_layers.py"])
def test_everything_that_a_gpu_is_asked_for_works_on_a_pretended_one(file):
    which = ("-m", "gpu", "-k", "not cpu-cpu") if file == "test_gpu.py" else ("-m", "not slow")
    run_on_the_pretended_device(file, *which)


def model_of(*more):
    return keras.Sequential([keras.Input((4,)), *more, layers.Dense(2)])


def test_a_model_computes_where_its_weights_lie():
    with keras.device("cpu"):
        assert current_device() == torch.device("cpu")
        assert device_of(model_of()) == torch.device("cpu")
        assert device_of(keras.Sequential([keras.Input((4,)), layers.Flatten()])) is None


@pytest.mark.parametrize("name", ["cuda:99", "meta", "tpu", "", "mps:7"])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(name):
    with pytest.raises(UsageError, match=r"^Expected a device of this machine \(cpu") as error:
        require_device(name)
    assert "\n" not in str(error.value)


def test_a_network_without_weights_takes_inputs_of_any_device():
    model = keras.Sequential([keras.Input((4,)), layers.Softmax()])
    network = emit(lower(model), model)
    assert network(torch.zeros(2, 4)).device == network.device == current_device()


def test_float32_is_computed_as_such_on_a_gpu_and_the_settings_come_back(monkeypatch):
    monkeypatch.setattr(keras, "device", lambda _name: torch.device("cpu"))  # a context that does nothing
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.deterministic
    with pytest.raises(KeyError), computing_on(torch.device("cuda")):
        assert (cudnn.conv.fp32_precision, cudnn.deterministic) == ("ieee", True)
        raise KeyError
    assert (cudnn.conv.fp32_precision, cudnn.deterministic) == before


def test_bfloat16_that_a_gpu_only_emulates_is_not_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not multiplies_bfloat16("cuda:0")
    assert not takes_bfloat16(training=True, device="cuda:0")


@pytest.mark.parametrize("training", [False, True])
def test_a_plan_for_mps_computes_the_same(training):
    model = keras.Sequential(
        [
            keras.Input((9, 9, 3)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.5),
            layers.DepthwiseConv2D(2, strides=2),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )
    images = torch.rand(4, 9, 9, 3, requires_grad=True)
    found = []
    for device in ("mps", "cpu"):
        program, _ = optimise(
            lower(model), training=training, deterministic=True, precision="float32", device=device
        )
        network = emit(program, model)
        network.begin_step(seed=1, step=0)
        result = network(images, training=training)
        weights = list(network.weights.values())
        found.append([result, *torch.autograd.grad(result.square().sum(), [images, *weights])])
        layouts = {entry["layout"] for name, entry in network.plan.items() if "conv" in name}
        assert layouts == {"channels_first" if device == "mps" else "channels_last"}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_normalization_without_torch_s_own_operation_is_the_same():
    images, weights = torch.rand(4, 5, 6, 3), torch.rand(4, 5, 6, 3)
    gamma, beta = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True)
    found = []
    for normalize in (normalize_elementwise, partial(kernels.normalize, kernels.BatchNormalization)):
        x = images.clone().requires_grad_()
        result, mean, variance = normalize(x, gamma, beta, 1e-3)
        gradients = torch.autograd.grad((result * weights).sum(), [x, gamma, beta])
        found.append([result, mean, variance, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    result, mean, variance = found[0][:3]
    torch.testing.assert_close(apply_statistics(images, mean, variance, gamma, beta, 1e-3), result)


def test_random_generators_are_as_before():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with forked_generators(torch.device("cpu")):
        torch.manual_seed(7)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "digits"),
        ("exercise", "--data", "digits"),
        ("resume", "run"),
        ("predict", "run", "image.png"),
        ("inspect", "simple"),
        ("report", "run"),
        ("export", "run"),
        ("doctor",),
    ],
    ids=lambda command: command[0],
)
def test_a_command_refuses_a_device_that_is_not_there(typed, tmp_path, command):
    done = typed(*command, "--device", "cuda:99", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("Error: Expected a device of this machine (cpu")
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_environment_names_a_device_too(typed, tmp_path):
    done = typed("inspect", "simple", cwd=tmp_path, KERAS_TORCH_DEVICE="cuda:99")
    assert done.returncode == 2
    assert "cuda:99" in done.stderr


def test_a_command_computes_on_the_device_that_it_names_and_leaves_the_choice(typed, tmp_path, digits_run):
    before = current_device()
    done = typed("inspect", str(digits_run), "--program", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert current_device() == before
