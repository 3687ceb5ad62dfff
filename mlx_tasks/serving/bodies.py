"""The bodies that the server takes and gives, with the examples that its OpenAPI page shows.

No `from __future__ import annotations` here: FastAPI reads the annotations at run time.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlx_tasks.serving.plans import MOST_EVALUATIONS, QUALITIES

MAX_IMAGES = 16
SEEDS = 2**32
WHOLE = frozenset({"n", "seed", "steps", "strip", "output_compression", "partial_images"})
"""Fields that hold whole numbers."""
STRIP = 12
"""Most pictures of a denoising strip."""


class ImageRequest(BaseModel):
    """OpenAI's body, and what a diffusion sampler can be told beside it.

    Every field of OpenAI's is here: what changes an image is done, what changes nothing here is taken, and what would
    change the answer is refused by name. `null` means the default; 2.0 is the whole number 2, as in JSON Schema.
    """

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
    guidance: float | None = Field(None, ge=0.0, le=50.0, description="scale in place of the model's own")
    strip: int = Field(0, ge=0, le=STRIP, description="pictures of the denoising on the way, at most")
    model: str | None = Field(
        None, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$", description="NAME, NAME/VERSION or NAME@ALIAS"
    )
    size: str = Field("auto", max_length=40, description="auto, or the model's own")
    response_format: Literal["b64_json"] = Field("b64_json", description="images come in the answer, never as a URL")
    output_format: Literal["png"] = Field("png", description="images are PNGs")

    # OpenAI's, without effect here
    user: str | None = Field(None, description="changes nothing here")
    safety_identifier: str | None = Field(None, description="changes nothing here")
    moderation: Literal["auto", "low"] = Field("auto", description="changes nothing here: there is no moderation")
    style: Literal["vivid", "natural"] | None = Field(None, description="changes nothing here")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="changes nothing here: see quality")
    output_compression: int = Field(100, ge=0, le=100, description="changes nothing here: PNGs lose nothing")

    # OpenAI's, which would change the answer
    background: Literal["auto", "opaque"] = Field("auto", description="images are opaque here")
    stream: Literal[False] = Field(False, description="an answer comes whole here")
    partial_images: Literal[0] = Field(0, description="an answer comes whole here; strip shows what was on the way")
    frame_count: None = Field(None, description="goes with GIFs, images here are PNGs")
    frame_duration_ms: None = Field(None, description="goes with GIFs, images here are PNGs")
    svg: None = Field(None, description="goes with SVGs, images here are PNGs")
    image: None = Field(None, description="images are drawn from noise here, none is taken in")
    images: None = Field(None, description="images are drawn from noise here, none is taken in")
    mask: None = Field(None, description="images are drawn from noise here, none is taken in")
    input_fidelity: None = Field(None, description="images are drawn from noise here, none is taken in")

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = {*cls.model_fields, "class"}
        kept = {key: value for key, value in given.items() if value is not None or key not in known}
        return {key: _whole(value) if key in WHOLE else value for key, value in kept.items()}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def told(error: dict[str, Any]) -> tuple[str, str]:
    """(field, message) of a body's first fault: the rule, what is taken, and what was given, of bounded length."""
    field = ".".join(str(part) for part in error["loc"] if part != "body")[:60] or "body"
    if error["type"] == "json_invalid":
        return "body", f"body: this is no JSON that is taken: {error['ctx']['error']}"
    if error["type"] == "extra_forbidden":
        return field, f"{field}: there is no such field; there are {', '.join(_names())}"
    rule = "it is not taken" if error["type"] == "none_required" else str(error["msg"])
    known = ImageRequest.model_fields.get("label" if field == "class" else field)
    why = f" ({known.description})" if known and known.description else ""
    return field, f"{field}: {rule}{why}, got {error.get('input')!r:.80}"


def _names() -> list[str]:
    return [field.alias or name for name, field in ImageRequest.model_fields.items()]


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
    """The answer: OpenAI's, and what drew it.

    Attributes:
        plan: "own" for the model's own steps, the quality level, or "custom".
    """

    created: int
    data: list[Picture]
    model: str
    plan: str
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
