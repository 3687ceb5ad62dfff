"""What is left of a damaged or overfull file when all but its first picture is taken away, for a second try.

Pixels may be sound where the rest is not: a text chunk above Pillow's limit, as drawing programs write, a profile with
a wrong checksum, strangers' bytes between a JPEG's segments, a later frame that is cut off. Each function reads a file
that Pillow refused and gives the same picture without what surrounds it, or None where it sees no way. Nothing that
holds pixels is mended: a PNG's pixel chunks must have their checksums, and a picture that ends early still does.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_TURNS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_SMALL = 1 << 16
"""Longest EXIF or text kept for the sake of the orientation (bytes)."""

_JPEG_PIXELS = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD})
"""Frames, tables, restarts."""
_ADOBE, _ADOBE_LENGTH = 0xEE, 14
"""The segment that names the colour transform, and its least length."""
_WEBP_PIXELS = (b"ALPH", b"VP8 ", b"VP8L", b"ANIM")
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04


def first_pictures(file: BinaryIO, header: bytes) -> Iterator[BytesIO]:
    """The first picture alone: with its EXIF, then without."""
    for with_exif in (True, False):
        file.seek(0)
        if header.startswith(_PNG):
            data = _png(file, with_exif)
        elif header.startswith(b"\xff\xd8"):
            data = _jpeg(file.read(), with_exif)
        elif header.startswith(b"RIFF") and header[8:12] == b"WEBP":
            data = _webp(file.read(), with_exif)
        elif header[4:8] == b"ftyp":
            data = _boxes(file.read())
        else:
            return
        if data is not None:
            yield BytesIO(data)


def ended_anew(file: BinaryIO, header: bytes) -> list[BytesIO]:
    """A JPEG without its end mark, with one put behind it, after nothing and after bits of three kinds.

    Where all of them give the same pixels, those bits came after the last block: only the mark is missing. Only for
    pictures whose one scan holds all; of others whole scans may be missing.
    """
    file.seek(0)
    if not header.startswith(b"\xff\xd8") or (alone := _jpeg(file.read(), with_exif=True)) is None:
        return []
    place, of_frame = 2, 0
    while (marker := alone[place + 1]) != 0xDA:
        if marker in (0xC0, 0xC1):
            of_frame = alone[place + 9]
        place += 2 + int.from_bytes(alone[place + 2 : place + 4], "big")
    if not of_frame or alone[place + 4 : place + 5] != bytes([of_frame]):
        return []
    whole = alone.removesuffix(b"\xff")
    return [BytesIO(whole + bits * 64 + b"\xff\xd9") for bits in (b"", b"\x00", b"\x35", b"\xca")]


def _png(file: BinaryIO, with_exif: bool) -> bytes | None:
    """Chunks that make pixels, each with its checksum; None where one of those is damaged."""
    kept = [file.read(len(_PNG))]
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IEND":
            break
        turns = with_exif and length <= _SMALL and kind in (b"eXIf", *_PNG_TEXTS)
        if kind not in _PNG_PIXELS and not turns:
            file.seek(length + 4, 1)
            continue
        body = file.read(length + 4)
        if len(body) < length + 4:
            break
        sound = zlib.crc32(body[:-4], zlib.crc32(kind)) == int.from_bytes(body[-4:], "big")
        if kind in _PNG_PIXELS:
            if not sound:
                return None
        elif not sound or (kind in _PNG_TEXTS and not body.startswith(_PNG_TURNS)):
            continue
        kept += [start, body]
    end = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    return b"".join([*kept, end])


def _jpeg(data: bytes, with_exif: bool) -> bytes | None:
    """The segments up to the first scan that the decoder needs, and all from there on."""
    kept, place = [b"\xff\xd8"], 2
    while (place := data.find(b"\xff", place)) >= 0:
        while data[place + 1 : place + 2] == b"\xff":  # a marker may be filled up in front
            place += 1
        marker = data[place + 1] if place + 1 < len(data) else 0
        if marker == 0xDA:
            return b"".join([*kept, data[place:]])
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # no marker, or one without a body
            place += 2
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        exif = marker == 0xE1 and data.startswith(b"Exif\0\0", place + 4)
        adobe = marker == _ADOBE and end - place - 2 >= _ADOBE_LENGTH
        if marker in _JPEG_PIXELS or adobe or (exif and with_exif):
            kept.append(data[place:end])
        place = end
    return None


def _webp(data: bytes, with_exif: bool) -> bytes | None:
    """The header, the first frame and nothing after it; the lengths are written anew."""
    kept, place = [], 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        body = data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
        if len(body) < length:
            break
        if kind == b"VP8X" and not with_exif and body:
            body = bytes([body[0] & ~_WEBP_METADATA_FLAGS]) + body[1:]
        if kind in (b"VP8X", b"ANMF", *_WEBP_PIXELS) or (kind == b"EXIF" and with_exif):
            kept.append(struct.pack("<4sI", kind, length) + body + b"\0" * (length % 2))
        if kind == b"ANMF":
            break
    content = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(content)) + content if kept else None


def _boxes(data: bytes) -> bytes | None:
    """Whole boxes from the front up to the last that the format names: what follows is no part of the picture."""
    place = 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if (
            length < 8
            or place + length > len(data)
            or kind not in (b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip")
        ):
            break
        place += length
    return data[:place] if 0 < place < len(data) else None
