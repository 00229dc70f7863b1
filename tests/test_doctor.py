"""``convscope doctor``: facts of this machine, and a self-test that a wrong kernel does not pass."""

import json

import pytest

from convscope import doctor
from convscope.lowering import convolutions, processor
from convscope.lowering.cpu import compiled


def test_text_and_json_hold_the_same(typed, tmp_path):
    done = typed("doctor", cwd=tmp_path)
    assert done.returncode == 0
    assert not done.stderr
    found = typed("doctor", "--json", cwd=tmp_path)
    assert found.returncode == 0
    facts = json.loads(found.stdout)
    assert facts["passed"]
    assert facts["processor"]["class"].split()[0] in processor.CLASSES
    for section in ("processor", "engine", "versions", "places"):
        for name in facts[section]:
            assert name in done.stdout
    assert facts["places"]["free space there"].endswith("GB")
    assert {check["name"] for check in facts["checks"]} >= {"prediction in float32", "training in float32"}


def test_a_simulated_class_is_named(monkeypatch):
    monkeypatch.setenv(processor.OVERRIDE, "sse")
    found = doctor.examine()
    assert found.facts["processor"]["class"] == "sse (named by CONVSCOPE_PROCESSOR)"
    assert found.facts["engine"]["bfloat16 in training"].startswith("no")
    assert found.passed


def test_where_mnist_was_found(monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("CONVSCOPE_DATA", str(tmp_path))
    assert doctor._places()["MNIST"] == str(tmp_path / "mnist")
    monkeypatch.delenv("CONVSCOPE_DATA")
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "none"))
    assert "convscope data fetch mnist" in doctor._places()["MNIST"]
    assert doctor._places()["cache"].endswith("(not made yet)")


def wrong_pooling(monkeypatch):
    right = compiled.tile_max_back
    monkeypatch.setattr(compiled, "tile_max_back", lambda *arguments: right(*arguments) * 1.01)


def plant_in_convolutions(monkeypatch, plant):
    """Whichever of them the plan chooses."""
    for module, names in (
        (convolutions, ["_convolved"]),
        (compiled, ["few_channel_convolution", "winograd_convolution", "winograd_tile_max"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, plant(getattr(module, name)))


def wrong_convolution(monkeypatch):
    def plant(right):
        def wrong(*arguments):
            found = right(*arguments)
            return (found[0] + 1e-3, *found[1:]) if isinstance(found, tuple) else found + 1e-3

        return wrong

    plant_in_convolutions(monkeypatch, plant)


def wrong_exception(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such instruction")

    plant_in_convolutions(monkeypatch, lambda _: refuse)


@pytest.mark.parametrize("plant", [wrong_pooling, wrong_convolution, wrong_exception])
def test_a_wrong_kernel_fails_loudly(plant, monkeypatch, typed, tmp_path):
    plant(monkeypatch)
    done = typed("doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "The self-test failed" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not json.loads(typed("doctor", "--json", cwd=tmp_path).stdout)["passed"]
