"""Running a notebook: in a kernel, which is a process of its own, with a limit on the time of the whole."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import tempfile
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from convscope.errors import UsageError, expected_got
from convscope.teaching.grading import MIME_TYPE
from convscope.teaching.lessons.notebooks import require_tool

Result = TypeVar("Result")

# Characters that the outputs of a notebook may have together; each message takes memory of its own.
OUTPUT_CAP = 64 * 2**20
PER_MESSAGE = 500

# Colours that are enough for grey images and a few lines; full colour takes three to five times the space.
PALETTE = 96
_EMBEDDED_FIGURE = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=]+")
# IPython's own exit() ends the kernel; Python's ends a cell, and the next one runs.
_EXIT_AS_IN_A_SCRIPT = "--IPKernelApp.exec_lines=from sys import exit, exit as quit"
# The debugger would warn about frozen modules otherwise.
_QUIET = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}


@dataclass(frozen=True)
class CellError:
    """A cell that failed; counted from 1, text cells too."""

    cell: int
    name: str
    message: str


@dataclass(frozen=True)
class Execution:
    """What came of running a notebook: a copy with outputs as far as it got, and what ended it early."""

    notebook: Any
    seconds: float
    timed_out: bool = False
    died: str = ""


def execute(notebook: Any, time_limit: float, environment: Mapping[str, str] | None = None) -> Execution:
    """Run all cells of a notebook in a fresh kernel, as ``execute_async`` does, and wait for it."""
    return wait_for(execute_async(notebook, time_limit, environment))


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for a coroutine that runs in a thread of its own; an interruption here cancels it there.

    In the main thread nbclient would take Ctrl-C for itself, and Jupyter has a loop there already.
    """
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(loop.run_forever)
        result = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return result.result()
        finally:
            asyncio.run_coroutine_threadsafe(_end_all(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.submit(loop.close)


async def _end_all() -> None:
    """Cancel what still runs in this loop, and wait until it has ended its kernels."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


async def execute_async(
    notebook: Any, time_limit: float, environment: Mapping[str, str] | None = None
) -> Execution:
    """Run all cells of a notebook in a fresh kernel; a cell that fails does not stop those behind it.

    The limit counts seconds of the whole, the start of the kernel included; ``environment`` is set beside
    this process's; the code runs in a temporary folder.
    """
    if time_limit <= 0:
        raise UsageError(expected_got("a time limit of more than 0 seconds", time_limit))
    require_tool("nbclient")
    from nbclient.exceptions import DeadKernelError

    copy: Any = require_tool("nbformat").from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    manager = _kernel_manager()
    variables = {**os.environ, **_QUIET, **(environment or {})}
    began = time.perf_counter()
    timed_out, died = False, ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            running = _client(copy, manager, folder).async_execute(env=variables, cleanup_kc=True)
            await asyncio.wait_for(running, time_limit)
        except TimeoutError:
            timed_out = True
        except DeadKernelError as error:
            # A kernel that the limit ends may look dead to its client first.
            timed_out = time.perf_counter() - began >= time_limit
            died = "" if timed_out else str(error)
        finally:
            if await manager.is_alive():
                await manager.shutdown_kernel(now=True)
    return Execution(copy, time.perf_counter() - began, timed_out, died)


def _client(notebook: Any, manager: Any, folder: str) -> Any:
    """Make what runs the cells; of a notebook that prints without end it keeps the beginning."""
    from nbclient import NotebookClient

    class Client(NotebookClient):
        kept = 0

        def output(self, outs: Any, msg: Any, display_id: str | None, cell_index: int) -> Any:
            content = msg["content"]
            data = content.get("data", {})
            self.kept += PER_MESSAGE + len(content.get("text", "")) + sum(map(len, map(str, data.values())))
            if self.kept > OUTPUT_CAP and MIME_TYPE not in data:
                return None
            return super().output(outs, msg, display_id, cell_index)

    return Client(
        notebook,
        km=manager,
        timeout=None,
        allow_errors=True,
        record_timing=False,
        shutdown_kernel="immediate",
        resources={"metadata": {"path": folder}},
    )


def _kernel_manager() -> Any:
    """Make a kernel of this very interpreter, whatever kernels are installed for the user."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(**get_kernel_dict([_EXIT_AS_IN_A_SCRIPT]))
    if manager.has_trait("transport_encryption"):  # newer than 8.9
        manager.transport_encryption = "auto"
    return manager


def cell_errors(notebook: Any) -> list[CellError]:
    """List the cells of an executed notebook that failed, and why."""
    return [
        CellError(number, str(output.ename), str(output.evalue))
        for number, cell in enumerate(notebook.cells, start=1)
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ]


def shrink_figures(notebook: Any) -> None:
    """Write the figures in a notebook's outputs with a palette, in place: they look the same, but small."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _with_palette(data["image/png"])
            if "text/html" in data:
                page = data["text/html"]
                data["text/html"] = _EMBEDDED_FIGURE.sub(lambda figure: _with_palette(figure[0]), page)


def _with_palette(encoded: str) -> str:
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(PALETTE, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    smaller = base64.b64encode(buffer.getvalue()).decode()
    return min(encoded, smaller, key=len)
