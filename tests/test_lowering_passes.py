"""Passes keep the function, say what they did, and leave a program that the check accepts."""

import dataclasses
import json

import keras
import pytest
import torch
from lowering_cases import built, image_batch, keras_pass, lowered_pass, require_precision_here

from convscope.errors import LoweringError, UsageError
from convscope.lowering import describe, emit, lower, optimise, processor
from convscope.lowering.cpu import compiled
from convscope.lowering.ir import Activation, Output, check
from convscope.lowering.planner import PlanContext, _candidates, apply_plan, choose, plan_of

L = keras.layers


def deep():
    return built(
        [
            L.Conv2D(16, 3, activation="relu"),
            L.Conv2D(8, 3, activation="relu"),
            L.MaxPooling2D(2),
            L.Dropout(0.25),
            L.Flatten(),
            L.Dense(16, activation="relu"),
            L.Dropout(0.5),
            L.Dense(5, activation="softmax"),
        ],
        (12, 12, 1),
    )


def optimised(model, **settings):
    program, reports = optimise(lower(model), **{"deterministic": True, "precision": "float32", **settings})
    return program, {report.name: report.changes for report in reports}


def kinds(program):
    return [op.kind for op in program]


def test_the_network_of_the_exercise_becomes_five_ops():
    program, changes = optimised(deep())
    assert kinds(program) == ["Conv2D", "Conv2D", "Flatten", "Dense", "Dense"]
    first, second, _, dense, last = program.ops
    pool = second.pooling
    assert first.activation == Activation("relu")
    assert second.activation is None
    assert pool.activation == Activation("relu")
    assert pool.drop.rate == 0.25
    assert dense.drop.rate == 0.5
    assert (dense.input_scale, last.input_scale) == (pytest.approx(4 / 3), 2.0)
    assert program.outputs[0].activation == Activation("softmax")
    assert all(changes[name] for name in changes if "normalization" not in name)


@pytest.mark.parametrize(
    ("activation", "moves"),
    [
        (L.ReLU(), True),
        (L.ReLU(max_value=2.0), True),
        (L.ReLU(negative_slope=0.1, threshold=0.2), True),
        (L.LeakyReLU(), True),
        (L.ELU(), True),
        (L.Activation("tanh"), True),
        (L.Activation("sigmoid"), True),
        (L.Activation("gelu"), False),
        (L.Activation("silu"), False),
        (L.Activation("softmax"), False),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_only_what_never_decreases_moves_behind_the_maximum(activation, moves):
    _, changes = optimised(built([L.Conv2D(3, 3), activation, L.MaxPooling2D(2)], (8, 8, 1)))
    assert bool(changes["activation behind max-pooling"]) == moves


def test_nothing_moves_behind_an_average():
    program, _ = optimised(built([L.Conv2D(3, 3, activation="relu"), L.AveragePooling2D(2)], (8, 8, 1)))
    assert program.ops[0].activation == Activation("relu")


def test_an_activation_that_another_op_reads_stays():
    image = keras.Input((8, 8, 3))
    active = L.ReLU()(L.Conv2D(3, 3)(image))
    model = keras.Model(image, [L.MaxPooling2D(2)(active), L.GlobalAveragePooling2D()(active)])
    program, changes = optimised(model)
    assert changes["activation behind max-pooling"] == ()
    assert program.ops[0].activation == Activation("relu")


def residual_block():
    image = keras.Input((8, 8, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(image)))
    y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(x))
    return keras.Model(image, L.ReLU(max_value=2.0)(L.Add()([x, y])))


def test_a_normalization_adds_the_residual_and_clips():
    program, _ = optimised(residual_block())
    assert kinds(program) == ["Conv2D", "BatchNormalization"] * 2
    first, second = program.ops[1], program.ops[3]
    assert first.activation.is_plain_relu
    assert second.activation.ceiling == 2.0
    assert second.inputs[1] == first.output


def test_a_sum_stays_where_nothing_is_gained():
    assert "Merge" in kinds(optimised(residual_block(), training=False)[0])
    image = keras.Input((8, 8, 3))
    x = L.BatchNormalization()(image)
    model = keras.Model(image, L.ReLU()(L.Add()([x, x])))
    assert kinds(optimised(model)[0]) == ["BatchNormalization", "Merge", "Activate"]


def test_a_regularized_activity_stays_where_it_is():
    layers = [L.Conv2D(3, 3, activation="relu", activity_regularizer="l2"), L.MaxPooling2D(2)]
    assert kinds(optimised(built(layers, (8, 8, 1)))[0]) == ["Conv2D", "ActivityLoss", "Pool2D"]


@pytest.mark.parametrize(
    ("layer", "training", "folds"),
    [
        (L.Conv2D(3, 3), False, True),
        (L.Conv2D(3, 3), True, False),
        (L.DepthwiseConv2D(3), False, True),
        (L.Conv2D(3, 3, activation="relu"), False, False),
        (L.MaxPooling2D(2), False, False),
    ],
    ids=["inference", "training", "depthwise", "behind an activation", "behind a pooling"],
)
def test_normalization_is_folded(layer, training, folds):
    program, _ = optimised(built([layer, L.BatchNormalization()], (8, 8, 2)), training=training)
    assert ("BatchNormalization" not in kinds(program)) == folds


def test_a_frozen_normalization_is_folded_while_training():
    model = built([L.Dense(3), L.BatchNormalization(trainable=False), L.ReLU()], (4,))
    program, _ = optimised(model)
    assert kinds(program) == ["Dense"]
    assert program.ops[0].activation == Activation("relu")


def test_a_normalization_of_another_axis_stays():
    model = built([L.Conv2D(3, 3), L.BatchNormalization(axis=1)], (8, 8, 2))
    assert kinds(optimised(model, training=False)[0]) == ["Conv2D", "BatchNormalization"]


def test_a_convolution_that_two_ops_read_keeps_its_normalization():
    image = keras.Input((6, 6, 2))
    x = L.Conv2D(2, 3, padding="same")(image)
    model = keras.Model(image, L.Add()([x, L.BatchNormalization()(x)]))
    assert kinds(optimised(model, training=False)[0]) == ["Conv2D", "BatchNormalization", "Merge"]


@pytest.mark.parametrize(
    ("layers", "activation"),
    [
        ([L.Dense(3, activation="softmax")], "softmax"),
        ([L.Dense(1, activation="sigmoid")], "sigmoid"),
        ([L.Dense(3), L.Softmax()], "softmax"),
        ([L.Dense(3, activation="tanh")], None),
        ([L.Dense(3)], None),
        ([L.Reshape((2, 2)), L.Softmax(axis=1)], None),
    ],
    ids=["softmax", "sigmoid", "softmax layer", "tanh", "nothing", "softmax over another axis"],
)
def test_the_last_activation_leaves_the_program(layers, activation):
    model = built(layers, (4,))
    program, _ = optimised(model)
    assert emit(program, model).output_activation == activation


def test_a_softmax_that_goes_on_stays():
    x = keras.Input((4,))
    probabilities = L.Dense(3, activation="softmax")(x)
    model = keras.Model(x, [probabilities, L.Dense(2)(probabilities)])
    assert emit(optimised(model)[0], model).output_activations == (None, None)


def test_dropout_that_no_matrix_product_reads_scales_itself():
    program, _ = optimised(built([L.Dropout(0.5), L.Conv2D(3, 3)], (8, 8, 1)))
    assert program.ops[0].scaled


def test_spatial_dropout_stays_an_op_of_its_own():
    program, _ = optimised(built([L.Conv2D(3, 3, activation="relu"), L.SpatialDropout2D(0.5)], (8, 8, 1)))
    assert kinds(program) == ["Conv2D", "Dropout"]


def test_passes_do_not_change_the_function():
    model = deep()
    x = image_batch((3, 12, 12, 1))
    plain = emit(lower(model), model)(keras.ops.convert_to_tensor(x)).detach()
    found = lowered_pass(model, [x], training=False, precision="float32").outputs[0]
    assert abs(plain.numpy() - found).max() < 1e-6
    assert abs(keras_pass(model, [x], training=False).outputs[0] - found).max() < 1e-6


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match=r"^Expected precision auto, float32, bfloat16, got 'half'\.$"):
        optimise(lower(deep()), precision="half")


def changed(program, index, **fields):
    altered = dataclasses.replace(program.ops[index], **fields)
    return program.replace(ops=(*program.ops[:index], altered, *program.ops[index + 1 :]))


@pytest.mark.parametrize(
    ("index", "fields", "what"),
    [
        (
            0,
            {"strides": (2, 2)},
            r"from \(None, 12, 12, 1\) it gives \(None, 5, 5, 8\), but \(None, 10, 10, 8\) is",
        ),
        (0, {"kernel_shape": (3, 3, 2, 8)}, "reads 2 channels, got 1"),
        (2, {"kernel_shape": (15, 15, 8, 8)}, "is larger than"),
        (1, {"inputs": ("nowhere",)}, "it reads 'nowhere', which nothing has written before"),
        (2, {"name": "conv"}, "its name is used twice"),
        (2, {"output": "conv:out"}, "it writes 'conv:out', which was written before"),
    ],
    ids=["shape", "channels", "size", "order", "name", "output"],
)
def test_a_wrong_program_is_refused(index, fields, what):
    image = keras.Input((12, 12, 1), name="image")
    x = L.Conv2D(8, 3, activation="relu", name="conv")(image)
    program = lower(keras.Model(image, L.Conv2D(8, 3, name="other")(x)))
    with pytest.raises(
        LoweringError, match=rf"^After a bad pass, op '.*' \(.*, layer '.*'\) is wrong: .*{what}"
    ):
        check(changed(program, index, **fields), after="a bad pass")


def test_an_output_that_nothing_writes_is_refused():
    program = lower(deep())
    with pytest.raises(
        LoweringError, match=r"^After a bad pass, output 'nowhere' of '.*' is written by no op\.$"
    ):
        check(dataclasses.replace(program, outputs=(Output("nowhere"),)), after="a bad pass")


def test_measurement_chooses_among_candidates():
    program, _ = optimise(lower(deep()), precision="auto", batch_size=8)
    choices = plan_of(program)
    assert set(choices) == {op.name for op in program if op.kind in ("Conv2D", "Dense")}
    assert choices[program.ops[-1].name]["precision"] == "float32"
    assert json.loads(json.dumps(choices)) == choices


def test_measurement_looks_at_inference_too():
    program, _ = optimise(lower(deep()), training=False, batch_size=8)
    assert all(choice["precision"] in ("float32", "bfloat16") for choice in plan_of(program).values())


def test_float32_stays_float32():
    program, _ = optimise(lower(deep()), precision="float32", batch_size=8)
    assert {choice["precision"] for choice in plan_of(program).values()} == {"float32"}


def test_rules_choose_the_same_every_time():
    model = deep()
    assert plan_of(optimised(model, precision="auto")[0]) == plan_of(optimised(model, precision="auto")[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("channels", "filters", "algorithm"), [(1, 16, "shallow"), (1, 8, "direct"), (3, 16, "direct")]
)
def test_rules_take_the_loops_for_a_single_channel(channels, filters, algorithm, precision, monkeypatch):
    require_precision_here(precision)
    model = built([L.Conv2D(filters, 3, activation="relu")], (9, 8, channels))
    program, _ = optimised(model, precision=precision)
    (choice,) = plan_of(program).values()
    assert (choice["algorithm"], choice["precision"]) == (algorithm, precision)
    calls = []
    loop = compiled.few_channel_convolution
    monkeypatch.setattr(compiled, "few_channel_convolution", lambda *a, **k: calls.append(a) or loop(*a, **k))
    emit(program, model)(torch.zeros(2, 9, 8, channels))
    assert len(calls) == (algorithm == "shallow")


@pytest.mark.parametrize(("filters", "algorithm"), [(16, "rows"), (20, "shallow"), (20, "rows")])
def test_a_plan_that_cannot_be_carried_out_is_refused(filters, algorithm):
    program = lower(built([L.Conv2D(filters, 3)], (9, 8, 1)))
    plan = {name: {**choice, "algorithm": algorithm} for name, choice in plan_of(program).items()}
    with pytest.raises(UsageError, match=rf"^Expected algorithm 'direct'.* got '{algorithm}'"):
        apply_plan(program, plan)


def test_images_of_few_channels_have_the_loops_among_their_candidates():
    program = lower(built([L.Conv2D(16, 3)], (9, 8, 3)))
    context = PlanContext(True, False, "auto", 8, "cpu")
    algorithms = {(c.precision, c.algorithm) for c in _candidates(program.ops[0], context)}
    assert algorithms == {(p, a) for p in context.precisions for a in ("direct", "shallow")}


@pytest.mark.parametrize(
    ("name", "units", "batch", "algorithms"),
    [
        ("AMD Ryzen", 64, 2048, {"direct", "tiled"}),
        ("AMD Ryzen", 60, 2048, {"direct"}),
        ("AMD Ryzen", 64, 8, {"direct"}),
        ("Intel Core", 64, 2048, {"direct"}),
        ("Intel Core", 10, 8192, {"direct", "tiled"}),  # few columns
    ],
)
def test_large_dense_layers_have_loops_among_their_candidates_on_amd_or_with_few_columns(
    name, units, batch, algorithms, monkeypatch
):
    here = dataclasses.replace(processor.this_processor(), name=name)
    monkeypatch.setattr(processor, "this_processor", lambda: here)
    program = lower(built([L.Dense(units, activation="relu"), L.Dense(3)], (256,)))
    context = PlanContext(True, False, "float32", batch, "cpu")
    assert {choice.algorithm for choice in _candidates(program.ops[0], context)} == algorithms


def test_a_dense_layer_in_tiles_trains_as_torchs_does():
    model = built([L.Dense(32, activation="relu"), L.Dense(3)], (48,))
    program = lower(model)
    plan = plan_of(program)
    first = next(iter(plan))
    x, found = torch.tensor(image_batch((9, 48)), dtype=torch.float32), []
    for algorithm in ("direct", "tiled"):
        network = emit(program, model, {**plan, first: {**plan[first], "algorithm": algorithm}})
        network(x, training=True).sum().backward()
        found.append([weight.grad.clone() for weight in network.weights.values()])
        for weight in network.weights.values():
            weight.grad = None
    for direct, tiled in zip(*found, strict=True):
        torch.testing.assert_close(direct, tiled, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("rows", "calls"), [(9, 0), (40, 1)])
def test_many_rows_are_predicted_in_tiles_where_there_are_few_columns(rows, calls, monkeypatch):
    model = built([L.Dense(10)], (13_200,))
    (program, _), called = optimise(lower(model), training=False, deterministic=True, precision="float32"), []
    assert [choice["algorithm"] for choice in plan_of(program).values()] == ["tiled"]
    product = compiled.dense_product
    monkeypatch.setattr(compiled, "dense_product", lambda *given: called.append(1) or product(*given))
    x = image_batch((rows, 13_200))
    with torch.no_grad():
        found = emit(program, model)(torch.tensor(x, dtype=torch.float32), training=False)
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-5, atol=1e-4)
    assert len(called) == calls


def test_what_comes_in_bfloat16_is_multiplied_in_float32_tiles_and_goes_back_in_bfloat16(monkeypatch):
    require_precision_here("bfloat16", training=True)
    model = built([L.Dense(64, activation="relu"), L.Dense(10)], (48,))
    program = lower(model)
    first, last = plan_of(program)
    narrow = {"precision": "bfloat16", "layout": "channels_last", "algorithm": "direct"}
    called, found, product = [], [], compiled.dense_product
    monkeypatch.setattr(compiled, "dense_product", lambda *given: called.append(1) or product(*given))
    for algorithm in ("direct", "tiled"):
        last_choice = {"precision": "float32", "layout": "channels_last", "algorithm": algorithm}
        network = emit(program, model, {first: narrow, last: last_choice})
        output = network(torch.tensor(image_batch((9, 48)), dtype=torch.float32), training=True)
        output.sum().backward()
        found.append([output.detach(), *(weight.grad.clone() for weight in network.weights.values())])
        for weight in network.weights.values():
            weight.grad = None
    assert len(called) == 1
    for direct, tiled in zip(*found, strict=True):
        torch.testing.assert_close(direct, tiled, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("batch", "measured"), [(8192, True), (8, False)])
def test_only_a_large_layer_of_logits_is_measured(batch, measured):
    program = lower(built([L.Flatten(), L.Dense(10)], (16, 16, 1)))
    _, lines = choose(program, PlanContext(True, False, "float32", batch, "cpu"))
    assert (" ms; " in lines[-1]) == measured


def test_images_of_unknown_size_are_left_to_the_rules():
    image = keras.Input((None, None, 3))
    program = lower(keras.Model(image, L.Conv2D(4, 3)(image)))
    _, lines = choose(program, PlanContext(True, False, "auto", 8, "cpu"))
    assert lines[0].endswith("(rule)")


def test_a_plan_fits_its_own_program_only():
    program = lower(deep())
    with pytest.raises(UsageError, match="one that differs in strange"):
        apply_plan(program, {**plan_of(program), "strange": {}})


def test_description_is_json_and_names_what_runs_as_keras():
    model = keras.Sequential([keras.Input((4, 3)), L.LSTM(2, name="memory"), L.Dense(2, name="last")])
    rows = json.loads(json.dumps(describe(*optimise(lower(model), deterministic=True))))
    assert [(row["op"], row["keras"]) for row in rows if "op" in row] == [("memory", True), ("last", False)]
    assert rows[0]["settings"] == {"keras": "LSTM"}
    assert rows[1]["precision"] == "float32"
    assert next(row["pass"] for row in rows if "pass" in row) == "activation behind max-pooling"


def test_description_says_what_was_fused():
    rows = describe(*optimise(lower(deep()), deterministic=True, precision="float32"))
    first, second = (row for row in rows if row.get("kind") == "Conv2D")
    assert first["settings"]["activation"] == "relu"
    pooling, activation, drop = second["settings"]["pooling"].split(", ")
    assert (pooling[:13], activation, drop[:7]) == ("max_pooling2d", "relu", "dropout")
    assert second["input_shapes"] == [[None, 10, 10, 16]]
    assert second["output_shapes"] == [[None, 4, 4, 8]]
