"""Uploaded images → predictions: decoded in threads, predicted in another, many requests' at once."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from convscope.data.dataset import printable
from convscope.data.decode import quiet_pillow
from convscope.environment import share_of_threads
from convscope.export import Bundle
from convscope.prediction import Failure, Input, Prediction, judge, read_input
from convscope.serving.guard import busy

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_Value = TypeVar("_Value")
# Images decoded at a stretch, and seconds after which it ends: huge images do not keep small ones waiting.
DECODED, STRETCH_SECONDS = 8, 0.02
# Images that one call of the network takes, of as many requests as there are.
TOGETHER = 128
# Images that are unpacked at a time, on as many processors; the largest take 200 to 860 MB each.
DECODERS = 4
LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class Upload:
    """An image as it came, and what it is called."""

    name: str
    content: bytes = field(repr=False)


class Batcher:
    """Predicts the images of many requests; call it in the thread of one event loop."""

    def __init__(self, bundle: Bundle, limit: int, notice: Callable[[int], object]) -> None:
        self.pending = 0
        self._bundle, self._limit, self._notice = bundle, limit, notice
        self._threads, self._decoding = min(share_of_threads(1), DECODERS), 0
        self._readers = ThreadPoolExecutor(self._threads, "convscope-decode")
        self._filters = ExitStack()
        self._predicting = _Stage(self._judge, TOGETHER)
        self._explaining = asyncio.Lock()

    async def start(self) -> None:
        """Prepare the network: the first request should not have to wait for that."""
        buffer = io.BytesIO()
        Image.new("L", (1, 1)).save(buffer, "PNG")
        read = await self._decode([Upload("blank", buffer.getvalue())])
        await self._predicting.run(judge, self._bundle, read)

    def close(self) -> None:
        """End the threads when they have done what was begun."""
        self._predicting.close()
        self._readers.shutdown()

    @contextmanager
    def room(self, images: int) -> Iterator[None]:
        """Take room for some images until they are answered; refuse them all where too many are in work."""
        if self.pending + images > self._limit:
            raise busy()
        self.pending += images
        try:
            yield
        finally:
            self.pending -= images

    async def predict(self, uploads: Sequence[Upload]) -> list[Prediction | Failure]:
        """Predict images in their order."""
        read = await self._decode(uploads)
        predictions = iter(await self._predicting.ask([one for one in read if isinstance(one, Input)]))
        return [one if isinstance(one, Failure) else next(predictions) for one in read]

    async def decode(self, upload: Upload) -> Failure | None:
        """Say why an image cannot be read, if it cannot."""
        (found,) = await self._decode([upload])
        return found if isinstance(found, Failure) else None

    async def grad_cam(self, prediction: Prediction) -> str:
        """Show where the evidence for a prediction lies, as the data address of a PNG."""
        async with self._explaining:  # one at a time, so that predictions need not wait for many
            return await self._predicting.run(_grad_cam, self._bundle, prediction)

    async def _decode(self, uploads: Sequence[Upload]) -> list[Input | Failure]:
        """Decode images, some at a time, so that those of other requests have their turn in between."""
        found: dict[int, Input | Failure] = {}
        waiting = deque(enumerate(uploads))

        async def decode_some() -> None:
            while waiting:
                taken = [waiting.popleft() for _ in range(min(DECODED, len(waiting)))]
                done = await loop.run_in_executor(self._readers, self._read, [one for _, one in taken])
                found.update((place, one) for (place, _), one in zip(taken, done, strict=False))
                waiting.extendleft(reversed(taken[len(done) :]))

        loop = asyncio.get_running_loop()
        if self._decoding == 0:  # warning filters are of the whole process: one thread sets them for all
            self._filters.enter_context(quiet_pillow())
        self._decoding += 1
        try:
            await asyncio.gather(*(decode_some() for _ in range(self._threads)))
        finally:
            self._decoding -= 1
            if self._decoding == 0:
                self._filters.close()
        return [found[place] for place in range(len(uploads))]

    def _read(self, uploads: Sequence[Upload]) -> list[Input | Failure]:
        """Decode the first of some images, as many as there is time for, but one at least."""
        found, end = [], time.monotonic() + STRETCH_SECONDS
        for one in uploads:
            found.append(read_input(one.content, printable(one.name[:LONGEST_NAME]), self._bundle))
            if time.monotonic() > end:
                break
        return found

    def _judge(self, inputs: Sequence[Input]) -> list[Prediction]:
        self._notice(len(inputs))
        return judge(self._bundle, inputs)


class _Stage(Generic[_Given, _Made]):
    """A function of several things, in a thread of its own; what arrives while it works is gathered."""

    def __init__(self, work: Callable[[Sequence[_Given]], Sequence[_Made]], most: int) -> None:
        self._work, self._most = work, most
        self._thread = ThreadPoolExecutor(1)
        self._queue: deque[tuple[Sequence[_Given], asyncio.Future[Sequence[_Made]]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End the thread when it has done what was begun."""
        self._thread.shutdown()

    async def run(self, function: Callable[..., _Value], *arguments: Any) -> _Value:
        """Call a function in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def ask(self, given: Sequence[_Given]) -> Sequence[_Made]:
        """Have some things worked on, together with those of others."""
        if not given:
            return []
        answer: asyncio.Future[Sequence[_Made]] = asyncio.get_running_loop().create_future()
        self._queue.append((given, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._empty_queue())
        return await answer

    async def _empty_queue(self) -> None:
        while self._queue:
            taken = [self._queue.popleft()]
            if taken[0][1].done():  # nobody waits any more: the server was told to stop at once
                continue
            size = len(taken[0][0])
            while self._queue and size + len(self._queue[0][0]) <= self._most:
                taken.append(self._queue.popleft())
                size += len(taken[-1][0])
            try:
                made = iter(await self.run(self._work, [one for some, _ in taken for one in some]))
            except Exception as error:  # whatever it is, each of those who wait is to hear it
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for some, answer in taken:
                found = [next(made) for _ in some]
                if not answer.done():
                    answer.set_result(found)


def _grad_cam(bundle: Bundle, prediction: Prediction) -> str:
    from convscope.inspection import grad_cam  # with matplotlib, which few servers are asked for
    from convscope.plotting import attribution_picture

    image = bundle.preprocess.apply(prediction.pixels[np.newaxis])[0]
    found = grad_cam(bundle.model, image, int(prediction.probabilities.argmax()))
    buffer = io.BytesIO()
    Image.fromarray(attribution_picture(prediction.pixels, found)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
