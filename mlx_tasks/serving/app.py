"""The image server: OpenAI's image route over what the worker serves, health, figures and a page.

No `from __future__ import annotations` here: FastAPI reads the handlers' annotations at run time.
"""

import asyncio
import base64
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from mlx_tasks.errors import DataError, DivergedError, UnavailableError
from mlx_tasks.monitoring.window import Made, Recorder
from mlx_tasks.registry.png import encode_png
from mlx_tasks.samplers.grids import GRIDS
from mlx_tasks.samplers.solvers import SOLVERS
from mlx_tasks.serving.access import DRAWS, Guard, refusal
from mlx_tasks.serving.bodies import SEEDS, ImageRequest, Images, Picture, Refusal, StripPicture, Timing, told
from mlx_tasks.serving.connections import address_of
from mlx_tasks.serving.engine import Finished, Job
from mlx_tasks.serving.figures import CONTENT_TYPE, Figures
from mlx_tasks.serving.follower import Follower
from mlx_tasks.serving.plans import QUALITIES, make_plan, plan_name
from mlx_tasks.serving.prompts import ANY_CLASS
from mlx_tasks.serving.reading import JsonRoute
from mlx_tasks.serving.worker import Loaded, QueueFullError, Ticket, Worker

LOOK_S = 0.2
"""Between two looks whether a waiting client is still there."""
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body breaks a rule; the message names it."},
    401: {"model": Refusal, "description": "No key, or another."},
    429: {"model": Refusal, "description": "The queue is full; `Retry-After` says when to come again (s)."},
    503: {"model": Refusal, "description": "No model is ready, or the server is stopping."},
    504: {"model": Refusal, "description": "No image within the server's limit."},
}


def create_app(
    worker: Worker,
    follower: Follower,
    recorder: Recorder | None = None,
    key: str | None = None,
    hosts: frozenset[str] = frozenset(),
    timeout_s: float = 120.0,
    body_s: float = 15.0,
) -> FastAPI:
    """The app over its threads, which start and stop with it.

    recorder: keeps the window that `monitor` reads; key, hosts, body_s: as `access.Guard`.
    timeout_s: a request's limit; one that reaches it leaves the batch.
    """
    figures = Figures(worker, follower)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threads = [thread for thread in (recorder, worker, follower) if thread is not None]
        for thread in threads:
            thread.start()
        yield
        for thread in (follower, worker, recorder):
            if thread is not None:
                thread.stop()
                await asyncio.to_thread(thread.join, 20)

    app = FastAPI(
        title="Adaptive diffusion optimizer",
        description="Images from a registered diffusion model, by OpenAI's image route.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = JsonRoute
    app.add_middleware(Guard, key=key, hosts=hosts, body_s=body_s)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        figures.requests.labels("400").inc()
        field, message = told(error.errors()[0])
        return refusal(400, message, field)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        found = f"{request.method:.20} {request.url.path:.100}: {error.detail}"
        allowed = (error.headers or {}).get("Allow")
        fix = f"it takes {allowed}" if allowed else f"there are {', '.join(_routes(app))}"
        return refusal(error.status_code, f"{found}; {fix}", headers=dict(error.headers or {}))

    @app.get("/livez", tags=["health"])
    async def alive() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["health"])
    async def ready() -> JSONResponse:
        """A model is loaded and has made images; 503 with the reason until then. Names versions that may not serve."""
        state = "ready" if worker.ready else "not ready"
        told = {"status": state, "problem": follower.problem, "refused": follower.refused}
        return JSONResponse(told, 200 if worker.ready else 503)

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Prometheus' text format."""
        figures.unrecorded.set(recorder.unrecorded if recorder else 0)
        return Response(figures.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", tags=["images"])
    async def models() -> dict[str, Any]:
        """What serves, what served before it, and which versions may not serve, with the reason."""
        held = [one for one in (worker.current, worker.previous) if one is not None]
        data = [_entry(one, one is worker.current) for one in held]
        return {"object": "list", "data": data, "refused": follower.refused}

    @app.get("/v1/models/{reference:path}", tags=["images"])
    async def model(reference: str) -> JSONResponse:
        """One of these, by its id or its name."""
        for one in (worker.current, worker.previous):
            if one is not None and reference in (one.model.id, one.model.name):
                return JSONResponse(_entry(one, one is worker.current))
        there = worker.current.model.id if worker.current else "none yet"
        return refusal(404, f"model: this server has {there}, got {reference!r:.80}", "model")

    @app.get("/v1/versions", tags=["images"])
    async def versions() -> JSONResponse:
        """Every registered version that a request may name, newest first."""
        try:
            found = await asyncio.wait_for(asyncio.wrap_future(follower.versions()), timeout_s)
        except (UnavailableError, DataError, TimeoutError) as error:
            return refusal(503, str(error) or "the registry does not answer")
        return JSONResponse({"object": "list", "data": found})

    @app.get("/v1/choices", tags=["images"])
    async def choices() -> dict[str, list[str]]:
        """What quality, solver and grid may say."""
        names = [name for name in SOLVERS if name != "learned"]
        return {"qualities": list(QUALITIES)[:3], "solvers": names, "grids": list(GRIDS)}

    @app.post(DRAWS, response_model=Images, responses=REFUSALS, tags=["images"])
    async def generate(body: ImageRequest, request: Request) -> Any:
        """Draw images. A request shares its batch with others, which changes nothing about what it gets."""
        began = time.perf_counter()
        seeds, ticket = _seeds(body), None
        try:
            async with asyncio.timeout(timeout_s):
                loaded = await _version(worker, follower, body.model)
                job, names = _job(loaded, body, seeds)
                caller = address_of(request.client.host) if request.client else ""
                ticket = worker.submit(job, loaded, caller)
                finished = await _while_there(ticket, request)
        except (DataError, QueueFullError, UnavailableError, DivergedError, TimeoutError) as error:
            if ticket is not None:
                ticket.cancel()
            answer = _refused(error, timeout_s)
            figures.requests.labels(str(answer.status_code)).inc()
            if recorder is not None and answer.status_code >= 429:
                recorder.add(Made(answer.status_code))
            return answer
        except BaseException:  # the client left, or the server ends
            if ticket is not None:
                ticket.cancel()
            raise
        if finished is None:
            figures.requests.labels("499").inc()
            return refusal(499, "the client left")
        pictures = await asyncio.to_thread(_pictures, finished, loaded, names, seeds)
        model, waited_ms, drawn_ms = loaded.model, 1000 * ticket.waited, 1000 * finished.seconds
        figures.seconds.labels(model.name, model.version, str(finished.nfe)).observe(time.perf_counter() - began)
        figures.waited.observe(ticket.waited)
        figures.requests.labels("200").inc()
        figures.images.labels(model.name, model.version).inc(len(seeds))
        plan = plan_name(loaded.engine.bundle, body.quality, body.steps, body.guidance)
        if recorder is not None:
            drawn = (model.name, model.version, model.digest, names, tuple(seeds), finished.nfe, plan)
            recorder.add(Made(200, finished.images, *drawn, waited_ms, drawn_ms, Path(loaded.folder)))
        return Images(
            created=int(time.time()),
            data=pictures,
            model=model.id,
            plan=plan,
            nfe=finished.nfe,
            timing=Timing(queued_ms=round(waited_ms, 2), drawn_ms=round(drawn_ms, 2)),
        )

    def page(name: str, kind: str) -> Any:
        text = (files("mlx_tasks.serving") / name).read_text(encoding="utf-8")

        async def answer() -> Response:
            headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
            return Response(text, media_type=f"{kind}; charset=utf-8", headers=headers)

        return answer

    for path, (name, kind) in PAGE.items():
        app.get(path, include_in_schema=False)(page(name, kind))
    return app


async def _version(worker: Worker, follower: Follower, reference: str | None) -> Loaded:
    """What a request's `model` names: what serves, or another version, which is loaded first.

    Raises: UnavailableError before there is a model; DataError for one that is not here.
    """
    current = worker.current
    if current is None:
        raise UnavailableError(f"no model is ready: {follower.problem}")
    if reference is None or reference in (current.model.name, current.model.id):
        return current
    if not any(mark in reference for mark in "/@"):
        raise DataError(f"model: this server has {current.model.id}, got {reference!r}")
    return await asyncio.wrap_future(follower.loaded(reference))


def _job(loaded: Loaded, body: ImageRequest, seeds: list[int]) -> tuple[Job, tuple[str, ...]]:
    """What is drawn, and the class name of each image.  Raises: DataError."""
    model, bundle = loaded.model, loaded.engine.bundle
    side = f"{model.resolution}x{model.resolution}"
    if body.size.lower() not in ("auto", side):
        raise DataError(f"size: this model draws {side}, got {body.size!r}")
    if body.prompt is not None and body.label is not None:
        raise DataError("class: it stands in place of a prompt, so give one of them")
    if body.label is not None:
        label = loaded.classes.named(body.label)
    elif body.prompt is not None:
        label = loaded.classes.in_prompt(body.prompt)
    elif model.class_names:
        raise DataError("prompt: name a class by prompt or class, both are missing")
    else:
        label = ANY_CLASS
    plan = make_plan(bundle, body.quality, body.steps, body.solver, body.grid, body.guidance)
    name = model.class_names[label] if label >= 0 else ""
    return Job(plan, [label] * len(seeds), seeds, body.strip), (name,) * len(seeds)


async def _while_there(ticket: Ticket, request: Request) -> Finished | None:
    """The job's end, or None once the client has left: then its images leave the batch."""
    future = asyncio.wrap_future(ticket.future)
    while True:
        done, _ = await asyncio.wait({future}, timeout=LOOK_S)
        if done:
            return future.result()
        if await request.is_disconnected():
            ticket.cancel()
            return None


def _refused(error: Exception, timeout_s: float) -> JSONResponse:
    if isinstance(error, QueueFullError):
        return refusal(429, str(error), headers={"Retry-After": str(error.retry_after_s)})
    if isinstance(error, UnavailableError):
        return refusal(503, str(error), headers={"Retry-After": "2"})
    if isinstance(error, TimeoutError):
        return refusal(504, f"no image within {timeout_s:g} s: ask for fewer, or later")
    if isinstance(error, DivergedError):
        return refusal(500, f"these settings give no finite image: {error}")
    param = str(error).partition(":")[0]
    return refusal(400, str(error), param if param in ImageRequest.model_fields or param == "class" else None)


def _seeds(body: ImageRequest) -> list[int]:
    first = body.seed if body.seed is not None else secrets.randbelow(SEEDS)
    return [(first + i) % SEEDS for i in range(body.n)]


def _pictures(finished: Finished, loaded: Loaded, names: tuple[str, ...], seeds: list[int]) -> list[Picture]:
    """One entry an image; each PNG names the seed, class and model that bring it back."""
    assert finished.images is not None
    model, entries = loaded.model, []
    for i, (image, seed, name) in enumerate(zip(finished.images, seeds, names, strict=True)):
        text = {
            "seed": str(seed),
            "class": name,
            "model": model.name,
            "model_version": model.version,
            "bundle_digest": model.digest,
            "nfe": str(finished.nfe),
        }
        on_the_way = None
        if finished.strip is not None:
            on_the_way = [
                StripPicture(b64_json=_base64(encode_png(picture)), sigma=sigma)
                for picture, sigma in zip(finished.strip[i], finished.levels, strict=True)
            ]
        entries.append(Picture(b64_json=_base64(encode_png(image, text)), seed=seed, strip=on_the_way))
    return entries


def _routes(app: FastAPI) -> list[str]:
    """METHOD path of each route that is told of."""
    told = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    return [f"{method} {route.path}" for route in told for method in sorted(route.methods)]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _entry(loaded: Loaded, serves: bool) -> dict[str, Any]:
    model = loaded.model
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.loaded),
        "owned_by": "local",
        "serves": serves,
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        "classes": list(model.class_names),
        "size": f"{model.resolution}x{model.resolution}",
        "nfe": model.nfe,
        "levels": model.levels,
        "guided": model.guided,
        "same_bits_in_any_batch": model.exact,
    }
