"""The application: what is served at which address."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

import convscope
from convscope import web_page
from convscope.data.corrections import CorrectionStore
from convscope.errors import ConvscopeError, RunError, UsageError, expected_got
from convscope.explorer.page import COLOURS
from convscope.export import Bundle
from convscope.prediction import Failure, Prediction
from convscope.serving.batching import Batcher, Upload
from convscope.serving.guard import App, Gate, Guard, Limits, Refusal, content_security_policy

PAGE = Path(__file__).parent / "page"
PATHS = ("/", "/predict", "/health", "/metrics", "/docs", "/openapi.json", "/corrections")
_PIECE = 64 * 2**10
# Values in a JSON body, and bytes of a text in a form: what takes far more memory, or time, than it is long.
_VALUES, _TEXT = 4096, 4096
_LOGGER = logging.getLogger(__name__)


class Ranked(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Predicted(BaseModel):
    """What the network makes of one image; the label of one that abstained is null."""

    index: int = Field(description="The place of the image in the request, from 0.")
    file: str
    label: str | None
    probability: float
    abstained: bool
    ranked: list[Ranked] = Field(description="The most probable classes, up to three.")
    warnings: list[str] = Field(description="What about the image is unlike the training images.")
    distance: float | None = Field(description="How far it is from them in the network's features.")
    probabilities: dict[str, float] = Field(description="Of every class.")
    gradcam: str | None = Field(None, description="Where the evidence lies: the data address of a PNG.")


class Unread(BaseModel):
    """An image that could not be read, and why."""

    index: int = Field(description="The place of the image in the request, from 0.")
    file: str
    reason: str


class Answer(BaseModel):
    """Predictions in the order of the images, and what could not be predicted."""

    predictions: list[Predicted]
    failures: list[Unread]


class Problem(BaseModel):
    """Why a request was refused: what was expected, what was found."""

    detail: str


class Corrections(BaseModel):
    """How many corrections are kept, and the names of the classes."""

    kept: int | None
    labels: list[str]


_Responses = dict[int | str, dict[str, Any]]


def _refusals(meanings: dict[int, str]) -> _Responses:
    return {status: {"model": Problem, "description": meaning} for status, meaning in meanings.items()}


_REFUSED = _refusals(
    {
        400: "Not a request that can be read",
        401: "Without the token that the server asks for",
        403: "From another page than the server's own",
        408: "The body came too slowly",
        413: "Too many bytes, or too many images",
        421: "Under a name that is not the server's",
        503: "Too many images are waiting; Retry-After says when to try again",
    }
)
_PREDICTED: _Responses = {
    200: {"model": Answer},
    422: {"model": Answer, "description": "None of the images could be read"},
    **_refusals({415: "Neither a form with files nor JSON", 500: "The network computes no numbers"}),
}
_KEPT = _refusals(
    {
        404: "This server keeps no corrections",
        415: "Not JSON",
        422: "Not a class, or not an image",
        507: "There is no more room for corrections",
    }
)


def _body(kind: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """Describe a body that the application reads by itself."""
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {kind: {"schema": schema}}


_IMAGE = {
    "type": "string",
    "contentEncoding": "base64",
    "minLength": 4,
    "description": "An image file in base64, or its data address.",
}


def create_app(
    bundle: Bundle,
    *,
    page: str | None = None,
    title: str = "",
    corrections: CorrectionStore | None = None,
    gate: Gate | None = None,
    limits: Limits | None = None,
) -> App:
    """Make the application that serves one network.

    ``page`` is what stands at ``/``, a small page where there is none; ``corrections`` keeps the labels that
    people correct; ``gate`` says who may speak with it. It is an ASGI application whose lifespan must be run.
    """
    limits, gate = limits or Limits(), gate or Gate()
    several = {"type": "array", "minItems": 1, "maxItems": limits.images}
    upload = _body("multipart/form-data", files=several | {"items": {"type": "string", "format": "binary"}})
    upload |= _body("application/json", images=several | {"items": _IMAGE})
    label = {"type": "string", "enum": list(bundle.class_names)}
    correction = _body("application/json", image=_IMAGE, label=label)
    secured = [Depends(HTTPBearer(auto_error=False))] if gate.token is not None else []
    service = _Service(bundle, corrections, limits)
    app = FastAPI(
        title=f"convscope: {title}" if title else "convscope",
        version=convscope.__version__,
        lifespan=service.lifespan,
        docs_url=None,  # it loads its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses=_REFUSED,
    )
    for kind in (Refusal, ConvscopeError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refused)
    app.post(
        "/predict",
        dependencies=secured,
        responses=_PREDICTED,
        openapi_extra={"requestBody": {"required": True, "content": upload}},
    )(service.predict)
    app.get("/corrections", dependencies=secured, response_model=Corrections)(service.corrections)
    app.post(
        "/corrections",
        status_code=201,
        response_model=Corrections,
        dependencies=secured,
        responses=_KEPT,
        openapi_extra={"requestBody": {"required": True, "content": correction}},
    )(service.correct)
    app.get("/health")(service.health)
    text: _Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    app.get("/metrics", dependencies=secured, response_class=Response, responses=text)(service.measured)
    start = page or _fill("index.html", title=title, labels=bundle.class_names, keeps=corrections is not None)
    _add_page(app, "/", lambda: start)
    _add_page(app, "/docs", lambda: _fill("docs.html", schema=app.openapi()))
    return Guard(app, gate, limits, service.metrics.count)


class _Service:
    """What the addresses answer."""

    def __init__(self, bundle: Bundle, corrections: CorrectionStore | None, limits: Limits) -> None:
        self.metrics = _Metrics()
        self._names, self._corrections, self._limits = bundle.class_names, corrections, limits
        self._batcher = Batcher(bundle, limits.waiting, self.metrics.batches.observe)
        self.metrics.waiting.set_function(lambda: self._batcher.pending)

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        try:
            await self._batcher.start()
            yield
        finally:
            self._batcher.close()

    async def predict(
        self,
        request: Request,
        gradcam: Annotated[bool, Query(description="Show where the evidence lies.")] = False,
        abstain: Annotated[float | None, Query(gt=0, le=1, description="Give no label below this.")] = None,
    ) -> Response:
        """Predict images: label, probabilities, what is unlike the training images."""
        uploads = await _read_uploads(request, self._limits.images)
        if gradcam and len(uploads) > self._limits.gradcams:
            found = f"got {len(uploads)}."
            raise Refusal(413, f"Expected at most {self._limits.gradcams} images with gradcam, {found}")
        answer: dict[str, list[dict[str, Any]]] = {"predictions": [], "failures": []}
        with self._batcher.room(len(uploads)):
            for index, one in enumerate(await self._batcher.predict(uploads)):
                if isinstance(one, Failure):
                    answer["failures"].append({"index": index, **one.to_json()})
                    continue
                row = {"index": index, **_as_json(one, self._names, abstain)}
                if gradcam:
                    row["gradcam"] = await self._batcher.grad_cam(one)
                answer["predictions"].append(row)
        for outcome, rows in answer.items():
            self.metrics.images.labels(outcome).inc(len(rows))
        return JSONResponse(answer, 200 if answer["predictions"] else 422)

    async def corrections(self) -> Response:
        """Say whether corrected labels are kept, and how many there are; null where they are not."""
        return self._kept(200)

    async def correct(self, request: Request) -> Response:
        """Keep what an image really shows, for the next training."""
        corrections = self._required()
        value = await _read_json(request)
        label, image = value.get("label"), _decoded(value.get("image"))
        if label not in self._names:
            expected = f"one of the classes {', '.join(self._names)}"
            raise Refusal(422, expected_got(expected, "another label"))
        with self._batcher.room(1):
            if problem := await self._batcher.decode(Upload("the image", image)):
                raise Refusal(422, problem.reason)
        if corrections.size + len(image) > self._limits.kept:
            limit = f"{self._limits.kept / 2**30:g} GB"
            raise Refusal(507, expected_got(f"at most {limit} of corrections", "more"))
        try:
            await asyncio.to_thread(corrections.keep, image, str(label))
        except RunError as error:
            _LOGGER.error("%s", error)  # where files are is for whoever runs the server
            raise Refusal(507, expected_got("to keep a correction", "a disk that refuses it")) from error
        return self._kept(201)

    async def health(self) -> Response:
        """Say that the server is there; needs no token."""
        return JSONResponse({"status": "ok"})

    async def measured(self) -> Response:
        """Give counts and times, as Prometheus reads them."""
        return Response(generate_latest(self.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    def _kept(self, status: int) -> Response:
        kept = self._corrections.count if self._corrections else None
        return JSONResponse({"kept": kept, "labels": list(self._names)}, status)

    def _required(self) -> CorrectionStore:
        if self._corrections is None:
            found = "one started without --keep"
            raise Refusal(404, expected_got("a server that keeps corrections", found))
        return self._corrections


async def _refused(request: Request, error: Exception) -> Response:
    """Say in one sentence why there is no answer, whoever found it."""
    if isinstance(error, Refusal):
        return JSONResponse({"detail": error.detail}, error.status, error.headers)
    if isinstance(error, HTTPException):  # of the router, which knows addresses and methods
        path, routes = request.url.path, request.app.routes
        allowed = ", ".join(sorted({method for one in routes if one.path == path for method in one.methods}))
        expected = f"{allowed} for {path}" if allowed else f"one of {', '.join(PATHS)}"
        found = request.method if allowed else "another address"
        headers = {"allow": allowed} if allowed else None
        return JSONResponse({"detail": expected_got(expected, found)}, error.status_code, headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        expected = f"{first['loc'][-1]} as the interface describes it"
        return JSONResponse({"detail": expected_got(expected, "another value", f"{first['msg']}.")}, 400)
    return JSONResponse({"detail": str(error)}, 400 if isinstance(error, UsageError) else 500)


def _add_page(app: FastAPI, path: str, make: Callable[[], str]) -> None:
    """Serve a page with the policy that lets its own script run, in pieces: it may be large."""
    made: dict[str, Any] = {}

    async def show() -> Response:
        if not made:
            text = make()
            made.update(content=text.encode(), policy=content_security_policy(text))
        content: bytes = made["content"]

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(content), _PIECE):
                yield content[start : start + _PIECE]

        headers = {"content-length": str(len(content)), "content-security-policy": made["policy"]}
        return StreamingResponse(pieces(), media_type="text/html", headers=headers)

    app.add_api_route(path, show, methods=["GET"], include_in_schema=False, response_class=HTMLResponse)


def _fill(template: str, **facts: Any) -> str:
    """Fill a template of this package with facts, its style and its script."""
    style = web_page.read_joined([COLOURS, PAGE / "page.css"])
    script = web_page.read_joined([PAGE / "page.js"])
    # The description of an interface leaves out what it has nothing to say about.
    pages = web_page.templates(PAGE).overlay(undefined=jinja2.Undefined)
    return web_page.fill(pages.get_template(template), style, script, **facts)


def _as_json(prediction: Prediction, class_names: tuple[str, ...], abstain: float | None) -> dict[str, Any]:
    if abstain is not None:
        prediction = replace(prediction, abstained=prediction.probability < abstain)
    return {
        **prediction.to_json(),
        "probabilities": dict(zip(class_names, prediction.probabilities.tolist(), strict=True)),
    }


class _InMemory(MultiPartParser):
    """Keeps files in memory, which the guard has bounded: nothing is written to disk."""

    spool_max_size = 2**40


async def _read_uploads(request: Request, most: int) -> list[Upload]:
    """Read the images of a request, as files of a form or as JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        parser = _InMemory(
            request.headers, request.stream(), max_files=most, max_fields=most, max_part_size=_TEXT
        )
        try:
            form = await parser.parse()
        except MultiPartException as error:
            too_much = any(word in error.message for word in ("Too many", "exceeded"))
            expected = expected_got(f"a form of at most {most} files", "another", error.message)
            raise Refusal(413 if too_much else 400, expected) from None
        files = [one for one in form.multi_items() if not isinstance(one[1], str)]
        uploads = [Upload(file.filename or "image", await file.read()) for _, file in files]  # type: ignore[union-attr]
        await form.close()
    elif kind == "application/json":
        value = await _read_json(request)
        given = value.get("images", [value["image"]] if "image" in value else [])
        if not isinstance(given, list):
            raise Refusal(400, "Expected a list of images, got another value.")
        if len(given) > most:
            raise Refusal(413, f"Expected at most {most} images, got {len(given):,}.")
        uploads = [Upload(f"images[{number}]", _decoded(one)) for number, one in enumerate(given)]
    else:
        raise Refusal(415, "Expected multipart/form-data or application/json, got another content type.")
    if not uploads:
        raise Refusal(400, "Expected at least one image, got none.")
    return uploads


async def _read_json(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "Expected application/json, got another content type.")
    body = await request.body()
    if sum(map(body.count, (b"[", b"{", b","))) > _VALUES:
        raise Refusal(413, f"Expected JSON of at most {_VALUES:,} values, got more.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "Expected JSON, got something else.") from None
    if not isinstance(value, dict):
        raise Refusal(400, "Expected a JSON object, got another value.")
    return value


def _decoded(text: object) -> bytes:
    """Decode an image in base64, or the data address that a page has of it."""
    if not isinstance(text, str):
        raise Refusal(400, "Expected an image in base64, got another value.")
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "Expected an image in base64, got another text.") from None


class _Metrics:
    """What is counted, apart for each application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "convscope_requests", "Requests answered", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "convscope_request_seconds", "Time from the head of a request to its answer", ["path"],
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10), registry=self.registry,
        )  # fmt: skip
        self.images = Counter("convscope_images", "Images received", ["outcome"], registry=self.registry)
        self.batches = Histogram(
            "convscope_batch_images", "Images predicted at once",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge("convscope_waiting_images", "Images in work", registry=self.registry)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request; whatever is not served is one path."""
        known = path if path in PATHS else "other"
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)
