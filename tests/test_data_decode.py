"""Decoding: what comes out of each kind of file, and what each kind of damage is called."""

import hashlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_tasks.data.decode import FORMATS, Rules, decode_array, decode_file
from mlx_tasks.data.reasons import Refusal

RULES = Rules(min_side=8, max_pixels=1_000_000, max_aspect_ratio=3.0)
NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(tmp_path: Path, data: bytes, name: str = "image.png"):
    path = tmp_path / name
    path.write_bytes(data)
    return decode_file(path, RULES)


def refusal(tmp_path: Path, data: bytes, name: str = "image.png") -> Refusal:
    with pytest.raises(Refusal) as caught:
        decoded(tmp_path, data, name)
    return caught.value


def png_of_header(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height and whose data are a few bytes of zeros."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_give_their_pixels_back(tmp_path, kind):
    data = encoded(Image.fromarray(NOISE), kind)
    one = decoded(tmp_path, data)
    np.testing.assert_array_equal(np.asarray(one.image), NOISE)
    assert one.sha256 == hashlib.sha256(data).hexdigest()
    assert one.size_bytes == len(data)
    assert (one.mode, one.converted) == ("RGB", "")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_listed_opens_and_its_truncation_is_refused(tmp_path, kind):
    data = encoded(Image.fromarray(NOISE), kind)
    assert decoded(tmp_path, data).image.size == (16, 24)
    assert refusal(tmp_path, data[: len(data) // 2]).reason in ("truncated", "corrupt")


def test_one_picture_in_two_files_has_one_pixel_hash_and_two_file_hashes(tmp_path):
    one = decoded(tmp_path, encoded(Image.fromarray(NOISE), "PNG"))
    other = decoded(tmp_path, encoded(Image.fromarray(NOISE), "BMP"))
    assert one.pixels_sha256 == other.pixels_sha256
    assert one.sha256 != other.sha256


def test_pixel_hash_tells_shapes_apart_that_share_their_bytes():
    pixels = np.zeros((8, 16), np.uint8)
    assert decode_array(pixels, RULES).pixels_sha256 != decode_array(pixels.reshape(16, 8), RULES).pixels_sha256


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(Image.fromarray(NOISE), "PNG")[:-40], "truncated"),
        (encoded(Image.fromarray(NOISE), "PNG")[:60], "truncated"),
        (encoded(Image.fromarray(NOISE), "JPEG")[:-40], "truncated"),
        (b"", "not_an_image"),
        (b"these are words, not pixels\n" * 20, "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n", "not_an_image"),
        (png_of_header(64, 64), "truncated"),
        (png_of_header(16, 7), "too_small"),
        (png_of_header(100, 33), "bad_aspect"),
        (png_of_header(1001, 1000), "bomb"),
        (png_of_header(30_000, 30_000), "bomb"),
    ],
)
def test_reason_of_each_damage(tmp_path, data, reason):
    assert refusal(tmp_path, data).reason == reason


def test_one_turned_bit_of_a_png_fails_its_checksum(tmp_path):
    data = bytearray(encoded(Image.fromarray(NOISE), "PNG"))
    data[len(data) // 2] ^= 1
    assert refusal(tmp_path, bytes(data)).reason == "corrupt"


def test_limits_are_inclusive(tmp_path):
    assert decoded(tmp_path, encoded(Image.new("L", (8, 24), 7), "PNG")).image.size == (8, 24)
    assert decoded(tmp_path, encoded(Image.new("L", (1000, 1000), 7), "PNG")).image.size == (1000, 1000)


def test_missing_and_unreadable_files_are_told_apart(tmp_path):
    with pytest.raises(Refusal, match="missing_file"):
        decode_file(tmp_path / "nothing.png", RULES)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(Refusal, match="unreadable"):
        decode_file(tmp_path / "folder.png", RULES)


def test_a_bomb_is_refused_by_its_header_without_memory_for_its_pixels(tmp_path):
    """A whole PNG of 30,000 x 30,000 one-bit pixels: 900 MB once decoded; the process may grow by 50."""
    path = tmp_path / "bomb.png"
    compressor = zlib.compressobj(9)
    row = bytes(1 + 30_000 // 8)
    body = b"".join(compressor.compress(row) for _ in range(30_000)) + compressor.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(data)
    code = f"""
import resource
from pathlib import Path
from mlx_tasks.data.decode import Rules, decode_file
from mlx_tasks.data.reasons import Refusal
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_file(Path({str(path)!r}), Rules(8, 50_000_000, 3.0))
except Refusal as refusal:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(refusal.reason, refusal.width, refusal.height, grown)
"""
    reason, width, height, grown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert (reason, width, height) == ("bomb", "30000", "30000")
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 50e6


def test_transparency_is_composited_on_white(tmp_path):
    layer = Image.new("RGBA", (8, 8), (255, 0, 0, 51))  # a fifth of red over white
    one = decoded(tmp_path, encoded(layer, "PNG"))
    np.testing.assert_allclose(np.asarray(one.image), np.broadcast_to([255, 204, 204], (8, 8, 3)), atol=1)
    assert (one.mode, one.converted) == ("RGBA", "alpha on white")
    clear = decoded(tmp_path, encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"))
    assert np.asarray(clear.image).min() == 255


def test_palette_with_a_transparent_entry_shows_white_there(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 1)
    one = decoded(tmp_path, encoded(image, "PNG", transparency=1))
    pixels = np.asarray(one.image)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("deep", "shallow"), [(0, 0), (128, 0), (129, 1), (257, 1), (32768, 128), (65535, 255)])
def test_sixteen_bits_become_eight_by_rounding(tmp_path, deep, shallow):
    one = decoded(tmp_path, encoded(Image.fromarray(np.full((8, 8), deep, np.uint16)), "PNG"))
    assert (one.image.mode, one.image.getpixel((3, 3))) == ("L", shallow)
    assert one.converted == "16 bits to 8"


def test_floats_have_no_one_way_to_eight_bits(tmp_path):
    data = encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    assert refusal(tmp_path, data).reason == "unsupported_mode"


def test_cmyk_inks_become_rgb(tmp_path):
    one = decoded(tmp_path, encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert one.image.getpixel((0, 0)) == (255, 0, 0)
    assert one.mode == "CMYK"


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    one = decoded(tmp_path, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert one.image.getpixel((4, 4)) == (255, 0, 0)
    assert one.converted.startswith("first of 2 frames")


# EXIF 2.3, tag 0x0112: where the stored top left pixel belongs in the upright picture of (height, width) corners.
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))],
)
def test_exif_orientation_puts_the_first_pixel_in_its_corner(tmp_path, orientation, corner):
    pixels = np.zeros((16, 8), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(decoded(tmp_path, encoded(Image.fromarray(pixels), "PNG", exif=exif)).image)
    assert upright.shape == ((16, 8) if orientation < 5 else (8, 16))
    assert upright[corner] == 255
    assert upright.sum() == 255


def test_a_grey_picture_in_rgb_is_grey(tmp_path):
    grey = np.repeat(NOISE[..., :1], 3, axis=2)
    one = decoded(tmp_path, encoded(Image.fromarray(grey), "PNG"))
    assert one.image.mode == "L"
    np.testing.assert_array_equal(np.asarray(one.image), grey[..., 0])
    grey[5, 5, 1] ^= 1
    assert decoded(tmp_path, encoded(Image.fromarray(grey), "PNG")).image.mode == "RGB"
