"""Files that somebody made to harm, or that a disk has damaged: an error in a line or two, nothing else."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
from bundle_cases import copy_of, read_zip, rewrite_config, small_network, write_zip
from keras import layers

import convscope
from convscope.errors import ConvscopeError, DataError
from convscope.export import load_bundle
from convscope.model_files import allowed, hdf5, load_model, models
from convscope.model_files.allowed import read_config

SOURCE = Path(convscope.__file__).parent


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A ``.keras`` file; copy it before changing it."""
    file = tmp_path_factory.mktemp("small") / "small.keras"
    small_network().save(file)
    return file


def peak_kilobytes():
    """The most memory that this process had so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def refuse(file, message):
    with pytest.raises(DataError, match=message) as caught:
        load_model(file)
    assert str(caught.value).count("\n") <= 1
    assert caught.value.exit_code == 3


# No pickle ------------------------------------------------------------------------------------------------

FORBIDDEN = (
    r"\bpickle\b(?!d)|allow_pickle=True|weights_only=False|\btorch\.load\((?!.*weights_only=True)"
    r"|\bjoblib\b|\bdill\b|\bmarshal\b|(?<![.\w])(eval|exec)\("
)


def test_no_module_unpickles_or_runs_text():
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        code = "\n".join(line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
        code = re.sub(r'"""[\s\S]*?"""', "", code)
        found += [f"{path}: {part[0]}" for part in re.finditer(FORBIDDEN, code)]
    assert not found


# What a configuration may name ----------------------------------------------------------------------------


def layer(name, module="keras.layers", **settings):
    return {
        "module": module,
        "class_name": name,
        "config": {"name": "trap", **settings},
        "registered_name": None,
    }


TRAPS = {
    "Lambda": layer("Lambda"),
    "TorchModuleWrapper": layer("TorchModuleWrapper", module_bytes="gASV"),
    "TFSMLayer": layer("TFSMLayer", filepath="/etc"),
    "JaxLayer": layer("JaxLayer"),
    "StringLookup": layer("StringLookup", vocabulary="/etc/passwd"),
    "TextVectorization": layer("TextVectorization", vocabulary="/etc/passwd"),
    "a wrapper": layer("TimeDistributed", layer=layer("Lambda")),
    "a layer of another module": layer("Dense", module="os"),
    "a private module": layer("Dense", module="keras.src.layers.core.lambda_layer"),
    "a Lambda of a private module": layer("Lambda", module="keras.src.layers.core.lambda_layer"),
    "a function as a layer": layer("system", module="os"),
    "another package": layer("Preset", module="keras_hub.models"),
    "a registered class": layer("Dense") | {"registered_name": "evil>Dense"},
    "an unregistered class": layer("Evil", module=None),
    "a function of Keras": layer("get_file", module="keras.utils"),
    "a function": {
        "class_name": "function", "module": "builtins", "config": "get_file", "registered_name": "get_file",
    },
    "a function of another module": {
        "class_name": "function", "module": "os", "config": "relu", "registered_name": "relu",
    },
    "a registered function": {
        "class_name": "function", "module": "builtins", "config": "relu", "registered_name": "evil>relu",
    },
    "a lambda": {"class_name": "__lambda__", "config": {"value": ["4wEAAAA=", None, None]}},
    "a type": {"class_name": "__typespec__", "spec_name": "x", "module": "os", "config": []},
    "an array of objects": {"class_name": "__numpy__", "config": {"value": [], "dtype": "O"}},
    "a number for a name": {"class_name": 7, "config": {}},
    "a list for a function": {"class_name": "function", "module": "builtins", "config": [[]]},
    "a list for a type": {"class_name": "__numpy__", "config": {"value": [], "dtype": []}},
    "a list for a module": {"class_name": "Dense", "module": ["keras.layers"], "config": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize("deep", [False, True], ids=["layer", "setting"])
def test_only_layers_of_image_classifiers_are_built(small_file, tmp_path, name, deep):
    def plant(config):
        place = config["config"]["layers"]
        if deep:
            place[1]["config"]["kernel_initializer"] = TRAPS[name]
        else:
            place.insert(1, TRAPS[name])

    refuse(rewrite_config(small_file, plant, tmp_path / "trap.keras"), "only layers of image classifiers in")


def test_code_in_a_lambda_never_runs(tmp_path):
    mark = tmp_path / "it-ran"
    mark_it = layers.Lambda(
        lambda x, file=str(mark): (os.close(os.open(file, os.O_CREAT)), x)[1], name="lambda"
    )
    model = keras.Sequential([keras.Input((2,)), mark_it])
    mark.unlink()  # building the model ran it
    model.save(tmp_path / "trap.keras")
    refuse(tmp_path / "trap.keras", r"got keras\.layers\.Lambda 'lambda'")
    assert not mark.exists()


def test_losses_and_optimizers_in_a_file_are_never_looked_at(small_file, tmp_path):
    def plant(config):
        config["compile_config"] = {"loss": TRAPS["a lambda"], "optimizer": TRAPS["Lambda"]}

    assert load_model(rewrite_config(small_file, plant, tmp_path / "model.keras")).name == "small"


MODEL = b'{"module": "keras", "class_name": "Model", "config": '


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "to be JSON"),
        (b"[]", "to hold a Keras model, got something else"),
        (b'{"class_name": "Dense", "config": {}}', "to hold a Keras model"),
        (b'{"class_name": {}, "config": {}}', "to hold a Keras model"),
        (b"[" * 100_000, "to be JSON"),
        (MODEL + b"[" * 500 + b"]" * 500 + b"}", "got a maze"),
        (MODEL + b"[" + b"{}," * 2_000 + b"{}]}", "got a maze"),
        (MODEL + b"1" * 6000 + b"}", "to be JSON"),
        ("{}".encode("utf-16"), "to hold a Keras model"),
        (b"\xff\xfe\x00", "to be JSON"),
    ],
    ids=["empty", "list", "layer", "object", "brackets", "deep", "wide", "long number", "UTF-16", "no text"],
)
def test_a_configuration_that_is_none_is_refused(content, message, monkeypatch):
    monkeypatch.setattr(allowed, "MOST_VALUES", 1_000)
    with pytest.raises(DataError, match=message):
        read_config(content, "model.keras")


def test_too_many_layers_are_refused():
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer("Dense")] * 5001}}
    with pytest.raises(DataError, match=r"Expected at most 5,000 layers in model\.keras"):
        read_config(json.dumps(config).encode(), "model.keras")


# How large a network may be -------------------------------------------------------------------------------


def change_layer(number, **settings):
    def change(config):
        layers_ = config["config"]["layers"]
        layers_[number]["config"].update(settings)
        config["config"].pop("build_input_shape", None)
        for one in layers_:
            one.pop("build_config", None)

    return change


BOMBS = {
    "a huge input": (change_layer(0, batch_shape=[None, 300_000, 300_000, 1]), "compute at most"),
    "many filters": (change_layer(1, filters=10**9), "compute at most|as many weights"),
    "a huge kernel": (
        change_layer(1, kernel_size=[20_000, 20_000], padding="same"),
        "compute at most|as many",
    ),
    "many units": (change_layer(6, units=10**9), "compute at most|as many weights"),
    "some more units": (change_layer(6, units=50_000), "as many weights in the file as"),
    "an impossible number": (change_layer(6, units=10**30), "compute at most"),
    "a negative number": (change_layer(6, units=-3), "to be a Keras model, got"),
    "no number": (change_layer(6, units="ten"), "to be a Keras model, got"),
    "no strides": (change_layer(1, strides=[0, 0]), "to be a Keras model, got"),
    "an unknown setting": (change_layer(1, wobble=3), "to be a Keras model, got"),
    "an unknown activation": (change_layer(1, activation="get_file"), "to be a Keras model, got"),
}


@pytest.mark.parametrize(
    "dtype",
    ["complex64", "string", "int8_from_float32", "float8", "int8", "int32", "bool", ""],
)
@pytest.mark.parametrize("as_policy", [True, False], ids=["policy", "text"])
def test_numbers_that_no_classifier_computes_with_are_refused(small_file, tmp_path, dtype, as_policy):
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": dtype}}
    change = change_layer(1, dtype=policy if as_policy else dtype)
    message = f"^Expected a dtype that images and weights can have, such as float32, in .*, got '{dtype}'"
    refuse(rewrite_config(small_file, change, tmp_path / "odd.keras"), message)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "mixed_float16"])
def test_floating_point_numbers_of_every_width_are_taken(small_file, tmp_path, dtype):
    model = load_model(rewrite_config(small_file, change_layer(1, dtype=dtype), tmp_path / "other.keras"))
    assert model.layers[0].dtype_policy.name == dtype
    whole = keras.Sequential([keras.Input((4, 4, 1), dtype="uint8"), keras.layers.Rescaling(1 / 255)])
    whole.save(tmp_path / "whole.keras")
    assert load_model(tmp_path / "whole.keras").inputs[0].dtype == "uint8"


@pytest.mark.posix("the peak of a process's memory")
@pytest.mark.parametrize("name", BOMBS)
def test_networks_that_would_fill_the_memory_are_refused_before_they_do(small_file, tmp_path, name):
    change, message = BOMBS[name]
    before = peak_kilobytes()
    refuse(rewrite_config(small_file, change, tmp_path / "bomb.keras"), message)
    grown = peak_kilobytes() - before
    assert grown < 200_000  # kilobytes


@pytest.mark.parametrize("size", [3_000, 100_000], ids=["gigabytes", "terabytes"])
def test_layers_that_blow_images_up_are_refused(tmp_path, size):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.UpSampling2D(2), layers.GlobalMaxPooling2D(), layers.Dense(2)]
    )
    model.save(tmp_path / "model.keras")
    change = change_layer(1, size=[size, size])
    refuse(rewrite_config(tmp_path / "model.keras", change, tmp_path / "bomb.keras"), "compute at most")


# The archive ----------------------------------------------------------------------------------------------


def with_member(name, content=b"x"):
    return lambda members: write_members([*members.items(), (name, content)])


def write_members(pairs, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in pairs:
            file.writestr(name, content)
    return buffer.getvalue()


def twice(members):
    first = write_members([*members.items(), ("config.jsom", members["config.json"])])
    return first.replace(b"config.jsom", b"config.json")


def encrypted(members):
    content = bytearray(write_members(members.items()))
    place = content.find(b"PK\1\2")
    while place >= 0:
        content[place + 8] |= 1
        place = content.find(b"PK\1\2", place + 1)
    return bytes(content)


def declare_size(name, size):
    """Write a size into the central directory that the member does not have."""

    def damage(members):
        content = bytearray(write_members(members.items()))
        place = content.find(b"PK\1\2")
        while place >= 0:
            length = struct.unpack_from("<H", content, place + 28)[0]
            if content[place + 46 : place + 46 + length] == name.encode():
                struct.pack_into("<I", content, place + 24, size)
            place = content.find(b"PK\1\2", place + 1)
        return bytes(content)

    return damage


ARCHIVES = {
    "a path outside": (with_member("../../evil.py"), "Expected only metadata.json"),
    "an absolute path": (with_member("/etc/passwd"), "Expected only metadata.json"),
    "assets": (with_member("assets/vocabulary.txt"), "Expected only metadata.json"),
    "weights as npz": (with_member("model.weights.npz"), "Expected only metadata.json"),
    "escapes in a name": (with_member("\x1b[2Jevil"), "Expected only metadata.json"),
    "a member twice": (twice, "Expected each member once"),
    "no configuration": (
        lambda members: write_members([("metadata.json", members["metadata.json"])]),
        "Expected config.json in",
    ),
    "a compression bomb": (
        lambda members: (
            write_members([*members.items(), ("metadata.json", b" " * 2**20)][1:], zipfile.ZIP_DEFLATED)
            and write_members(
                [("config.json", b" " * (8 * 2**20)), ("model.weights.h5", b"")], zipfile.ZIP_DEFLATED
            )
        ),
        "to be compressed at most 100-fold",
    ),
    "a configuration of 20 MB": (
        lambda _: write_members([("config.json", b" " * (20 * 2**20))]),
        "to have at most 16 MB",
    ),
    "a declared terabyte": (declare_size("model.weights.h5", 2**32 - 2), "to have at most 2,048 MB"),
    "a declared gigabyte": (declare_size("model.weights.h5", 2**30), "to be compressed at most|to be whole"),
    "fewer bytes than it has": (declare_size("config.json", 100), "to be a Keras model|to be whole"),
    "encryption": (encrypted, "is encrypted"),
    "an empty file": (lambda _: b"", "File is not a zip file"),
    "text": (lambda _: b"hello", "File is not a zip file"),
    "half of it": (lambda members: write_members(members.items())[:9000], "File is not a zip file"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_with_anything_else_in_them_are_refused(small_file, tmp_path, name):
    damage, message = ARCHIVES[name]
    file = tmp_path / "inside" / "trap.keras"
    file.parent.mkdir()
    file.write_bytes(damage(read_zip(small_file)))
    refuse(file, message)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "trap.keras"]  # nothing was unpacked


def test_a_flipped_bit_is_noticed(small_file, tmp_path):
    content = bytearray(small_file.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.keras").write_bytes(content)
    refuse(tmp_path / "flipped.keras", "Bad CRC-32")


def test_arrays_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(models, "ARRAY_BYTES", 2**20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("scale.npy", b"\0" * (models.ARRAY_BYTES + 1))
    with pytest.raises(DataError, match=r"Expected preprocess\.npz to hold at most 1 MB"):
        models.read_arrays(buffer.getvalue(), "preprocess.npz")


def test_an_array_that_declares_more_than_it_has_is_refused():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("scale.npy", header.getvalue() + b"\0" * 16)
    with pytest.raises(DataError, match=r"Expected preprocess\.npz to hold NumPy arrays"):
        models.read_arrays(buffer.getvalue(), "preprocess.npz")


def test_a_member_that_is_no_array_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("known.npy", b"no array")
    with pytest.raises(DataError, match=r"Expected novelty\.npz to hold NumPy arrays, got known"):
        models.read_arrays(buffer.getvalue(), "novelty.npz")


# HDF5 -----------------------------------------------------------------------------------------------------


def hdf5_file(path, build):
    with h5py.File(path, "w") as file:
        build(file)
    return path


def external_link(file):
    file["layers"] = h5py.ExternalLink("/etc/passwd", "/")


def external_data(file):
    file.create_dataset("vars/0", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual_data(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file.create_virtual_dataset("vars/0", layout)


def endless(file):
    file.create_group("a")["b"] = file["/"]


def objects(file):
    file.create_dataset("vars/0", data=["text"], dtype=h5py.string_dtype())


HDF5_TRAPS = {
    "external link": (external_link, "a link at layers"),
    "soft link": (lambda file: file.__setitem__("x", h5py.SoftLink("/vars")), "a link at x"),
    "external data": (external_data, "data in another file at vars/0"),
    "virtual data": (virtual_data, "data in another file at vars/0"),
    "compressed data": (
        lambda file: file.create_dataset("vars/0", data=np.zeros(10**6), compression="gzip"),
        "compressed data at vars/0",
    ),
    "a declared terabyte": (
        lambda file: file.create_dataset("vars/0", (2**38,), "f4"),
        "bytes at vars/0",
    ),
    "less than declared": (
        lambda file: file.create_dataset("vars/0", (64,), "f4"),
        "fewer bytes than it says",
    ),
    "a loop": (endless, "too many objects"),
    "text": (objects, "no plain numbers at vars/0"),
    "a type": (lambda file: file.__setitem__("x", np.dtype("f4")), "neither group nor dataset at x"),
}


@pytest.mark.parametrize("name", HDF5_TRAPS)
def test_weights_are_plain_numbers_in_the_file_itself(tmp_path, name):
    build, message = HDF5_TRAPS[name]
    file = hdf5_file(tmp_path / "weights.h5", build)
    with pytest.raises(hdf5.RefusedError, match=message):
        hdf5.extract(file, tmp_path / "out.safetensors", 10_000)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_refusal_of_the_reader_reaches_the_person(small_file, tmp_path):
    file = hdf5_file(tmp_path / "weights.h5", external_link)
    members = read_zip(small_file) | {"model.weights.h5": file.read_bytes()}
    refuse(write_zip(tmp_path / "trap.keras", members), "to be a Keras model, got a link at layers")


READERS = {
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "weights that crash their reader"),
    "hangs": ("import time; time.sleep(60)", "weights that take minutes to read"),
    "fails without a word": ("raise SystemExit(1)", "weights that crash their reader"),
    "fills the memory": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28)); b'x' * 2**30",
        "got MemoryError",
    ),
}


READER_NAMES = [name for name in READERS if name != "fills the memory"]
NEEDS_LIMITS = pytest.param("fills the memory", marks=pytest.mark.posix("limits of a process"))


@pytest.mark.parametrize("name", [*READER_NAMES, NEEDS_LIMITS])
def test_a_reader_that_dies_takes_nobody_with_it(small_file, tmp_path, monkeypatch, name):
    code, message = READERS[name]
    script = tmp_path / "reader.py"
    script.write_text(code)
    monkeypatch.setattr(models, "HDF5_READER", script)
    monkeypatch.setattr(models, "READ_SECONDS", 1)
    refuse(small_file, message)


@pytest.mark.posix("limits of a process")
def test_the_reader_limits_its_memory(tmp_path):
    code = (
        "import sys, resource; sys.argv = ['x']; import runpy\n"
        f"module = runpy.run_path({hdf5.__file__!r}, run_name='reader')\n"
        "module['_set_limits'](1000)\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(hdf5.BASE_BYTES + 4000), "0"]


def test_a_system_that_knows_a_limit_by_name_only_goes_without(tmp_path, monkeypatch):
    """As macOS does with the address space, and Windows with all of them."""
    tried = []

    def refuse_to(limit, _values):
        tried.append(limit)
        raise ValueError("current limit exceeds maximum limit")

    system = SimpleNamespace(RLIMIT_AS=9, RLIMIT_CPU=0, setrlimit=refuse_to)
    monkeypatch.setitem(sys.modules, "resource", system)
    hdf5._set_limits(1000)
    assert tried == [9, 0]


# Damage at random -----------------------------------------------------------------------------------------


def mutate(content: bytes, generator) -> bytes:
    """Damage bytes as disks, networks and people do."""
    data = bytearray(content)
    kind = generator.integers(6)
    place, length = int(generator.integers(len(data))), int(generator.integers(1, 64))
    if kind == 0:
        for _ in range(int(generator.integers(1, 20))):
            data[int(generator.integers(len(data)))] = int(generator.integers(256))
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = generator.bytes(length)
    elif kind == 4:
        data[place : place + length] = bytes(len(data[place : place + length]))
    else:
        other = int(generator.integers(len(data)))
        data[place : place + length] = data[other : other + length]
    return bytes(data)


def mend(content: bytes) -> bytes:
    """Write the right checksums into a damaged archive, so that the damage is met further inside."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            file.namelist()
            members = []
            for info in file.infolist():
                start = info.header_offset + 30 + len(info.filename) + len(info.extra)
                members.append((info.filename, content[start : start + info.compress_size]))
        return write_members(members)
    except Exception:  # beyond repair: as good a test as any
        return content


def mutate_member(content: bytes, name: str, generator) -> bytes:
    """Damage one member of an archive, whose checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    members[name] = mutate(members[name], generator)
    return write_members(members.items())


def mutate_json(content: bytes, generator) -> bytes:
    """Change one value anywhere in a JSON document."""
    document = json.loads(content)
    place, key = document, None
    for _ in range(50):
        if isinstance(place, dict | list) and len(place):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            parent, key = place, keys[int(generator.integers(len(keys)))]
            place = parent[key]
            if not isinstance(place, dict | list) or generator.random() < 0.1:
                break
    odd = [
        None,
        -1,
        0,
        1,
        2**31,
        10**18,
        0.5,
        1e300,
        "",
        "x",
        "relu",
        [],
        {},
        [[]],
        True,
        {"class_name": "x"},
    ]
    parent[key] = odd[int(generator.integers(len(odd)))]
    return json.dumps(document).encode()


def damage_run(run: Path, generator) -> None:
    """Damage one file of a run."""
    names = [
        "run.json", "calibration.json", "statistics.json", "preprocess.json", "preprocess.npz",
        "novelty.npz", "weights.safetensors", "model.keras",
    ]  # fmt: skip
    file = run / names[int(generator.integers(len(names)))]
    content = file.read_bytes()
    if file.suffix == ".json" and generator.random() < 0.7:
        content = mutate_json(content, generator)
    elif file.suffix == ".npz" and generator.random() < 0.5:
        content = mend(mutate(content, generator))
    elif file.suffix == ".keras":
        content = damage_keras(content, generator)
    else:
        content = mutate(content, generator)
    file.write_bytes(content)


def damage_keras(content: bytes, generator) -> bytes:
    """Damage a ``.keras`` file: its archive, its configuration or its weights."""
    kind = generator.integers(10)
    if kind < 2:
        return mutate(content, generator)
    if kind < 4:
        return mutate_member(content, "config.json", generator)
    if kind < 6:
        return mutate_member(content, "model.weights.h5", generator)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    members["config.json"] = mutate_json(members["config.json"], generator)
    return write_members(members.items())


def survive(load, images) -> bool:
    """Load and predict; anything but success and an error of ours is a failure of the test."""
    try:
        assert np.isfinite(load()(images)).all()
    except ConvscopeError as error:
        assert str(error).count("\n") <= 1
        return False
    return True


def forward(model):
    return lambda images: keras.ops.convert_to_numpy(model(images.astype(np.float32), training=False))


# A tenth by default; CONVSCOPE_FULL=1 tries all two thousand.
MANY = 2_000 if os.environ.get("CONVSCOPE_FULL") else 200


@pytest.mark.posix("the peak of a process's memory")
@pytest.mark.parametrize("count", [30, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_damaged_runs_and_networks_are_refused_or_work(digits_run, tmp_path, count):
    generator = np.random.default_rng(20_250_101)
    images = np.zeros((1, 28, 28, 1), np.uint8)
    before = peak_kilobytes()
    outcomes = []
    for number in range(count):
        if number % 4:
            run = copy_of(digits_run, tmp_path / str(number))
            damage_run(run, generator)
            outcomes.append(survive(lambda run=run: load_bundle(run).predict, images))
        else:
            file = tmp_path / f"{number}.keras"
            file.write_bytes(damage_keras((digits_run / "model.keras").read_bytes(), generator))
            outcomes.append(survive(lambda file=file: forward(load_model(file)), images))
    assert 0 < sum(outcomes) < count  # some damage does not matter, and some does
    assert peak_kilobytes() - before < 500_000  # kilobytes


def test_the_damage_reaches_the_inside_of_archives(digits_run):
    content = (digits_run / "model.keras").read_bytes()
    damaged = content.replace(b'"units": 10', b'"units": 11')
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"), zipfile.ZipFile(io.BytesIO(damaged)) as file:
        file.read("config.json")
    with zipfile.ZipFile(io.BytesIO(mend(damaged))) as file:
        assert b'"units": 11' in file.read("config.json")


def test_a_configuration_is_rehearsed_once(tmp_path, monkeypatch, digits_run):
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path))
    rehearsed, rehearse = [], models._build_without_memory
    noted = lambda config: rehearsed.append(1) or rehearse(config)  # noqa: E731
    monkeypatch.setattr(models, "_build_without_memory", noted)
    first, second = (load_bundle(digits_run).model for _ in range(2))
    assert len(rehearsed) == 1
    assert [one.shape for one in first.get_weights()] == [one.shape for one in second.get_weights()]
    [file] = (tmp_path / "networks").iterdir()
    file.write_text("damaged")
    load_bundle(digits_run)
    assert len(rehearsed) == 2
    file.unlink()
    (tmp_path / "networks").rmdir()
    (tmp_path / "networks").write_text("in the way")
    load_bundle(digits_run)
    assert len(rehearsed) == 3
