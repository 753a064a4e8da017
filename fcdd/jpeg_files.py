"""Which JPEG files a decoder without an isolated process of its own may be given: those that are whole and ordinary.

    SOI, segments with tables, the frame's header, the scan's header, entropy-coded data, EOI

The decoders of GPUs return what is cut off or overwritten as a picture, without a word, where Pillow refuses it. So the
markers of a file are walked through first (ITU-T T.81, annex B): damage leaves a marker where none may be, or none
where one must be. Whatever is unusual is left to the decoder of `fcdd.images`, which also says what is wrong with it.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fcdd import images
from fcdd.images import Limits

_FRAME, _HUFFMAN, _END, _SCAN, _QUANTISATION, _RESTART_INTERVAL = 0xC0, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD
_EXIF, _ADOBE = 0xE1, 0xEE
# Segments that change nothing where they stand: applications', comments.
_PASSIVE = (*range(0xE0, 0xF0), 0xFE)
_FIRST_RESTART, _RESTART_MARKERS = 0xD0, 8
# In entropy-coded data: 0xFF is followed by 0 unless it begins a marker.
_MARKER = re.compile(rb"\xff[^\x00]")
_EXIF_BEGINS, _SEVERAL_PICTURES = b"Exif\0\0", b"MPF\0"
_YCBCR = (1, 2, 3)
# Files of more segments are none that cameras write, nor are those whose EXIF metadata come in several.
_MOST_SEGMENTS = 200
# How many blocks across and down (a digit each) a component has for one of the colours, which have the first.
_SAMPLINGS = (0x11, 0x21, 0x12, 0x22, 0x41)
# Of a scan that holds all coefficients at once.
_ALL_COEFFICIENTS = bytes((0, 63, 0))
_LARGEST_DC_CATEGORY = 15


class JpegFile(NamedTuple):
    """An ordinary and whole JPEG, and what its header says: its size before the EXIF orientation (1 to 8) turns it."""

    data: bytes
    width: int
    height: int
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as people see it."""
        return (self.height, self.width) if images.is_quarter_turn(self.orientation) else (self.width, self.height)


def examine(data: bytes, limits: Limits) -> JpegFile | None:
    """An ordinary and whole JPEG within the limits; None for everything else, whatever the bytes.

    Ordinary: baseline (sequential Huffman coding, 8 bits), grey or YCbCr, one scan, one picture.
    """
    if not data.startswith(b"\xff\xd8\xff") or len(data) > limits.encoded_bytes:
        return None
    try:
        return _examine(data, limits)
    except (_Unusual, IndexError, struct.error):  # the latter two: it ends within a segment
        return None


class _Unusual(Exception):
    """Not for a decoder that trusts its files."""


@dataclass
class _Header:
    """What the segments before the entropy-coded data say."""

    frame: bytes = b""
    exif: bytes = b""
    restart_interval: int = 0
    quantisation: set[int] = field(default_factory=set)
    # As (class, number): class 0 codes DC coefficients, class 1 AC coefficients.
    huffman: set[tuple[int, int]] = field(default_factory=set)


def _examine(data: bytes, limits: Limits) -> JpegFile:
    header = _Header()
    *tables, (_, scan, end) = _segments(data)
    for marker, body, _ in tables:
        _take(header, marker, body)
    bits, height, width, components = struct.unpack_from(">BHHB", header.frame)
    _check(bits == 8 and 0 < width * height <= limits.pixels and len(header.frame) == 6 + 3 * components)
    ids, quantised = header.frame[6::3], header.frame[8::3]
    _check(components == 1 or tuple(ids) == _YCBCR)
    brightness, *colours = header.frame[7::3]
    _check(brightness in _SAMPLINGS and set(colours) <= {_SAMPLINGS[0]})
    _check(header.quantisation.issuperset(quantised))
    _check(scan[0] == components and scan[1 : 1 + 2 * components : 2] == ids and scan[-3:] == _ALL_COEFFICIENTS)
    _check(len(scan) == 4 + 2 * components)
    for chosen in scan[2 : 2 + 2 * components : 2]:
        _check({(0, chosen >> 4), (1, chosen & 15)} <= header.huffman)
    _check_entropy_coded(data, end, header.restart_interval)
    return JpegFile(data, width, height, images.exif_orientation(header.exif))


def _check(is_usual: bool) -> None:
    if not is_usual:
        raise _Unusual


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Markers from the second on, up to that of the scan: their segments, and where these end."""
    at, marker, number = 2, 0, 0
    while marker != _SCAN:
        number += 1
        _check(data[at] == 0xFF and number <= _MOST_SEGMENTS)
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        _check(len(body) == length - 2)
        at += 2 + length
        yield marker, body, at


def _take(header: _Header, marker: int, body: bytes) -> None:
    if marker == _FRAME:
        _check(not header.frame)
        header.frame = body
    elif marker == _HUFFMAN:
        _take_huffman(header, body)
    elif marker == _QUANTISATION:
        while body:
            _check(body[0] < 4 and len(body) >= 65)  # of 8 bits
            header.quantisation.add(body[0])
            body = body[65:]
    elif marker == _RESTART_INTERVAL:
        (header.restart_interval,) = struct.unpack(">H", body)
    elif marker == _EXIF and body.startswith(_EXIF_BEGINS):
        _check(not header.exif)
        header.exif = body
    elif marker == _ADOBE and body.startswith(b"Adobe"):
        _check(body[11] == 1)  # YCbCr
    else:
        _check(marker in _PASSIVE and not body.startswith(_SEVERAL_PICTURES))


def _take_huffman(header: _Header, body: bytes) -> None:
    """Tables whose codes exist: of each length fewer than are left (T.81, annex C)."""
    while body:
        kind, number, counts = body[0] >> 4, body[0] & 15, body[1:17]
        symbols = body[17 : 17 + sum(counts)]
        _check(kind < 2 and number < 4 and len(counts) == 16 and 0 < len(symbols) == sum(counts))
        left = 1
        for count in counts:
            left = 2 * left - count
            _check(left > 0)  # no code is all ones
        _check(kind == 1 or max(symbols) <= _LARGEST_DC_CATEGORY)
        header.huffman.add((kind, number))
        body = body[17 + len(symbols) :]


def _check_entropy_coded(data: bytes, at: int, restart_interval: int) -> None:
    """From `at` on there are restarts in their order, if there may be any, and then the end."""
    expected = 0
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == _END:
            return
        _check(restart_interval > 0 and marker == _FIRST_RESTART + expected)
        expected = (expected + 1) % _RESTART_MARKERS
    raise _Unusual
