"""One image file, fully decoded to eight bits of grey or RGB, or a Refusal that says why not.

The header is read first, and a picture of too many pixels is refused before one of them is decoded. Then the file's
checksums are verified (PNG has them, JPEG does not) and every pixel is decoded; a truncated file is an error, never
a half-grey picture. A file is taken where the pixels of its first picture are sound, whatever surrounds them: what
Pillow refuses gets a second try without its texts, profiles and later frames (rescue.py). What was changed on the way
to eight bits is written down in `Decoded.converted`. Whatever a decoder raises is a Refusal; one that takes the
process down is children.py's concern.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mlx_tasks.data.reasons import Refusal
from mlx_tasks.data.rescue import ended_anew, first_pictures
from mlx_tasks.files import open_regular

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What Pillow may open (a phone's multi-picture JPEG comes with JPEG). Not EPS: opening one runs another program."""

MAX_FILE_BYTES = 1 << 30
"""Longest file that is read: more than the pixels of any picture allowed take, written plainly."""

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")
_NOT_READ = {
    **dict.fromkeys(
        (b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1")), "HEIC"
    ),
    **dict.fromkeys((b"ftyp" + brand for brand in (b"qt  ", b"isom", b"mp41", b"mp42")), "video"),
    b"8BPS": "PSD",
    b"\xff\x0a": "JPEG XL",
    b"JXL \r\n\x87\n": "JPEG XL",
    b"v/1\x01": "EXR",
    b"%!PS": "EPS",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "XML or SVG",
    b"<!DOCTYPE": "HTML",
    b"<html": "HTML",
}
"""How files that are often called pictures begin, or go on after four bytes, and what they are."""
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_DAMAGED = ("corrupt", "truncated", "not_an_image")


@dataclass(frozen=True)
class Rules:
    """What an image must be (the `data` branch's numbers).

    Attributes:
        min_side: shortest side accepted (pixels).
        max_pixels: largest image decoded (pixels).
        max_aspect_ratio: longest side over shortest.
    """

    min_side: int
    max_pixels: int
    max_aspect_ratio: float


@dataclass(frozen=True)
class Decoded:
    """An image as everything after this sees it.

    Attributes:
        image: mode L where every pixel is grey, else RGB; upright.
        mode: the file's own mode, in Pillow's words (P, RGBA, I;16, CMYK, ...).
        size_bytes: length of the file.
        sha256: of the file's bytes, as `sha256sum` prints it.
        pixels_sha256: of `image`: its mode, size and pixels. Equal for two files that decode to the same picture.
        converted: what was done to get here, `; ` between, empty for a plain eight-bit image.
    """

    image: Image.Image
    mode: str
    size_bytes: int
    sha256: str
    pixels_sha256: str
    converted: str


def decode_file(path: Path, rules: Rules) -> Decoded:
    """The image of a file.  Raises: Refusal."""
    try:
        with open_regular(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > MAX_FILE_BYTES:
                raise Refusal("bomb", f"a file of {size_bytes} bytes, above the {MAX_FILE_BYTES} that are read")
            image, mode, converted = _first_picture(file, rules)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise Refusal("missing_file", f"{path.name} is not there") from None
    except OSError as error:
        raise Refusal("unreadable", error.strerror or str(error)) from None
    return Decoded(image, mode, size_bytes, digest, _pixel_digest(image), converted)


def decode_array(pixels: np.ndarray, rules: Rules) -> Decoded:
    """An image that comes as an array; both hashes are of the pixels.  pixels: (H, W) or (H, W, 3) uint8.

    Raises: Refusal.
    """
    image = Image.fromarray(pixels)
    _check_header(image, rules)
    image = _grey_if_grey(image)
    digest = _pixel_digest(image)
    return Decoded(image, image.mode, pixels.nbytes, digest, digest, "")


def _first_picture(file: BinaryIO, rules: Rules) -> tuple[Image.Image, str, str]:
    """(the picture, its own mode, what was done to it), of the file as it is or of its picture alone."""
    header = file.read(24)
    try:
        return _decode(file, rules, header)
    except Refusal as refusal:
        if refusal.reason not in _DAMAGED:
            raise
        damage = refusal
    for picture in first_pictures(file, header):
        try:
            image, mode, converted = _decode(picture, rules, header)
        except Refusal as refusal:
            if refusal.reason not in _DAMAGED:
                raise
            continue
        return image, mode, "; ".join(filter(None, ["damage outside the picture passed over", converted]))
    if damage.reason == "truncated" and (whole := _without_mark(file, rules, header)):
        return whole
    raise damage


def _without_mark(file: BinaryIO, rules: Rules, header: bytes) -> tuple[Image.Image, str, str] | None:
    """The picture of a JPEG that lacks its end mark and nothing else; None where pixels are missing too."""
    try:
        found = [_decode(picture, rules, header) for picture in ended_anew(file, header)]
    except Refusal:
        return None
    if not found or any(image.tobytes() != found[0][0].tobytes() for image, _, _ in found):
        return None
    image, mode, converted = found[0]
    return image, mode, "; ".join(filter(None, ["end mark missing", converted]))


def _decode(file: BinaryIO, rules: Rules, header: bytes) -> tuple[Image.Image, str, str]:
    _verify(file, rules, header)
    frames = _count_frames(file, rules, header)
    with _open(file, rules, header) as source:
        try:
            source.load()
            image, converted = _to_eight_bits(source)
            image, turned = _upright(source, image)
            image = _grey_if_grey(image)
        except Refusal:
            raise
        except Exception as error:
            raise Refusal(_damage(error), _one_line(error), *source.size) from None
        mode = source.mode
    return image, mode, "; ".join(filter(None, [frames, converted, turned]))


def _count_frames(file: BinaryIO, rules: Rules, header: bytes) -> str:
    """ "first of N frames", where there are more than one; damage in a later one does not matter."""
    with _open(file, rules, header) as source:
        try:
            frames = getattr(source, "n_frames", 1)
        except Exception:
            return "first of several frames"
    return f"first of {frames} frames" if frames > 1 else ""


def _open(file: BinaryIO, rules: Rules, header: bytes) -> ImageFile.ImageFile:
    """The image with its header read and checked."""
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        width, height = _png_size(header)
        size = f"{width} x {height} pixels" if width else _one_line(error)
        raise Refusal("bomb", f"{size}, above data.max_pixels {rules.max_pixels}", width, height) from None
    except UnidentifiedImageError:
        if not header:
            raise Refusal("not_an_image", "the file is empty") from None
        if kind := next((kind for mark, kind in _NOT_READ.items() if mark in (header[: len(mark)], header[4:12])), ""):
            raise Refusal(
                "not_an_image", f"a file of kind {kind}, which is not read: convert it to JPEG or PNG"
            ) from None
        if header.startswith(_SIGNATURES) or header[4:8] in (b"ftyp", b"jP  "):
            raise Refusal("corrupt", "the file begins like an image and its header cannot be read") from None
        raise Refusal("not_an_image", f"the file begins with {header[:12]!r}") from None
    except Exception as error:
        raise Refusal(_damage(error), _one_line(error)) from None
    _check_header(image, rules)
    return image


def _check_header(image: Image.Image, rules: Rules) -> None:
    width, height = image.size
    if width * height > rules.max_pixels:
        detail = f"{width} x {height} pixels, above data.max_pixels {rules.max_pixels}"
        raise Refusal("bomb", detail, width, height)
    if min(width, height) < rules.min_side:
        detail = f"{width} x {height} pixels, a side below data.min_side {rules.min_side}"
        raise Refusal("too_small", detail, width, height)
    if max(width, height) > rules.max_aspect_ratio * min(width, height):
        detail = f"{width} x {height} pixels, sides further apart than data.max_aspect_ratio {rules.max_aspect_ratio:g}"
        raise Refusal("bad_aspect", detail, width, height)


def _verify(file: BinaryIO, rules: Rules, header: bytes) -> None:
    """Check the file's own checksums; Pillow's verify leaves the image unusable, so it gets one of its own."""
    image = _open(file, rules, header)
    try:
        image.verify()
    except Exception as error:
        raise Refusal(_damage(error), _one_line(error), *image.size) from None


def _to_eight_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """The image in mode L or RGB, and what that took.  Transparency is composited on white."""
    if image.mode in _DEEP_MODES or (image.mode == "I" and image.format == "PPM"):  # a deep PGM comes as I
        deep = np.asarray(image).astype(np.uint32)
        shallow = ((deep * 255 + 32767) // 65535).astype(np.uint8)
        clear = image.info.get("transparency")
        if not isinstance(clear, int):
            return Image.fromarray(shallow), "16 bits to 8"
        return Image.fromarray(np.where(deep == clear, np.uint8(255), shallow)), "16 bits to 8; alpha on white"
    if image.mode in ("I", "F", "LAB"):
        raise Refusal("unsupported_mode", f"mode {image.mode}: save it as 8 or 16 bits of grey or RGB", *image.size)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB"), "alpha on white"
    if image.mode in ("L", "RGB"):
        return image, ""
    target = "L" if image.mode == "1" else "RGB"
    return image.convert(target), f"{image.mode} to {target}"


def _upright(source: Image.Image, image: Image.Image) -> tuple[Image.Image, str]:
    """`image` turned as `source`'s EXIF orientation says; unreadable EXIF counts as none."""
    try:
        orientation = source.getexif().get(_ORIENTATION, 1)
    except Exception:
        return image, ""
    if orientation not in range(2, 9):
        return image, ""
    plain = Image.fromarray(np.asarray(image))
    plain.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(plain), f"EXIF orientation {orientation}"


def _grey_if_grey(image: Image.Image) -> Image.Image:
    """Mode L where red, green and blue agree in every pixel."""
    if image.mode == "L":
        return image
    pixels = np.asarray(image)
    red = pixels[..., 0]
    if np.array_equal(red, pixels[..., 1]) and np.array_equal(red, pixels[..., 2]):
        return Image.fromarray(np.ascontiguousarray(red))
    return image


def _pixel_digest(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(np.ascontiguousarray(np.asarray(image)).data)
    return digest.hexdigest()


def _damage(error: BaseException) -> str:
    """truncated or corrupt, by what the decoder said."""
    text = str(error).lower()
    ended = isinstance(error, EOFError) or any(word in text for word in ("truncated", "unexpected end", "no more data"))
    return "truncated" if ended else "corrupt"


def _png_size(header: bytes) -> tuple[int, int]:
    """(width, height) from a PNG's first 24 bytes, or (0, 0)."""
    if len(header) < 24 or not header.startswith(_SIGNATURES[0]):
        return (0, 0)
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
