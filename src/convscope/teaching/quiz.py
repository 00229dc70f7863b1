"""A quiz: random networks, whose output shapes and parameters the student predicts.

The answers are those of ``convscope.arithmetic``, and come with the formulas that give them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convscope.arithmetic import Shape, analyse_chain, show_shape
from convscope.errors import ArchitectureError, UsageError, expected_got
from convscope.teaching.lessons.notebooks import Lesson, parse_lesson

LETTERS = "abc"
LESSON = "8-quiz"
_INPUTS: tuple[Shape, ...] = ((28, 28, 1), (32, 32, 3), (48, 40, 3), (64, 64, 3), (27, 35, 1))


@dataclass(frozen=True)
class QuizLayer:
    """One layer to predict, and the answer; shapes have no batch axis."""

    name: str
    type: str
    settings: Mapping[str, Any]
    input_shape: Shape
    output_shape: Shape
    weight_shapes: tuple[tuple[int, ...], ...]
    parameters: int
    arithmetic: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"{self.type}({shown})"


@dataclass(frozen=True)
class QuizNetwork:
    """A random network, called by a letter."""

    name: str
    input_shape: Shape
    layers: tuple[QuizLayer, ...]

    @property
    def parameters(self) -> int:
        """Of all layers together."""
        return sum(layer.parameters for layer in self.layers)

    def __str__(self) -> str:
        lines = [f"{layer.name:28} {layer}" for layer in self.layers]
        return "\n".join([f"Network {self.name.upper()}, images of {show_shape(self.input_shape)}:", *lines])


def make_quiz(seed: int) -> tuple[QuizNetwork, ...]:
    """Make three random networks, each a little harder than the one before.

    Parameters
    ----------
    seed : int
        The same seed gives the same networks.

    Returns
    -------
    tuple of QuizNetwork

    Examples
    --------
    >>> quiz = make_quiz(1338)
    >>> [network.name for network in quiz]
    ['a', 'b', 'c']
    >>> quiz == make_quiz(1338)
    True
    """
    generator = random.Random(seed)  # noqa: S311  a quiz is not cryptography
    return tuple(_network(letter, 1 + level, generator) for level, letter in enumerate(LETTERS))


def _network(name: str, convolutions: int, generator: random.Random) -> QuizNetwork:
    """Draw layers until they fit behind each other."""
    while True:
        input_shape = generator.choice(_INPUTS)
        kinds = _draw_layers(convolutions, generator)
        try:
            return QuizNetwork(name, input_shape, tuple(_work_out_all(kinds, input_shape)))
        except ArchitectureError:
            continue  # a window became larger than its image


def _draw_layers(convolutions: int, generator: random.Random) -> list[tuple[str, dict[str, Any]]]:
    layers: list[tuple[str, dict[str, Any]]] = []
    for _ in range(convolutions):
        layers.append(("Conv2D", _draw_convolution(generator)))
        if generator.random() < 0.6:
            layers.append(("MaxPooling2D", {"pool_size": generator.choice((2, 2, 3))}))
    if generator.random() < 0.5:
        layers.append(("Dropout", {"rate": 0.25}))
    layers.append((generator.choice(("Flatten", "Flatten", "GlobalAveragePooling2D")), {}))
    if generator.random() < 0.5:
        layers.append(("Dense", {"units": generator.choice((32, 64, 100))}))
    return [*layers, ("Dense", {"units": generator.choice((2, 5, 10))})]


def _draw_convolution(generator: random.Random) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "filters": generator.choice((4, 6, 8, 16, 24, 32)),
        "kernel_size": generator.choice((1, 3, 3, 5, (3, 5))),
    }
    extra = generator.choice(("", "strides", "dilation_rate", "use_bias"))
    if extra:
        settings[extra] = False if extra == "use_bias" else 2
    settings["padding"] = generator.choice(("valid", "same"))
    return settings


def _work_out_all(kinds: list[tuple[str, dict[str, Any]]], input_shape: Shape) -> list[QuizLayer]:
    counts: Counter[str] = Counter()
    layers, shape = [], input_shape
    for (kind, settings), worked_out in zip(kinds, analyse_chain(kinds, input_shape), strict=True):
        if worked_out is None:
            raise LookupError(kind)  # the quiz draws only layers whose arithmetic is known
        counts[kind] += 1
        unasked = ("multiply-accumulates", "receptive field")
        layer = QuizLayer(
            name=f"{re.sub(r'(?<=[a-z])(?=[A-Z])', '_', kind).lower()}_{counts[kind]}",
            type=kind,
            settings=settings,
            input_shape=shape,
            output_shape=worked_out.output_shape,
            weight_shapes=tuple(weights for _, weights in worked_out.weight_shapes),
            parameters=worked_out.parameters,
            arithmetic=tuple(line for line in worked_out.lines if not line.startswith(unasked)),
        )
        layers.append(layer)
        shape = layer.output_shape
    return layers


def read_answer(text: str) -> tuple[int, ...]:
    """Read a shape or a number as a person types it: ``26x26x32``, ``(26, 26, 32)``, ``1,600``.

    >>> read_answer("26×26×32"), read_answer("(26, 26, 32)"), read_answer("216,650")
    ((26, 26, 32), (26, 26, 32), (216650,))
    """
    plain = re.sub(r"(?<=\d)[,.](?=\d{3}\b)", "", text.strip())  # 216,650 is one number
    words = [word for word in re.split(r"[\s,x×X()\[\]]+", plain) if word]
    if not words or not all(word.isdecimal() for word in words):
        raise UsageError(expected_got("whole numbers such as 26x26x32 or 320", repr(text.strip())))
    return tuple(int(word) for word in words)


def quiz_lesson(seed: int) -> Lesson:
    """Write the quiz as a lesson, from which both notebooks are built."""
    networks = make_quiz(seed)
    cells = [
        "# %% [markdown]\n# # Quiz\n#\n"
        "# Three random networks. For each layer: which shape comes out, and how many parameters has it?\n"
        "# Work it out with paper and pencil; the checks show the arithmetic when you ask them twice.",
        "# %%\nimport convscope\nfrom convscope import lessons\n\n"
        f"networks = lessons.make_quiz(seed={seed})\n"
        "layers_a, layers_b, layers_c = (network.layers for network in networks)",
    ]
    for number, network in enumerate(networks):
        cells += _quiz_cells(network, 2 * number + 1)
    return parse_lesson(LESSON, "\n\n".join(cells) + "\n")


def seed_of_quiz_in(folder: Path) -> int | None:
    """Read the seed of a quiz that was written into a folder; None where there is no quiz."""
    for notebook in sorted(folder.glob(f"*/{LESSON}.ipynb")):
        if found := re.search(r"make_quiz\(seed=(\d+)\)", notebook.read_text("utf-8", errors="replace")):
            return int(found[1])
    return None


def _quiz_cells(network: QuizNetwork, first_task: int) -> list[str]:
    letter = network.name
    heading = f"## Network {letter.upper()}: images of {show_shape(network.input_shape)}"
    table = [f"# | `{layer.name}` | `{layer}` |" for layer in network.layers]
    text = "\n".join(["# %% [markdown]", f"# {heading}", "#", "# | layer | |", "# | --- | --- |", *table])
    cells = [text]
    wanted = {
        "shapes": ("the output shape of each layer, without the batch axis", "output_shape"),
        "parameters": ("the number of parameters of each layer", "parameters"),
    }
    for task, (variable, (what, attribute)) in enumerate(wanted.items(), start=first_task):
        lines = [f'    "{layer.name}": {getattr(layer, attribute)},  # SOLUTION' for layer in network.layers]
        answer = "\n".join([f"{variable}_{letter} = {{", *lines, "}"])
        cells += [
            f'# %% [markdown] tags=["task"]\n# ### Task 8.{task}\n#\n# Predict {what}.',
            f'# %% tags=["answer"]\n{answer}',
            f'# %% tags=["check"]\nconvscope.check("8.{task}")',
        ]
    return cells
