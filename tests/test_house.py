"""The house keeps its walls: who may import whom, what the public door shows, what loads with it."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import convscope

SOURCE = Path(convscope.__file__).parent

# Each room and its floor; a module imports only from a lower floor, or from its own folder.
FLOORS = {
    "errors": 0,
    "_keras_internals": 0,
    "_torch_internals": 0,
    "glossary": 0,
    "runs": 1,
    "arithmetic": 1,
    "environment": 1,
    "preprocessing": 1,
    "data": 2,  # brings images to one size by preprocessing's own function: there is no second one
    "augmentation": 1,
    "networks": 2,
    "lowering": 2,
    "training": 3,
    "evaluation": 3,
    "model_files": 3,
    "inspection": 3,
    "export": 4,
    "plotting": 4,
    "prediction": 5,
    "probes": 5,
    "report": 5,
    "experiment": 6,
    "recipes": 7,
    "teaching": 7,
    "doctor": 7,
    "lessons": 8,
    "grading": 8,
    "cli": 8,
}
# Where the heavy libraries may be imported: a room, or one module of it.
KERAS = (
    "_keras_internals",
    "networks",
    "lowering",
    "training",
    "inspection",
    "model_files",
    "export",
    "experiment",
    "doctor",
)
TORCH = (
    "_torch_internals",
    "preprocessing",
    "augmentation",
    "lowering",
    "training",
    "inspection",
    "model_files",
    "export",
    "prediction",
    "environment",
)
MATPLOTLIB = ("plotting",)
HEAVY = {"keras": KERAS, "torch": TORCH, "matplotlib": MATPLOTLIB, "numba": ("lowering",)}


def modules():
    """List the package's modules; the cells of a lesson are data."""
    return sorted(path for path in SOURCE.rglob("*.py") if "lessons/sources" not in path.as_posix())


def name_of(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


@cache
def tree_of(path):
    return ast.parse(path.read_text())


@cache
def imports_of(path):
    """List what a module imports when it runs, at its top or in a function; not what only types need."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree_of(path))
    return found


def rooms_imported(path):
    own = [name.split(".")[1] for name in imports_of(path) if name.startswith("convscope.")]
    return {room for room in own if room in FLOORS}


def test_the_architecture_page_names_every_room_on_its_floor():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| (.+?) \|", page, re.MULTILINE)
    named = {
        room.removesuffix("/").removesuffix(".py"): int(floor)
        for floor, rooms in rows
        for room in re.findall(r"`([\w./]+)`", rooms)
    }
    assert named == FLOORS


every_module = pytest.mark.parametrize("path", modules(), ids=name_of)


@every_module
def test_a_module_imports_only_from_below_or_from_its_own_folder(path):
    room = name_of(path).split(".")[0]
    if room in ("__init__", "__main__"):
        return  # the public door points at every floor, by name, and loads none
    assert room in FLOORS, f"give {room} a floor"
    upward = {other for other in rooms_imported(path) if other != room and FLOORS[other] >= FLOORS[room]}
    assert not upward


@every_module
def test_heavy_libraries_stay_in_their_rooms(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    room = name_of(path).split(".")[0]
    assert not [library for library in roots & set(HEAVY) if room not in HEAVY[library]]


@every_module
def test_only_the_command_line_prints_or_exits(path):
    calls = {
        node.func.id
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if name_of(path).split(".")[0] != "cli":
        assert not calls & {"print", "exit", "quit"}
        assert "sys.exit" not in path.read_text()


def declared(requirements):
    return {re.match(r"[\w-]+", one)[0].lower().replace("-", "_") for one in requirements}


def test_whatever_is_imported_is_declared():
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    known = declared(project["dependencies"]) | {
        name
        for extra in ("attribution", "labels", "parquet", "notebooks", "onnx", "heic")
        for name in declared(extras[extra])
    }
    of_module = packages_distributions()
    imported = {name.split(".")[0] for path in modules() for name in imports_of(path)}
    strangers = imported - sys.stdlib_module_names - {"convscope"}
    distributions = {
        name: {one.lower().replace("-", "_") for one in of_module.get(name, [name])} for name in strangers
    }
    assert not {name for name in strangers if not distributions[name] & known}
    assert {"requests", "llvmlite", "h5py", "threadpoolctl", "markupsafe"} <= strangers  # the walk sees them


@every_module
def test_a_frozen_class_that_holds_arrays_says_what_makes_two_of_it_the_same(path):
    """The == that dataclasses make takes arrays for numbers, and raises; so does their hash."""
    for node in ast.walk(tree_of(path)):
        made = [ast.unparse(one) for one in getattr(node, "decorator_list", ())]
        if not any(one.startswith("dataclass(frozen=True") and "eq=False" not in one for one in made):
            continue
        types = " ".join(ast.unparse(one.annotation) for one in node.body if isinstance(one, ast.AnnAssign))
        assert not re.search(r"NDArray|ndarray|\bTensor\b", types), f"give {node.name} eq=False"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_neither_torch_nor_keras():
    heavy = run(
        "import convscope, sys; print({'torch', 'keras', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    assert heavy.strip() == "set()"


def test_showing_help_loads_neither_torch_nor_keras():
    code = (
        "import sys; sys.argv = ['convscope', '--help']\n"
        "from convscope.cli import main\n"
        "try: main()\n"
        "except SystemExit: print({'torch', 'keras', 'matplotlib', 'sklearn', 'numpy'} & set(sys.modules))"
    )
    assert run(code).strip().endswith("set()")


@pytest.mark.parametrize("name", convscope.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(convscope, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = convscope.nothing
