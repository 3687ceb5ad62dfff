"""The image server: OpenAI's image route over one bundle, with health routes.

No `from __future__ import annotations` here: FastAPI reads the handlers' annotations at run time.
"""

import asyncio
import base64
import contextlib
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from mlx_tasks.errors import BusyError, DataError, UnavailableError
from mlx_tasks.files import atomic_write_bytes
from mlx_tasks.registry.png import encode_png
from mlx_tasks.serving.worker import Drawn, Worker

MAX_IMAGES = 16
MAX_BODY_BYTES = 64 * 1024
SEEDS = 2**32


class ImageRequest(BaseModel):
    """OpenAI's body, as far as it means something here, and a seed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1, max_length=1000)
    n: int = Field(1, ge=1, le=MAX_IMAGES)
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    response_format: Literal["b64_json"] = "b64_json"
    size: str = Field("auto", pattern=r"^(auto|\d{1,5}x\d{1,5})$")
    model: str | None = Field(None, max_length=200)
    output_format: Literal["png"] = "png"
    user: str | None = Field(None, max_length=200)


def create_app(worker: Worker, keep: Path | None = None, kept: int = 2000, timeout_s: float = 120.0) -> FastAPI:
    """The app over a worker, which starts and stops with it.

    keep: a folder that gets a copy of every image, the newest `kept` of them: the window that `monitor` reads.
    """
    window = _Window(keep, kept) if keep else None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()
        await asyncio.to_thread(worker.join, 10)

    app = FastAPI(title="adaptive diffusion optimizer", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def bounded(request: Request, call_next: Any) -> Any:
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not (length.isdigit() and int(length) <= MAX_BODY_BYTES):
            return _error(413, f"a body needs a length of at most {MAX_BODY_BYTES} bytes, got {length or 'none'}")
        return await call_next(request)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return _error(400, f"{where}: {first['msg']} (got {first.get('input')!r:.80})", where)

    @app.get("/livez")
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        if worker.ready:
            return JSONResponse({"status": "ready", "problem": worker.problem})
        return JSONResponse({"status": "not ready", "problem": worker.problem}, 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = worker.model
        if model is None:
            return {"object": "list", "data": []}
        entry = {
            "id": model.name,
            "object": "model",
            "created": int(model.loaded),
            "owned_by": "local",
            "version": model.version,
            "digest": model.digest,
            "classes": list(model.class_names),
            "size": f"{model.resolution}x{model.resolution}",
            "nfe": model.nfe,
        }
        return {"object": "list", "data": [entry]}

    @app.post("/v1/images/generations")
    async def generate(body: ImageRequest) -> JSONResponse:
        try:
            _check_model(worker, body)
            first = body.seed if body.seed is not None else secrets.randbelow(SEEDS)
            seeds = [(first + i) % SEEDS for i in range(body.n)]
            drawn = await asyncio.wait_for(asyncio.wrap_future(worker.submit(body.prompt, seeds)), timeout_s)
        except DataError as error:
            return _error(400, str(error))
        except BusyError as error:
            return _error(429, str(error), headers={"Retry-After": "2"})
        except UnavailableError as error:
            return _error(503, str(error), headers={"Retry-After": "2"})
        except TimeoutError:
            return _error(504, f"no image within {timeout_s:g} s: ask for fewer, or later")
        pictures = await asyncio.to_thread(_pictures, drawn, body.prompt, seeds, window)
        return JSONResponse({"created": int(time.time()), "data": pictures})

    return app


def _check_model(worker: Worker, body: ImageRequest) -> None:
    model = worker.model
    if model is None:
        return  # `submit` says so
    if body.model is not None and body.model not in (model.name, f"{model.name}/{model.version}"):
        raise DataError(f"model: this server has {model.name} (version {model.version}), got {body.model!r}")
    side = f"{model.resolution}x{model.resolution}"
    if body.size not in ("auto", side):
        raise DataError(f"size: this model draws {side}, got {body.size!r}")


def _pictures(drawn: Drawn, prompt: str, seeds: list[int], window: "_Window | None") -> list[dict[str, Any]]:
    """One entry an image; each PNG names the seed, class and model that bring it back."""
    from mlx_tasks.serving.prompts import class_of

    label = class_of(prompt, drawn.model.class_names)
    entries = []
    for image, seed in zip(drawn.images, seeds, strict=True):
        text = {
            "seed": str(seed),
            "class": drawn.model.class_names[label] if label >= 0 else "",
            "model": drawn.model.name,
            "model_version": drawn.model.version,
            "bundle_digest": drawn.model.digest,
        }
        data = encode_png(image, text)
        if window:
            window.add(data)
        entries.append({"b64_json": base64.b64encode(data).decode(), "seed": seed})
    return entries


class _Window:
    """A folder that holds the newest images served."""

    def __init__(self, folder: Path, most: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._most = most
        self._names = sorted(path.name for path in folder.glob("*.png"))

    def add(self, data: bytes) -> None:
        """Keep one image; the oldest beyond the count goes. A full disk costs the copy, not the answer."""
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.png"
        with contextlib.suppress(OSError):
            atomic_write_bytes(self._folder / name, data)
            self._names.append(name)
            while len(self._names) > self._most:
                (self._folder / self._names.pop(0)).unlink(missing_ok=True)


def _error(status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status in (400, 413) else "server_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": param, "code": None}}, status, headers=headers
    )
