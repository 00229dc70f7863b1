"""The sections of a report that follow from predictions and images alone.

They need neither network nor torch, so that a process that loads neither can make them beside the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convscope.contents import Contents
from convscope.errors import ConvscopeError
from convscope.plotting import embedded
from convscope.report.formatting import Album
from convscope.report.mistakes import cells, confusion, mistakes
from convscope.report.scores import calibration, scores
from convscope.report.summary import data, reproduction, summary
from convscope.runs import LOG_FILE, RunDirectory, log_into

_LOG = logging.getLogger(__name__)
# Bytes of pictures: those that everybody sees, and those behind the cells of the confusion matrix.
GALLERY, BEHIND_CELLS = 500_000, 500_000


@dataclass(frozen=True)
class Problem:
    """Why a section is missing."""

    problem: str


def attempt(make: Callable[..., Any], *arguments: Any) -> Any:
    """Make a section, or the reason why it is missing."""
    try:
        return make(*arguments)
    except ConvscopeError as error:
        return Problem(str(error))
    # A network that nobody foresaw may break a probe in any way; the rest of the report is worth having.
    except Exception as error:
        _LOG.warning("A section of the report could not be made.", exc_info=error)
        return Problem(f"{type(error).__name__}: {error} (see {LOG_FILE} in the run)")


def evaluated_sections(contents: Contents) -> dict[str, Any]:
    """Gather what these sections show; None for those that need predictions where there are none."""
    with log_into(RunDirectory(contents.path)), embedded():
        gallery = Album(contents.images, GALLERY)
        sections = {
            "summary": attempt(summary, contents),
            "data": attempt(data, contents, gallery),
            "reproduction": attempt(reproduction, contents),
            **dict.fromkeys(("scores", "confusion", "cells", "mistakes", "calibration")),
        }
        if contents.judged is None:
            return sections
        part, evaluation = contents.judged
        behind = Album(contents.images, BEHIND_CELLS)
        if part != "test":
            gallery = behind = Album(None)
        return sections | {
            "scores": attempt(scores, evaluation),
            "mistakes": attempt(mistakes, evaluation, gallery),
            "confusion": attempt(confusion, evaluation, gallery),
            "cells": attempt(cells, evaluation, behind),
            "calibration": attempt(calibration, contents, part, evaluation),
        }
