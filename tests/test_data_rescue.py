"""Files whose first picture is sound and whose surroundings are not: taken, with the very pixels; and what is not."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_tasks.data.decode import Rules, decode_file
from mlx_tasks.data.reasons import Refusal

RULES = Rules(min_side=8, max_pixels=1_000_000, max_aspect_ratio=3.0)
NOISE = np.random.default_rng(0).integers(0, 256, (4, 24, 16, 3), dtype=np.uint8)
FRAMES = [Image.fromarray(pixels) for pixels in NOISE]
PASSED_OVER = "damage outside the picture passed over"


def encoded(kind: str, frames: int = 1, **options) -> bytes:
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": FRAMES[1:frames]} if frames > 1 else {}
    FRAMES[0].save(buffer, kind, **more, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """A PNG chunk, with a checksum of one's own where one is given."""
    crc = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png(extra: bytes, before: bool = True) -> bytes:
    """A PNG with more chunks before its pixels, or after them."""
    data = encoded("PNG")
    place = data.index(b"IDAT") - 4 if before else len(data) - 12
    return data[:place] + extra + data[place:]


def jpeg(extra: bytes) -> bytes:
    """A JPEG with more bytes after its first marker."""
    data = encoded("JPEG")
    return data[:2] + extra + data[2:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("words.txt", "words " * 100)
    return buffer.getvalue()


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def written(path: Path, data: bytes):
    path.write_bytes(data)
    return decode_file(path, RULES)


TEXT = b"prompt\0\0" + zlib.compress(b"a" * 3_000_000)
CHUNKS = {
    "a compressed text": chunk(b"zTXt", TEXT),
    "a compressed text in Unicode": chunk(b"iTXt", b"workflow\0\1\0\0\0" + TEXT[8:]),
    "many texts": chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"a" * 1_000_000)) * 70,
    "a stranger's chunk with a wrong checksum": chunk(b"abCd", b"words", checksum=1),
    "a text with a wrong checksum": chunk(b"tEXt", b"prompt\0words", checksum=1),
    "chunks that are too short": b"".join(chunk(kind, b"") for kind in (b"pHYs", b"gAMA", b"cHRM", b"sRGB")),
    "a frame's header that is too short": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"abc"),
    "EXIF that is none": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("extra", CHUNKS.values(), ids=CHUNKS)
def test_a_png_is_its_pixels_whatever_chunks_surround_them(tmp_path, extra, before):
    one = written(tmp_path / "one.png", png(extra, before))
    np.testing.assert_array_equal(np.asarray(one.image), NOISE[0])
    assert one.converted in ("", PASSED_OVER)


SURROUNDED = {
    "PNG, huge profile": png(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(5_000_000)))),
    "PNG, archive behind it": encoded("PNG") + archive(),
    "PNG, without its end": encoded("PNG")[:-12],
    "PNG, a later frame cut": cut(encoded("PNG", 4), 0.8),
    "WebP, a later frame cut": cut(encoded("WEBP", 4, lossless=True), 0.8),
    "WebP, EXIF cut": encoded("WEBP", lossless=True, exif=b"Exif\0\0" + bytes(1000))[:-500],
    "TIFF, a later page cut": cut(encoded("TIFF", 4), 0.8),
    "AVIF, archive behind it": encoded("AVIF", quality=100, subsampling="4:4:4") + archive(),
    "JPEG 2000, noise behind it": encoded("JPEG2000") + NOISE.tobytes()[:500],
    "BMP, archive behind it": encoded("BMP") + archive(),
}


@pytest.mark.parametrize("data", SURROUNDED.values(), ids=SURROUNDED)
def test_what_lies_around_or_behind_a_first_picture_does_not_refuse_it(tmp_path, data):
    one = written(tmp_path / "one", data)
    np.testing.assert_allclose(np.asarray(one.image), NOISE[0], atol=3)


JPEGS = {
    "words between segments": jpeg(b"words"),
    "zeros between segments": jpeg(bytes(100)),
    "an empty segment": jpeg(b"\xff\xe5\0\0"),
    "a large profile": jpeg(
        b"".join(segment(0xE2, b"ICC_PROFILE\0%c\x5a" % (n + 1) + bytes(60_000)) for n in range(90))
    ),
    "a profile without a number": jpeg(segment(0xE2, b"ICC_PROFILE\0")),
    "EXIF that is none": jpeg(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "many XMP segments": jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x>" * 20_000) * 100),
    "a cut header": jpeg(segment(0xE0, b"JFIF")),
    "a cut Adobe segment": jpeg(segment(0xEE, b"Adobe")),
    "a cut index of pictures": jpeg(segment(0xE2, b"MPF\0")),
    "Photoshop's, cut": jpeg(segment(0xED, b"Photoshop 3.0\x008BIM\x04")),
    "archive behind it": encoded("JPEG") + archive(),
    "a second picture, cut": cut(encoded("MPO", 2), 0.6),
}


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_is_its_scan_whatever_segments_come_before_and_behind(tmp_path, data):
    plain = written(tmp_path / "plain.jpg", encoded("JPEG"))
    np.testing.assert_array_equal(np.asarray(written(tmp_path / "one.jpg", data).image), np.asarray(plain.image))


def test_a_jpeg_without_its_end_mark_is_whole_and_one_without_its_last_block_is_not(tmp_path):
    """Grey and colour, cut by a byte at a time from the end: whole while only the mark is missing."""
    for picture in (FRAMES[0], FRAMES[0].convert("L")):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=95)
        data = buffer.getvalue()
        pixels = written(tmp_path / "whole.jpg", data).pixels_sha256
        for missing in (1, 2):
            one = written(tmp_path / "cut.jpg", data[:-missing])
            assert (one.pixels_sha256, one.converted) == (pixels, "end mark missing")
        for missing in range(4, 60):
            with pytest.raises(Refusal, match="truncated"):
                written(tmp_path / "cut.jpg", data[:-missing])
    progressive = encoded("JPEG", progressive=True)
    with pytest.raises(Refusal, match="truncated"):
        written(tmp_path / "cut.jpg", progressive[:-2])


def test_a_gif_with_a_broken_later_frame_gives_its_first(tmp_path):
    data = encoded("GIF", 4)
    one = written(tmp_path / "one.gif", cut(data, 0.8))
    assert one.converted.startswith("first of several frames")
    assert one.pixels_sha256 == written(tmp_path / "whole.gif", data).pixels_sha256


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_outlives_the_damage(tmp_path, kind):
    """EXIF stays where it can be read: a turned picture with a broken text is turned all the same."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(kind, exif=exif)
    if kind == "PNG":
        place = data.index(b"IDAT") - 4
        data = data[:place] + chunk(b"tEXt", b"prompt\0words", checksum=1) + data[place:]
    elif kind == "JPEG":
        data = data[:2] + b"words" + data[2:]
    else:
        data += b"XMP \xff\xff\xff\0words"
        data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    one = written(tmp_path / "one", data)
    assert one.image.size == (24, 16)
    assert one.converted == f"{PASSED_OVER}; EXIF orientation 6"


def test_damage_of_the_pixels_is_refused_behind_a_text_too_long(tmp_path):
    """The second try mends nothing: a turned bit of the pixels, a picture cut, a bomb, a wrong palette."""
    data = bytearray(png(CHUNKS["a compressed text"]))
    place = data.index(b"IDAT") + 20
    for name, bad, reason in (
        ("bit", bytes(data[:place]) + bytes([data[place] ^ 1]) + bytes(data[place + 1 :]), "corrupt"),
        ("cut", bytes(data[:-100]), "corrupt"),
        ("bomb", png(CHUNKS["a compressed text"]).replace(header(16, 24), header(10_000, 10_000)), "bomb"),
    ):
        with pytest.raises(Refusal, match=reason):
            written(tmp_path / name, bad)


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def test_texts_that_would_fill_a_gigabyte_take_no_memory(tmp_path):
    """Twenty texts of 100 MB each once expanded: the picture is taken, and the process grows by less than 100 MB."""
    compressor = zlib.compressobj(9)
    body = b"".join(compressor.compress(bytes(1_000_000)) for _ in range(100)) + compressor.flush()
    path = tmp_path / "texts.png"
    path.write_bytes(png(chunk(b"zTXt", b"prompt\0\0" + body) * 20))
    code = f"""
import resource
from pathlib import Path
from mlx_tasks.data.decode import Rules, decode_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_file(Path({str(path)!r}), Rules(8, 1_000_000, 3.0))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 100e6


def test_sixteen_bit_grey_with_a_clear_value_shows_white_there(tmp_path):
    deep = np.full((8, 8), 300, np.uint16)
    deep[2, 3] = 7
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG", transparency=7)
    one = written(tmp_path / "one.png", buffer.getvalue())
    assert (one.image.getpixel((3, 2)), one.image.getpixel((0, 0))) == (255, 1)
    assert one.converted == "16 bits to 8; alpha on white"


def test_every_avif_with_one_byte_changed_is_a_picture_or_a_refusal(tmp_path):
    """Its decoder raises RuntimeError and MemoryError, which no other does."""
    data = encoded("AVIF", quality=10)
    reasons = set()
    for place in range(len(data)):
        try:
            written(tmp_path / "one.avif", data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        except Refusal as refusal:
            reasons.add(refusal.reason)
    assert "corrupt" in reasons
