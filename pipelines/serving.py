"""Sampling as a web application.

GET  /models                        what is served, and what each takes
GET  /models/NAME/sample?num=4      a PNG, or npz of uint8 [num, H, W, C]
POST /models/NAME/sample            the same of uploaded images, to translate, reconstruct or complete
GET  /healthz  /metrics  /docs  /   state, Prometheus' numbers, OpenAPI, a page to play with
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import prometheus_client as prometheus
import torch
from fastapi import FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from torch import Tensor

from genmodels import pictures
from genmodels.export import Sampler
from genmodels.text import nearest, one_line
from pipelines.engine import Busy, Closed, Job
from pipelines.project import UserError
from pipelines.sample import read_images
from pipelines.shelf import Shelf
from pipelines.watching import repeating

PAGE = Path(__file__).with_name("play.html")
POSITIONS = 11  # of a slider, from one end of a traversal to the other
MAX_CAPTION = 1000  # characters
MAX_WALK = 64  # sliders of a request


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how much may wait."""

    num: int = 64  # images of a request
    upload: int = 16 * 2**20  # bytes of a request's body
    waiting: int = 4096  # images of all requests for a model
    seconds: float = 60.0  # until a request is given up


class Ask(BaseModel, extra="forbid"):
    """A request's query."""

    num: int | None = Field(None, ge=1, description="images; as many as conditions are given, or one")
    seed: int = Field(0, ge=0, lt=2**63, description="the same seed gives the same images")
    format: Literal["png", "npz"] = Field("png", description="a grid, or `images`: uint8 [num, H, W, C]")
    label: str | None = Field(None, description="a class")
    caption: list[str] = Field([], description="what to show, used in turn")
    direction: str | None = Field(None, description="of a translation between domains: A2B or B2A")
    attributes: str | None = Field(None, description="to change in the source's own: hat=1,night=0")
    walk: list[str] = Field(
        [], max_length=MAX_WALK, description=f"ROW:POSITION, a slider of the traversal, 0 to {POSITIONS - 1}"
    )

    def given(self) -> dict[str, Any]:
        """What is for the model to understand."""
        words = {key: getattr(self, key) for key in ("label", "caption", "direction", "attributes")}
        return {key: value for key, value in words.items() if value}


class Numbers:
    """What /metrics tells of one application."""

    def __init__(self) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        self.answers = prometheus.Histogram("answer_seconds", "Samples", ["model", "status"], registry=registry)
        self.waiting = prometheus.Gauge("images_waiting", "Asked for, not begun", ["model"], registry=registry)
        sizes = (1, 4, 16, 32, 64)
        self.batches = prometheus.Histogram("batch_images", "At once", ["model"], buckets=sizes, registry=registry)


def application(
    references: list[str], limits: Limits = Limits(), device: str = "cpu", refresh_seconds: float = 5.0
) -> FastAPI:
    """The application for versions named as `--model` names them, all of them loaded."""
    numbers = Numbers()
    shelf = Shelf(references, limits.waiting, device, lambda name, num: numbers.batches.labels(name).observe(num))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with repeating(shelf.refresh, refresh_seconds, "refresh"):
            yield
        await run_in_threadpool(shelf.close)

    app = FastAPI(title="genmodels", description="Samples of registered models.", lifespan=lifespan)

    @app.middleware("http")
    async def guarded(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = refusal(request, limits) or await go_on(request)
        if request.url.path.endswith("/sample"):
            name = request.url.path.split("/")[-2]
            label = name if name in shelf else "unknown"
            numbers.answers.labels(label, str(response.status_code)).observe(time.perf_counter() - start)
        return response

    @app.exception_handler(RequestValidationError)
    async def in_one_line(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": "; ".join(fault_of(fault) for fault in error.errors())}, 422)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.get("/healthz", summary="Whether it serves, and which versions")
    def healthz() -> dict[str, Any]:
        return {"status": "ok", "models": {name: shelf[name].version for name in shelf}}

    @app.get("/models", summary="What is served, and what each takes")
    def models() -> dict[str, dict[str, Any]]:
        return {name: about(name, shelf) | {"max_num": limits.num} for name in shelf}

    @app.get("/metrics", summary="Prometheus' numbers")
    def metrics() -> Response:
        for name in shelf:
            numbers.waiting.labels(name).set(shelf[name].engine.waiting)
        return Response(prometheus.generate_latest(numbers.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.get("/models/{name}/sample", summary="Images", response_class=Response)
    async def sample(name: str, ask: Annotated[Ask, Query()]) -> Response:
        return await answer(shelf, limits, name, ask, {})

    @app.post("/models/{name}/sample", summary="Images made of uploaded ones", response_class=Response)
    async def sample_of_uploads(
        name: str,
        ask: Annotated[Ask, Query()],
        source: Annotated[list[UploadFile], File(description="images to translate or reconstruct")] = [],  # noqa: B006
        patches: Annotated[list[UploadFile], File(description="key patches, image by image")] = [],  # noqa: B006
    ) -> Response:
        if not source and not patches:
            raise HTTPException(422, "nothing is uploaded; send multipart/form-data with files as source or patches")
        if len(source) + len(patches) > limits.num:
            raise HTTPException(422, f"{len(source) + len(patches)} files; at most {limits.num}")
        uploads = {"source": source, "patches": patches}
        contents = {
            key: [(file.filename or key, await file.read()) for file in files]
            for key, files in uploads.items()
            if files
        }
        return await answer(shelf, limits, name, ask, contents)

    return app


def fault_of(fault: dict[str, Any]) -> str:
    """One of pydantic's errors in words."""
    place = ".".join(str(part) for part in fault["loc"][1:])
    if fault["type"] == "extra_forbidden":
        return f"unknown parameter {place!r}{nearest(place, Ask.model_fields)}; known: {', '.join(Ask.model_fields)}"
    return f"{place}: {fault['msg']}"


def refusal(request: Request, limits: Limits) -> JSONResponse | None:
    """The answer to a body that is too large to be read."""
    length = request.headers.get("content-length")
    if length is None and "transfer-encoding" in request.headers:
        return JSONResponse({"detail": "a body needs a Content-Length"}, 411)
    if length and int(length) > limits.upload:
        return JSONResponse({"detail": f"{int(length):,} bytes; at most {limits.upload:,}"}, 413)
    return None


def about(name: str, shelf: Shelf) -> dict[str, Any]:
    """What a client must know to ask for samples of a model."""
    served = shelf[name]
    sampler = served.engine.sampler
    latent = sampler.latents(1)[0]
    return {
        "version": served.version,
        "reference": served.reference,
        "model": sampler.info["model"],
        "dataset": sampler.model.data.name,
        "image_size": sampler.progress.stage.image_size,
        "channels": sampler.model.data.channels,
        "controls": sampler.model.controls(),
        "sliders": len(sampler.model.traversal(latent, 2)) if latent.numel() else 0,
        "positions": POSITIONS,
    }


async def answer(
    shelf: Shelf, limits: Limits, name: str, ask: Ask, contents: dict[str, list[tuple[str, bytes]]]
) -> Response:
    """Puts a request into its model's next batch, and its images into the form that was asked for."""
    if name not in shelf:
        raise HTTPException(404, f"no model {name!r}{nearest(name, shelf)}; served: {', '.join(shelf)}")

    async def made() -> tuple[Tensor, str]:
        while True:
            served = shelf[name]
            # Not run_in_threadpool, which is waited for when the time is over.
            job = await asyncio.to_thread(plan, served.engine.sampler, limits, ask, contents)
            try:
                served.engine.submit(job)
            except Closed:  # exchanged in between: the same is asked of its successor
                continue
            return await asyncio.wrap_future(job.images), served.version

    try:
        images, version = await asyncio.wait_for(made(), limits.seconds)
    except (ValueError, UserError) as error:
        raise HTTPException(422, str(error)) from None
    except (Busy, TimeoutError):
        raise HTTPException(429, "too many images wait; come again, or ask for fewer", {"Retry-After": "1"}) from None
    body = await run_in_threadpool(encoded, images, ask.format)
    kind = "image/png" if ask.format == "png" else "application/octet-stream"
    return Response(body, media_type=kind, headers={"X-Model-Version": version})


def plan(sampler: Sampler, limits: Limits, ask: Ask, contents: dict[str, list[tuple[str, bytes]]]) -> Job:
    """The latents and conditions of a request; ValueError says what the model does not take."""
    if len(ask.caption) > limits.num:
        raise ValueError(f"caption: {len(ask.caption)} captions; at most {limits.num} a request")
    given = ask.given() | {key: read_images(files, sampler.model.data, key) for key, files in contents.items()}
    if any(len(caption) > MAX_CAPTION for caption in ask.caption):
        raise ValueError(f"caption: more than {MAX_CAPTION} characters")
    cond = sampler.model.encode_condition(**given) if given else None
    num = ask.num or (len(next(iter(cond.values()))) if cond else 1)
    if num > limits.num:
        raise ValueError(f"num: {num} images; at most {limits.num} a request")
    latents, cond = sampler.inputs(num, ask.seed, cond)
    for place in ask.walk:
        latents = torch.stack([moved(sampler, latent, place) for latent in latents])
    return Job(latents, cond)


def moved(sampler: Sampler, latent: Tensor, place: str) -> Tensor:
    """A latent with one of its sliders at another position."""
    rows = sampler.model.traversal(latent, POSITIONS) if latent.numel() else latent.new_empty(0, POSITIONS)
    row, _, position = place.partition(":")
    if row not in map(str, range(len(rows))) or position not in map(str, range(POSITIONS)):
        said = one_line(place, 40)
        raise ValueError(f"walk: {said!r} is no ROW:POSITION; {len(rows)} rows of {POSITIONS} positions, from 0 on")
    return rows[int(row), int(position)]


def encoded(images: Tensor, form: str) -> bytes:
    """Images [num, C, H, W] in [-1, 1] as the bytes of a grid or of an array."""
    stream = io.BytesIO()
    if form == "png":
        pictures.grid(images, border=0 if len(images) == 1 else 1).save(stream, "PNG")
    else:
        np.savez(stream, images=pictures.to_uint8(images))
    return stream.getvalue()
