"""The bodies that the server takes and gives, with the examples that its OpenAPI page shows.

No `from __future__ import annotations` here: FastAPI reads the annotations at run time.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_tasks.serving.plans import MOST_EVALUATIONS, QUALITIES

MAX_IMAGES = 16
SEEDS = 2**32
STRIP = 12
"""Most pictures of a denoising strip."""


class ImageRequest(BaseModel):
    """OpenAI's body as far as it means something here, and what a diffusion sampler can be told beside it."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {"prompt": "a handwritten three", "n": 2, "seed": 7},
                {"class": "three", "quality": "fast", "seed": 7},
                {"prompt": "three", "steps": 12, "solver": "dpmpp_2m", "grid": "karras", "guidance": 2.0},
            ]
        },
    )

    prompt: str | None = Field(None, min_length=1, max_length=1000, description="a caption that names one class")
    label: str | None = Field(
        None, alias="class", min_length=1, max_length=200, description="a class, in place of a prompt"
    )
    n: int = Field(1, ge=1, le=MAX_IMAGES, description="images; image i has seed + i")
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="the same seed gives the same image; none: one is drawn")
    quality: str | None = Field(None, max_length=20, description=f"one of {', '.join(QUALITIES)}")
    steps: int | None = Field(
        None, ge=1, le=MOST_EVALUATIONS, description="network calls of an image, without guidance"
    )
    solver: str | None = Field(None, max_length=40, description="goes with steps; dpmpp_2m unless told")
    grid: str | None = Field(None, max_length=40, description="noise levels, go with steps; log_snr unless told")
    guidance: float | None = Field(None, ge=0.0, le=50.0, strict=False, description="scale in place of the model's own")
    strip: int = Field(0, ge=0, le=STRIP, description="pictures of the denoising on the way, at most")
    model: str | None = Field(None, max_length=200, description="NAME, NAME/VERSION or NAME@ALIAS")
    size: str = Field("auto", pattern=r"^(auto|\d{1,5}x\d{1,5})$", description="auto, or the model's own")
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    user: str | None = Field(None, max_length=200)


class StripPicture(BaseModel):
    """What the model believed at one noise level."""

    b64_json: str
    sigma: float


class Picture(BaseModel):
    """One image."""

    b64_json: str
    seed: int
    strip: list[StripPicture] | None = None


class Timing(BaseModel):
    """Where a request's time went (milliseconds)."""

    queued_ms: float
    drawn_ms: float


class Images(BaseModel):
    """The answer: OpenAI's, and what drew it."""

    created: int
    data: list[Picture]
    model: str
    nfe: int
    timing: Timing


class Problem(BaseModel):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Refusal(BaseModel):
    """Any answer that is no success."""

    error: Problem
