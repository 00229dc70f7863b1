"""Uploaded images → predictions: decoded in one thread, predicted in another, together while it is busy."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from convscope.data.dataset import printable
from convscope.data.decode import quiet_pillow
from convscope.export import Bundle
from convscope.prediction import Failure, Input, Prediction, judge, read_input

_T = TypeVar("_T")
# Images decoded at a stretch, so that a long request does not keep a short one waiting.
DECODED = 8
# Images that one call of the network takes, of as many requests as there are.
TOGETHER = 128
LONGEST_NAME = 200


class QueueFullError(Exception):
    """More images wait already than the server promises to predict."""


@dataclass(frozen=True, eq=False)
class Upload:
    """An image as it came, and what it is called."""

    name: str
    content: bytes = field(repr=False)


class Batcher:
    """Predicts the images of many requests. While the network computes, what arrives is gathered.

    One thread decodes (Pillow's warnings are the whole process's), so that one image at most is unpacked at a
    time; another asks the network, which is not made to be asked by two. Everything else happens in the
    thread of the event loop.
    """

    def __init__(self, bundle: Bundle, limit: int, notice: Callable[[int], object]) -> None:
        self.pending = 0
        self._bundle, self._limit, self._notice = bundle, limit, notice
        self._decoder = ThreadPoolExecutor(1, "convscope-decode")
        self._network = ThreadPoolExecutor(1, "convscope-network")
        self._queue: deque[tuple[list[Input], asyncio.Future[list[Prediction]]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Prepare the network: the first request should not have to wait for that."""
        preprocess = self._bundle.preprocess
        blank = np.zeros(preprocess.image_shape, np.uint8)
        await self._run(self._network, judge, self._bundle, [Input("blank", blank)])
        await self._run(self._decoder, self._decode, [])

    def close(self) -> None:
        """End the threads when they have done what was begun."""
        self._decoder.shutdown()
        self._network.shutdown()

    async def predict(self, uploads: Sequence[Upload]) -> list[Prediction | Failure]:
        """Predict images in their order; refuse them all where too many wait."""
        if self.pending + len(uploads) > self._limit:
            raise QueueFullError
        self.pending += len(uploads)
        try:
            read: list[Input | Failure] = []
            for start in range(0, len(uploads), DECODED):
                read += await self._run(self._decoder, self._decode, uploads[start : start + DECODED])
            predictions = iter(await self._ask([one for one in read if isinstance(one, Input)]))
            return [one if isinstance(one, Failure) else next(predictions) for one in read]
        finally:
            self.pending -= len(uploads)

    async def decode(self, upload: Upload) -> Failure | None:
        """Say why an image cannot be read, if it cannot."""
        (found,) = await self._run(self._decoder, self._decode, [upload])
        return found if isinstance(found, Failure) else None

    async def grad_cam(self, prediction: Prediction) -> str:
        """Show where the evidence for a prediction lies, as the data address of a PNG."""
        return await self._run(self._network, _grad_cam, self._bundle, prediction)

    def _decode(self, uploads: Sequence[Upload]) -> list[Input | Failure]:
        with quiet_pillow():
            return [
                read_input(one.content, printable(one.name[:LONGEST_NAME]), self._bundle) for one in uploads
            ]

    async def _ask(self, inputs: list[Input]) -> list[Prediction]:
        if not inputs:
            return []
        answer: asyncio.Future[list[Prediction]] = asyncio.get_running_loop().create_future()
        self._queue.append((inputs, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        """Ask the network again and again until nothing waits."""
        while self._queue:
            taken = [self._queue.popleft()]
            size = len(taken[0][0])
            while self._queue and size + len(self._queue[0][0]) <= TOGETHER:
                taken.append(self._queue.popleft())
                size += len(taken[-1][0])
            self._notice(size)
            inputs = [one for some, _ in taken for one in some]
            try:
                predictions = iter(await self._run(self._network, judge, self._bundle, inputs))
            except Exception as error:  # whatever it is, each of those who wait is to hear it
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for some, answer in taken:
                found = [next(predictions) for _ in some]
                if not answer.done():  # nobody waits where the server was made to stop at once
                    answer.set_result(found)

    @staticmethod
    async def _run(pool: ThreadPoolExecutor, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def _grad_cam(bundle: Bundle, prediction: Prediction) -> str:
    from convscope.inspection import grad_cam  # with matplotlib, which few servers are asked for
    from convscope.plotting import attribution_picture

    image = bundle.preprocess.apply(prediction.pixels[np.newaxis])[0]
    found = grad_cam(bundle.model, image, int(prediction.probabilities.argmax()))
    buffer = io.BytesIO()
    Image.fromarray(attribution_picture(prediction.pixels, found)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
