"""What this machine can do, and what is made of it: candidates, refusals, plans from other machines."""

import json
import platform
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from lowering_cases import built, image_batch, keras_pass, lowered_pass, require_precision_here
from training_cases import images, network

import convscope
from convscope import _torch_internals
from convscope.errors import UnknownNameError, UsageError
from convscope.lowering import emit, lower, optimise, planner, processor
from convscope.lowering.cpu import compiled
from convscope.lowering.planner import PlanContext, adapt_plan, describe_precision, plan_of
from convscope.training.events import Notice

L = keras.layers


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Stand in for a processor of another class, with an empty cache."""
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path))

    def choose(kind):
        monkeypatch.setenv(processor.OVERRIDE, kind)

    return choose


def deep():
    layers = [L.Conv2D(16, 3, activation="relu"), L.Conv2D(32, 3), L.MaxPooling2D(), L.Flatten(), L.Dense(10)]
    return built(layers, (12, 12, 1))


def precisions_of(program):
    return {choice["precision"] for choice in plan_of(program).values()}


def test_the_description_agrees_with_the_operating_system():
    here = processor.this_processor()
    assert here.architecture in (platform.machine().lower(), "x86_64", "arm64")
    assert 1 <= here.physical_cores <= here.logical_cores
    info = Path("/proc/cpuinfo")
    if info.exists() and here.architecture == "x86_64":
        flags = next(
            line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("flags")
        ).split()
        assert ("avx2" in here.instruction_sets) == ("avx2" in flags)
        assert ("avx512_bf16" in here.instruction_sets) == ("avx512_bf16" in flags)


@pytest.mark.parametrize(
    ("architecture", "found", "kind"),
    [
        ("x86_64", (), "sse"),
        ("x86_64", ("avx2",), "avx2"),
        ("x86_64", ("avx2", "avx_ne_convert"), "avx2_vnni_2"),
        ("x86_64", ("avx2", "avx512_f"), "avx2"),
        ("x86_64", ("avx2", "avx512_bw", "avx512_dq", "avx512_vl"), "avx512"),
        ("x86_64", ("avx2", "avx512_bf16", "avx512_bw", "avx512_dq", "avx512_vl"), "avx512_bf16"),
        ("x86_64", ("amx_bf16", "avx2", "avx512_bf16", "avx512_bw", "avx512_dq", "avx512_vl"), "amx"),
        ("arm64", ("bf16", "sve"), "neon"),
        ("riscv64", (), "other"),
    ],
)
def test_the_class_follows_from_the_instruction_sets(architecture, found, kind):
    assert processor._class_of(architecture, found) == kind


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({"_is_avx2_supported": True}, "avx2"),
        ({"_is_avx2_supported": True, "_is_avx512_supported": True}, "avx512"),
        (
            {"_is_avx2_supported": True, "_is_avx512_supported": True, "_is_avx512_bf16_supported": True},
            "avx512_bf16",
        ),
    ],
)
def test_older_versions_of_torch_answer_by_other_functions(answers, kind, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(_torch_internals, "onednn_accepts_bfloat16", lambda: False)
    names = ("avx2", "avx512", "avx512_bf16", "amx_tile")
    for name in (f"_is_{name}_supported" for name in names):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: answers.get(name, False), raising=False)
    found = tuple(name for name, value in processor._capabilities().items() if value is True)
    assert processor._class_of("x86_64", found) == kind


def test_an_unknown_class_is_refused_with_the_nearest_one(machine):
    machine("avx22")
    with pytest.raises(UnknownNameError, match="Did you mean 'avx2'"):
        processor.this_processor()


@pytest.mark.parametrize("kind", ["sse", "avx2"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("deterministic", [True, False], ids=["rule", "measured"])
def test_what_a_processor_refuses_is_never_tried(kind, training, deterministic, machine, monkeypatch):
    machine(kind)
    tried = []
    prepare = planner._Bench._prepare
    monkeypatch.setattr(
        planner._Bench, "_prepare", lambda bench, compute: tried.append(compute) or prepare(bench, compute)
    )
    program, _ = optimise(lower(deep()), training=training, deterministic=deterministic, batch_size=4)
    assert precisions_of(program) == {"float32"}
    assert {compute.precision for compute in tried} <= {"float32"}
    assert deterministic or tried


def test_forward_only_means_prediction_in_bfloat16_and_training_without(machine):
    machine("avx2_vnni_2")
    assert (processor.takes_bfloat16(training=False), processor.takes_bfloat16(training=True)) == (
        True,
        False,
    )
    program, _ = optimise(lower(deep()), batch_size=4)
    assert precisions_of(program) == {"float32"}


def test_a_candidate_that_raises_on_the_way_back_is_none(machine, monkeypatch):
    """A processor whose backward pass refuses bfloat16 although its class says otherwise."""
    require_precision_here("bfloat16")
    machine("avx512_bf16")
    backward = _torch_internals.convolution_backward

    def refuse(gradient, *arguments):
        if gradient.dtype is torch.bfloat16:
            raise RuntimeError("DNNL does not support bf16/f16 backward on the platform with avx2_vnni_2")
        return backward(gradient, *arguments)

    monkeypatch.setattr(_torch_internals, "convolution_backward", refuse)
    program, _ = optimise(lower(deep()), batch_size=4)
    directly = {
        choice["precision"]
        for name, choice in plan_of(program).items()
        if choice["algorithm"] != "shallow" and name.startswith("conv")
    }
    assert directly == {"float32"}
    x, y = images(32)
    model = network()
    convscope.fit(model, x, y, epochs=1, verbose=0)


def test_bfloat16_where_every_candidate_raises_is_one_clear_error(machine, monkeypatch):
    machine("avx512_bf16")

    def refuse(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(planner._Bench, "_prepare", refuse)
    with pytest.raises(UsageError, match="precision 'auto' or 'float32'"):
        optimise(lower(deep()), precision="bfloat16", batch_size=4)
    assert optimise(lower(deep()), precision="float32", batch_size=4)


@pytest.mark.parametrize(
    ("kind", "named"), [("sse", "avx512bw"), ("avx2", "avx512bw"), ("avx2_vnni_2", "forward only")]
)
def test_bfloat16_is_refused_by_the_missing_feature(kind, named, machine):
    machine(kind)
    x, y = images(16)
    with pytest.raises(UsageError, match=named) as caught:
        convscope.fit(network(), x, y, precision="bfloat16", verbose=0)
    assert "'auto' or 'float32'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_training_works_on_every_class(machine):
    x, y = images(48)
    for kind in processor.CLASSES:
        machine(kind)
        model = network()
        history = convscope.fit(model, x, y, epochs=2, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        np.testing.assert_allclose(
            convscope.predict(model, x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
        )


def test_the_line_about_precision_says_why(machine):
    machine("avx2")
    said = []
    x, y = images(16)
    convscope.fit(network(), x, y, verbose=0, listeners=[said.append])
    (line,) = [event.text for event in said if isinstance(event, Notice)]
    assert line == "Precision: float32; this processor (avx2) has no bfloat16 convolutions."
    context = PlanContext(True, True, "auto", 8, "cpu")
    machine("amx")
    program, _ = optimise(lower(deep()), deterministic=True)
    line = describe_precision(program, context)
    how = "by rule; this processor multiplies it in hardware (amx)."
    assert line == f"Precision: bfloat16 in 2 of 3 layers with weights, {how}"
    assert describe_precision(program, PlanContext(True, True, "float32", 8, "cpu")).endswith("as asked for.")


def test_a_plan_of_another_machine_is_translated(machine):
    machine("amx")
    model = deep()
    recorded = plan_of(optimise(lower(model), deterministic=True)[0])
    assert {"bfloat16", "float32"} == {choice["precision"] for choice in recorded.values()}
    assert adapt_plan(recorded, training=True) == (recorded, [])
    machine("avx2")
    adapted, (line,) = adapt_plan(json.loads(json.dumps(recorded)), training=True)
    assert {choice["precision"] for choice in adapted.values()} == {"float32"}
    assert "this machine refuses" in line
    x, y = images(16)
    model = network()
    plan = plan_of(optimise(lower(model), deterministic=True)[0])
    for choice in plan.values():
        choice["precision"] = "bfloat16"
    said = []
    convscope.fit(model, x, y, plan=plan, verbose=0, listeners=[said.append])
    assert any("recorded plan" in event.text for event in said if isinstance(event, Notice))


@pytest.fixture
def no_loops(monkeypatch):
    """A machine for which nothing can be compiled."""
    monkeypatch.setattr(compiled, "available", lambda: False)


def test_torch_does_the_work_where_nothing_can_be_compiled(no_loops, monkeypatch):
    monkeypatch.setattr(compiled, "_loops", lambda: pytest.fail("a loop was called"))
    model = built(
        [
            L.Conv2D(16, 3, activation="relu"), L.MaxPooling2D(), L.Dropout(0.25), L.Flatten(), L.Dense(4),
        ],
        (9, 8, 1),
    )  # fmt: skip
    program, _ = optimise(lower(model), deterministic=True, precision="float32")
    assert plan_of(program)[program.ops[0].name]["algorithm"] == "direct"
    found = lowered_pass(model, [image_batch((3, 9, 8, 1))], False, "float32")
    expected = keras_pass(model, [image_batch((3, 9, 8, 1))], False)
    np.testing.assert_allclose(found.outputs[0], expected.outputs[0], rtol=1e-5, atol=1e-5)
    x, y = images(32)
    convscope.fit(network(dropout=0.5), x, y, epochs=1, verbose=0)


def test_a_block_can_leave_the_loops_out(monkeypatch):
    model = built([L.Conv2D(16, 3, activation="relu"), L.MaxPooling2D(), L.Flatten(), L.Dense(4)], (9, 8, 1))
    x = torch.rand(3, 9, 8, 1)
    before = compiled.available()
    with compiled.left_out(), monkeypatch.context() as patched:
        patched.setattr(compiled, "_loops", lambda: pytest.fail("a loop was called"))
        found = emit(optimise(lower(model), training=False, precision="float32")[0], model)(x)
    assert compiled.available() == before
    torch.testing.assert_close(found, emit(lower(model), model)(x), rtol=1e-5, atol=1e-5)


def test_the_same_masks_with_and_without_loops(monkeypatch):
    model = built([L.Flatten(), L.Dropout(0.3)], (9, 8, 1))
    network_ = emit(lower(model), model)
    network_.begin_step(1, 2)
    x = torch.ones(4, 9, 8, 1)
    expected = network_(x, training=True)
    monkeypatch.setattr(compiled, "available", lambda: False)
    other = emit(lower(model), model)
    other.begin_step(1, 2)
    assert torch.equal(other(x, training=True), expected)


def test_a_plan_with_loops_is_translated_where_there_are_none(no_loops):
    recorded = {"conv": {"precision": "float32", "layout": "channels_last", "algorithm": "shallow"}}
    adapted, (line,) = adapt_plan(recorded, training=True)
    assert adapted["conv"]["algorithm"] == "direct"
    assert "compiled loops" in line
    assert recorded["conv"]["algorithm"] == "shallow"


def test_loops_that_cannot_be_compiled_are_reported_once(monkeypatch, caplog):
    def refuse():
        raise RuntimeError("LLVM knows no such processor")

    monkeypatch.setattr(compiled, "_loops", refuse)
    compiled._can_be_loaded.cache_clear()
    try:
        assert not compiled.available()
        assert not compiled.available()
        assert len(caplog.records) == 1
    finally:
        compiled._can_be_loaded.cache_clear()


def test_what_was_measured_once_is_kept(machine, tmp_path, monkeypatch):
    machine("avx2")
    answers = iter([1, 2])
    assert processor.remembered("subject", "question", lambda: next(answers)) == 1
    monkeypatch.setattr(processor, "_REMEMBERED", {})  # as in another process
    assert processor.remembered("subject", "question", lambda: next(answers)) == 1
    machine("sse")  # as on another machine
    assert processor.remembered("subject", "question", lambda: next(answers)) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_the_first_of_two_processes_decides(machine, monkeypatch):
    machine("avx2")

    def find():
        monkeypatch.setattr(processor, "_REMEMBERED", {})
        processor.remembered("subject", "question", lambda: "theirs")  # faster than we are
        return "ours"

    assert processor.remembered("subject", "question", find) == "theirs"


def test_a_cache_that_cannot_be_written_only_costs_time(machine, monkeypatch, tmp_path):
    machine("avx2")
    (tmp_path / "machine").write_text("in the way")
    assert processor.remembered("subject", "question", lambda: 3) == 3


def test_the_same_program_gets_the_same_plan_again(machine, monkeypatch):
    model = deep()
    first = plan_of(optimise(lower(model), batch_size=4)[0])
    monkeypatch.setattr(processor, "_REMEMBERED", {})
    monkeypatch.setattr(planner._Bench, "seconds", lambda *_: pytest.fail("measured again"))
    assert plan_of(optimise(lower(model), batch_size=4)[0]) == first
    other = deep()  # Keras gives its layers other names
    again = plan_of(optimise(lower(other), batch_size=4)[0])
    assert list(again.values()) == list(first.values())


def test_bfloat16_is_no_candidate_where_it_was_measured_to_be_slow(machine, monkeypatch):
    machine("avx512")
    monkeypatch.setattr(processor, "bfloat16_speed", lambda training: 0.3)
    assert PlanContext(True, False, "auto", 8, "cpu").precisions == ("float32",)
    monkeypatch.setattr(processor, "bfloat16_speed", lambda training: 1.5)
    assert PlanContext(True, False, "auto", 8, "cpu").precisions == ("float32", "bfloat16")
    assert PlanContext(True, True, "auto", 8, "cpu").precisions == ("float32",)


def test_the_measured_speed_is_a_ratio(machine):
    require_precision_here("bfloat16")
    threads = torch.get_num_threads()
    assert 0.001 < processor.bfloat16_speed(training=True) < 1000
    assert torch.get_num_threads() == threads
    machine("avx2")
    assert processor.bfloat16_speed(training=True) == 0.0


def test_the_same_seed_gives_the_same_bits_whatever_the_clock_says(machine, monkeypatch):
    """The second training finds the first one's choices, although it would measure others."""
    x, y = images(48)

    def trained():
        monkeypatch.setattr(processor, "_REMEMBERED", {})  # as in a new process
        model = network(dropout=0.3)
        convscope.fit(model, x, y, epochs=1, seed=3, verbose=0)
        return model.get_weights()

    first = trained()
    monkeypatch.setattr(planner._Bench, "seconds", lambda _, candidates: {candidates[-1]: 1e-9})
    assert all(map(np.array_equal, trained(), first))


def test_train_refuses_bfloat16_before_it_reads_the_data(typed, tmp_path):
    done = typed(
        "train", "no-such-folder", "--precision", "bfloat16", "--device", "cpu",
        cwd=tmp_path, CONVSCOPE_PROCESSOR="avx2",
    )  # fmt: skip
    assert done.returncode == 2
    assert "a processor with bfloat16 convolutions" in done.stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", "{"])
def test_a_damaged_answer_is_found_out_anew(text, machine, monkeypatch, tmp_path):
    machine("avx2")
    processor.remembered("subject", "question", lambda: 1)
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(text, encoding="utf-8")
    for _ in range(2):
        monkeypatch.setattr(processor, "_REMEMBERED", {})
        assert processor.remembered("subject", "question", lambda: 2) == 2
    assert json.loads(kept.read_text(encoding="utf-8"))["answer"] == 2


@pytest.mark.parametrize(
    "entry", [None, "bfloat16", {}, {"precision": "float16"}, {"layout": "nhwc"}, {"new": 1}], ids=str
)
def test_what_is_no_plan_is_refused_in_one_line(entry):
    x, y = images(16)
    model = network()
    plan = plan_of(optimise(lower(model), deterministic=True, precision="float32")[0])
    name, first = next(iter(plan.items()))
    plan[name] = {**first, **entry} if isinstance(entry, dict) and entry else entry
    with pytest.raises(UsageError, match=f"for {name}, got") as caught:
        convscope.fit(model, x, y, plan=plan, verbose=0)
    assert "\n" not in str(caught.value)


def test_a_plan_fits_the_same_network_made_again():
    first, second = deep(), deep()  # Keras numbers the second one's layers on
    plan = plan_of(optimise(lower(first), deterministic=True, precision="float32")[0])
    program, _ = optimise(lower(second), deterministic=True, precision="float32")
    assert set(plan) != set(plan_of(program))
    assert list(emit(program, second, plan=plan).plan.values()) == list(plan.values())
