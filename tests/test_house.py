"""The house keeps its walls: who may import whom, what the public door shows, what loads with it."""

import ast
import os
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

PROJECT = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))


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


def test_modules_import_in_the_order_of_the_packages():
    """And heavy libraries where they belong; pyproject.toml has the contracts."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=SOURCE.parents[1],
        env=os.environ | {"PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_architecture_page_names_every_package_in_its_layer():
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", page, re.MULTILINE)
    named = {
        package.removesuffix("/").removesuffix(".py"): int(layer)
        for layer, packages in rows
        for package in re.findall(r"`([\w./]+)`", packages)
    }
    contract = next(one for one in PROJECT["tool"]["importlinter"]["contracts"] if one["id"] == "layers")
    layers = enumerate(reversed(contract["layers"]))
    assert named == {package: number for number, layer in layers for package in layer.split(" | ")}


def test_only_the_command_line_prints_or_exits():
    speaking = [
        f"{name_of(path)}:{node.lineno}"
        for path in modules()
        if not name_of(path).startswith("cli.")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "exit", "quit", "sys.exit")
    ]
    assert not speaking


def declared(requirements):
    return {re.match(r"[\w-]+", one)[0].lower().replace("-", "_") for one in requirements}


def test_whatever_is_imported_is_declared():
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    known = declared(project["dependencies"]) | {
        name for extra in extras.keys() - {"test", "dev", "bench", "all"} for name in declared(extras[extra])
    }
    of_module = packages_distributions()
    imported = {name.split(".")[0] for path in modules() for name in imports_of(path)}
    strangers = imported - sys.stdlib_module_names - {"convscope"}
    distributions = {
        name: {one.lower().replace("-", "_") for one in of_module.get(name, [name])} for name in strangers
    }
    assert not {name for name in strangers if not distributions[name] & known}
    assert {"requests", "llvmlite", "h5py", "threadpoolctl", "markupsafe"} <= strangers  # the walk sees them


def test_a_frozen_class_that_holds_arrays_says_what_makes_two_of_it_the_same():
    """The == that dataclasses make takes arrays for numbers, and raises; so does their hash."""
    classes = [
        node for path in modules() for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)
    ]
    for node in classes:
        made = [ast.unparse(one) for one in node.decorator_list]
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


def test_what_an_interpreter_without_libraries_is_tried_with_needs_none():
    script = (SOURCE.parents[1] / ".ci/run").read_text(encoding="utf-8")
    (code,) = re.findall(r"-W error -c '(import convscope[^']*)'", script)
    alone = [
        sys.executable,
        "-I",
        "-S",
        "-W",
        "error",
        "-c",
        f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); {code}",
    ]
    subprocess.run(alone, check=True)


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
