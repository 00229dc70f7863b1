"""What a network trains on: rows, streams, weights, augmentation, order of batches."""

import mmap

import keras
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights
from training_cases import assert_same_history, identical, network, weights

import convscope
from convscope.augmentation import Augmentation
from convscope.errors import UsageError
from convscope.training import feeds
from convscope.training.feeds import ArrayFeed, as_tensor, class_weights_to_sample_weights
from convscope.training.inputs import ArrayInput, BatchPlan, epoch_order, plan_batches, read_input
from convscope.training.request import with_checks

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "y",
    [np.array([0, 3, 1, 1, 9]), np.array([[0.0], [3.0], [1.0], [1.0], [9.0]]), np.eye(10)[[0, 3, 1, 1, 9]]],
    ids=["numbers", "column", "one-hot"],
)
def test_class_weights_equal_keras(y):
    weights = {0: 2.0, 1: 0.25, 9: 7.0}
    expected = class_weight_to_sample_weights(y, weights)
    assert class_weights_to_sample_weights(y, None, weights).tolist() == expected.tolist()


def test_class_weights_need_one_array_of_targets():
    with pytest.raises(UsageError, match=r"^Expected one array of targets beside class_weight, got dict.$"):
        class_weights_to_sample_weights({"a": np.zeros(3)}, None, {0: 1.0})


@pytest.mark.parametrize(
    ("y", "weight", "found"),
    [
        ({"a": np.zeros(3), "b": np.zeros(3)}, {"b": np.ones(3)}, "a dict of b"),
        ([np.zeros(3), np.zeros(3)], [np.ones(3)], "a list of 1"),
        (np.zeros(3), {"a": np.ones(3)}, "a dict of a"),
    ],
    ids=["names", "length", "single"],
)
def test_weights_of_another_structure_than_the_targets_are_refused(y, weight, found):
    expected = f"^Expected sample_weight as one array, or nested as y is, got {found}. Write None"
    with pytest.raises(UsageError, match=expected):
        read_input(np.zeros((3, 2)), y, weight, None)
    assert read_input(np.zeros((3, 2)), y, keras.tree.map_structure(lambda _: None, y), None).rows == 3


@pytest.fixture
def mapped(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (500, 16), dtype=np.uint8)
    np.save(tmp_path / "x.npy", values)
    return values, tmp_path / "x.npy"


class Mapping:
    def __init__(self):
        self.advice = []

    def madvise(self, advice):
        self.advice.append(advice)


@pytest.mark.parametrize(("mode", "released"), [("r", True), ("r+", True), ("c", False)])
def test_pages_of_large_mapped_files_are_given_back(mapped, monkeypatch, mode, released):
    values, path = mapped
    monkeypatch.setattr(feeds, "LARGE_MAPPING", 1000)
    monkeypatch.setattr(feeds, "ROWS_BETWEEN_RELEASES", 100)
    array = np.load(path, mmap_mode=mode)
    feed = ArrayFeed(ArrayInput(array), BatchPlan(500, 50, True, 1), None, CPU)
    assert len(feed._mappings) == int(released)
    first = [batch[0].numpy() for batch in feed.epoch(0)]
    expected = [values[BatchPlan(500, 50, True, 1).rows_of(0, step)] for step in range(10)]
    assert all(np.array_equal(a, b) for a, b in zip(first, expected, strict=True))
    if released:
        feed._mappings = [Mapping()]
        list(feed.epoch(0))
        assert feed._mappings[0].advice == [mmap.MADV_DONTNEED] * 5


def test_small_files_and_arrays_in_memory_keep_their_pages(mapped):
    values, path = mapped
    for array in (values, np.load(path, mmap_mode="r")):
        assert ArrayFeed(ArrayInput(array), BatchPlan(500, 50), None, CPU)._mappings == []


def test_a_split_of_a_mapped_file_stays_mapped(mapped):
    _, path = mapped
    train, validation = read_input(np.load(path, mmap_mode="r"), None, None, None).split(0.2)
    assert isinstance(train.x, np.memmap)
    assert train.rows == 400
    assert validation.rows == 100


def test_tensors_share_the_memory_of_arrays():
    array = np.arange(6, dtype=np.float32)
    assert as_tensor(array).data_ptr() == array.ctypes.data
    array.flags.writeable = False
    assert as_tensor(array).data_ptr() == array.ctypes.data


def test_text_is_refused():
    with pytest.raises(UsageError, match=r"^Expected numbers as input, got an array of type <U1.$"):
        as_tensor(np.array(["a"]))


def raw(count=60):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return pixels, np.eye(5, dtype=np.float32)[generator.integers(0, 5, count)]


AUGMENTATION = Augmentation(shift=0.2, rotate=20, flip="horizontal", mixup=0.4)


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_augmentation_follows_seed_epoch_and_step(engine):
    pixels, y = raw()
    preprocess = convscope.Preprocess.fit(pixels, "unit")
    options = {"batch_size": 16, "epochs": 2, "verbose": 0, "engine": engine, "preprocess": preprocess}
    results = []
    for seed, augment in (
        (1, AUGMENTATION),
        (1, AUGMENTATION),
        (2, AUGMENTATION),
        (1, None),
        (1, Augmentation()),
    ):
        model = network()
        convscope.fit(
            model, pixels, y, seed=seed, augment=augment, shuffle=False, deterministic=True, **options
        )
        results.append(weights(model))
    assert identical(results[0], results[1])
    assert not identical(results[0], results[2])
    assert not identical(results[0], results[3])
    assert identical(results[3], results[4])


def test_both_engines_see_the_same_augmented_images_and_validate_on_plain_ones():
    pixels, y = raw()
    preprocess = convscope.Preprocess.fit(pixels, "minmax")
    histories = []
    for engine in ("fast", "keras"):
        histories.append(
            convscope.fit(
                network(),
                pixels,
                y,
                validation_data=(pixels, y),
                engine=engine,
                precision="float32",
                augment=AUGMENTATION,
                preprocess=preprocess,
                epochs=2,
                seed=3,
                verbose=0,
            )
        )
    assert_same_history(*histories)


def test_augmented_batches_are_those_of_the_augmentation():
    pixels, y = raw()
    preprocess = convscope.Preprocess.fit(pixels, "unit")
    plan = BatchPlan(60, 16, True, 5)
    feed = ArrayFeed(ArrayInput(pixels, y, None, preprocess), plan, None, CPU, AUGMENTATION)
    x, targets, _ = feed.batch(3, 2)
    rows = plan.rows_of(3, 2)
    images, labels = AUGMENTATION.apply(
        torch.from_numpy(pixels[rows]), torch.from_numpy(y[rows]), seed=5, epoch=3, step=2
    )
    assert torch.equal(x, preprocess.apply_tensor(images))
    assert torch.equal(targets, labels)


def test_augmentation_without_raw_images_is_refused():
    pixels, y = raw()
    with pytest.raises(UsageError, match=r"^Expected raw images and preprocess beside augment, got ndarray."):
        convscope.fit(network(), pixels, y, augment=AUGMENTATION)


plans = st.builds(
    BatchPlan,
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 25),
    shuffle=st.sampled_from([True, False, "batch"]),
    seed=st.integers(0, 2**31),
)


@given(plan=plans, epoch=st.integers(0, 5))
def test_an_epoch_visits_each_row_once(plan, epoch):
    batches = [plan.rows_of(epoch, step) for step in range(plan.steps)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(plan.rows))
    assert [len(batch) for batch in batches[:-1]] == [plan.batch_size] * (plan.steps - 1)


@given(plan=plans, steps=st.integers(1, 12), first=st.integers(0, 3))
def test_epochs_of_a_given_length_share_a_pass_out_and_stop_at_its_end(plan, steps, first):
    cut = BatchPlan(plan.rows, plan.batch_size, plan.shuffle, plan.seed, steps, first)
    for beginning in (first, first + -(-plan.steps // steps)):  # of the first pass, and of the second
        whole = [plan.rows_of(beginning, step).tolist() for step in range(plan.steps)]
        epochs = range(beginning, beginning + -(-plan.steps // steps))
        pieces = [
            cut.rows_of(epoch, step).tolist() for epoch in epochs for step in range(cut.steps_of(epoch))
        ]
        assert pieces == whole
        assert [cut.offset_of(epoch) for epoch in epochs] == list(range(0, plan.steps, steps))


def test_ten_seeds_and_ten_epochs_give_a_hundred_orders():
    orders = {tuple(epoch_order(seed, epoch, 30).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_the_order_is_numpys_own():
    expected = np.random.default_rng([1338, 4]).permutation(100)
    assert np.array_equal(epoch_order(1338, 4, 100), expected)


def test_the_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 3


def test_shuffling_in_batches_keeps_each_batch_together():
    plan = BatchPlan(20, 6, "batch", 3)
    assert sorted(plan.rows_of(0, 1).tolist()) == list(range(6, 12))
    assert plan.rows_of(0, 1).tolist() != plan.rows_of(1, 1).tolist()


@pytest.mark.parametrize(
    ("batch_size", "steps", "expected"),
    [(None, None, 32), (None, 7, 15), (8, 7, 8), (8, None, 8)],
    ids=["default", "from-steps", "both", "given"],
)
def test_the_batch_size_is_found_as_in_keras(batch_size, steps, expected):
    assert plan_batches(100, batch_size, steps, True, 0).batch_size == expected


@pytest.mark.parametrize(
    ("rows", "batch_size", "steps", "message"),
    [
        (0, 8, None, r"^Expected at least one example, got 0.$"),
        (5, 0, None, r"^Expected batch_size of at least 1, a whole number, got 0.$"),
        (5, 2.5, None, r"^Expected batch_size of at least 1, a whole number, got 2.5.$"),
        (5, True, None, r"^Expected batch_size of at least 1, a whole number, got True.$"),
        (5, 8, -1, r"^Expected steps_per_epoch of at least 1, a whole number, got -1.$"),
    ],
    ids=["no-rows", "zero", "fraction", "bool", "negative-steps"],
)
def test_impossible_batches_are_refused(rows, batch_size, steps, message):
    with pytest.raises(UsageError, match=message):
        plan_batches(rows, batch_size, steps, True, 0)


X, Y = np.random.default_rng(0).random((4, 8, 8, 1), np.float32), np.array([0, 1, 2, 0])
WRONG_BATCHES = {
    "shape": ((X[:, :, :6], Y), r"images of shape \(8, 8, 1\), got \(8, 6, 1\)"),
    "channels": ((X.repeat(3, -1), Y), r"images of shape \(8, 8, 1\), got \(8, 8, 3\)"),
    "class": ((X, Y + 5), "class numbers from 0 to 2, one for each output, got 7"),
    "negative": ((X, Y - 1), "class numbers from 0 to 2, one for each output, got -1"),
    "one-hot": ((X, np.eye(4)[Y]), r"class numbers of shape \(n,\) for sparse_categ"),
    "rows": ((X, Y[:3]), r"the same number of rows in x, y and sample_weight, got \[3, 4\]"),
    "weights": ((X, Y, np.ones(3)), r"the same number of rows in x, y and sample_weight, got \[3, 4\]"),
    "no targets": ((X,), "targets y for the loss, got none"),
    "text": ((X, np.array(["a", "b", "c", "d"])), "numbers as y, got an array of type <U1"),
    "objects": ((X.astype(object), Y), "numbers as x, got an array of type object"),
    "four": ((X, Y, None, None), r"a batch of \(x, y\) or \(x, y, sample_weight\), got a tuple of 4"),
    "number": (5, "arrays as x, got a int"),
    "nothing": (None, "an array as x, got None"),
    "dict": ({"x": X, "y": Y}, "x as an array, or a dict of keras_tensor.*, got a dict of x, y"),
    "lists": ((X.tolist(), Y.tolist()), "arrays as x, got a float"),
    "empty": ((X[:0], Y[:0]), "at least one row, got none"),
}


class Batches(keras.utils.PyDataset):
    """Batches as they are given."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def small_network():
    layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_a_wrong_batch_of_a_stream_is_named(name, engine):
    batch, found = WRONG_BATCHES[name]
    model = small_network()
    with pytest.raises(UsageError, match=rf"^Batches\[1\] of the training data: Expected {found}"):
        convscope.fit(model, Batches([(X, Y), batch]), engine=engine, shuffle=False, verbose=0)
    with pytest.raises(UsageError, match=f"^Batch 2 of the training data: Expected {found}"):
        batches = iter([(X, Y), batch, (X, Y)])
        convscope.fit(model, (one for one in batches), steps_per_epoch=3, engine=engine, verbose=0)


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_a_wrong_batch_of_validation_prediction_or_loader_is_named(engine):
    model, good, wrong = small_network(), (X, Y), (X[:, :, :6], Y)
    with pytest.raises(UsageError, match=r"^Batches\[1\] of the validation data: Expected images of shape"):
        convscope.fit(model, X, Y, validation_data=Batches([good, wrong]), engine=engine, verbose=0)
    with pytest.raises(UsageError, match=r"^Batches\[0\] of the input: Expected images of shape"):
        convscope.predict(model, Batches([(wrong[0],)]), engine=engine)
    loader = torch.utils.data.DataLoader([tuple(map(torch.tensor, wrong))], batch_size=None)
    with pytest.raises(UsageError, match=r"^Batch 1 of the training data: Expected images of shape"):
        convscope.fit(model, loader, engine=engine, verbose=0)


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_a_loader_trains_as_the_stream_of_its_batches(engine):
    rows = [(torch.tensor(x), int(y)) for x, y in zip(X, Y, strict=True)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    results = []
    for data in (loader, Batches([(X[:2], Y[:2]), (X[2:], Y[2:])])):
        keras.utils.set_random_seed(0)
        history = convscope.fit(
            small_network(), data, epochs=2, shuffle=False, engine=engine, precision="float32", verbose=0
        )
        results.append(history.history["loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_a_model_that_trains_in_its_own_way_takes_what_it_likes():
    class Sums(keras.Sequential):
        def train_step(self, data):
            return {"loss": sum(part.sum() for part in data)}

    model = Sums([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    stream = read_input((batch for batch in ()), None, None, None)
    assert with_checks(model, stream, "training data").check is None
    assert with_checks(small_network(), stream, "training data").check is not None
