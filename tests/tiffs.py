"""TIFF files made by hand, of any layout: the reader under test has no part in them."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import imagecodecs
import numpy as np
import numpy.typing as npt

GREY, RGB, PALETTE, CMYK, YCBCR, WHITE_IS_ZERO = 1, 2, 3, 5, 6, 0
NONE, LZW, JPEG, DEFLATE, PACKBITS, ZSTD = 1, 5, 7, 8, 32773, 50000
ROWS_PER_STRIP, TILE = 7, 16
_TYPES = {"H": 3, "I": 4, "Q": 16}


@dataclass(frozen=True)
class Form:
    """How samples (H,W,S) are stored. `kind` is the sample format: 1 unsigned, 2 signed, 3 float."""

    photometric: int = GREY
    bits: int = 8
    compression: int = NONE
    order: str = "<"
    planes: bool = False
    tiles: bool = False
    extra: tuple[int, ...] = ()
    kind: int = 1
    predictor: int = 1
    fill_order: int = 1
    big: bool = False
    palette: npt.NDArray[np.uint16] | None = field(default=None, repr=False)
    tags: dict[int, tuple[str, Sequence[int] | npt.NDArray[np.uint16]]] = field(default_factory=dict)


def write(samples: npt.NDArray[np.generic], form: Form) -> bytes:
    """The file of one page. Raises NotImplementedError for what its codec cannot encode."""
    height, width, count = samples.shape
    segments = [_encoded(each, form) for each in _segments(samples, form)]
    start = 16 if form.big else 8
    places = np.cumsum([start, *(len(each) + len(each) % 2 for each in segments)]).tolist()
    tags: dict[int, tuple[str, Sequence[int] | npt.NDArray[np.uint16]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [form.bits] * count),
        259: ("H", [form.compression]),
        262: ("H", [form.photometric]),
        266: ("H", [form.fill_order]),
        277: ("H", [count]),
        284: ("H", [2 if form.planes else 1]),
        317: ("H", [form.predictor]),
        339: ("H", [form.kind] * count),
    }
    if form.tiles:
        tags |= {322: ("I", [TILE]), 323: ("I", [TILE]), 324: ("I", places[:-1]), 325: ("I", list(map(len, segments)))}
    else:
        tags |= {278: ("I", [ROWS_PER_STRIP]), 273: ("I", places[:-1]), 279: ("I", list(map(len, segments)))}
    if form.extra:
        tags[338] = ("H", list(form.extra))
    if form.palette is not None:
        tags[320] = ("H", form.palette.ravel())
    if form.photometric == YCBCR:
        tags[530] = ("H", [1, 1])
    body = b"".join(each + b"\0" * (len(each) % 2) for each in segments)
    return _header(places[-1], form) + body + directory(tags | form.tags, places[-1], form)


def directory(
    tags: dict[int, tuple[str, Sequence[int] | npt.NDArray[np.uint16]]], place: int, form: Form, next_page: int = 0
) -> bytes:
    """The page's list of tags, to lie at `place`, and after it the values that do not fit into it."""
    entry, count, offset, room = ("HHQ", "Q", "Q", 8) if form.big else ("HHI", "H", "I", 4)
    sizes = struct.calcsize("<" + count), struct.calcsize("<" + entry) + room, struct.calcsize("<" + offset)
    far = place + sizes[0] + len(tags) * sizes[1] + sizes[2]
    entries, values = b"", b""
    for code, (kind, numbers) in sorted(tags.items()):
        data = np.asarray(numbers).astype(f"{form.order}u{struct.calcsize('<' + kind)}").tobytes()
        entries += struct.pack(form.order + entry, code, _TYPES[kind], len(numbers))
        if len(data) <= room:
            entries += data.ljust(room, b"\0")
        else:
            entries += struct.pack(form.order + offset, far + len(values))
            values += data + b"\0" * (len(data) % 2)
    head = struct.pack(form.order + count, len(tags))
    return head + entries + struct.pack(form.order + offset, next_page) + values


def _header(place: int, form: Form) -> bytes:
    mark = b"II" if form.order == "<" else b"MM"
    rest = ("HHHQ", 43, 8, 0, place) if form.big else ("HI", 42, place)
    return mark + struct.pack(form.order + str(rest[0]), *rest[1:])


def _segments(samples: npt.NDArray[np.generic], form: Form) -> Iterator[npt.NDArray[np.generic]]:
    planes = np.split(samples, samples.shape[2], 2) if form.planes else [samples]
    for plane in planes:
        if not form.tiles:
            yield from (plane[row : row + ROWS_PER_STRIP] for row in range(0, len(plane), ROWS_PER_STRIP))
            continue
        beyond = [(0, -length % TILE) for length in plane.shape[:2]]
        padded = np.pad(plane, [*beyond, (0, 0)], mode="edge")
        for row in range(0, len(padded), TILE):
            yield from (padded[row : row + TILE, x : x + TILE] for x in range(0, padded.shape[1], TILE))


def _encoded(segment: npt.NDArray[np.generic], form: Form) -> bytes:
    if form.compression == JPEG:
        return _jpeg(segment, form)
    if form.predictor == 2:
        segment = np.diff(segment, axis=1, prepend=np.zeros_like(segment[:, :1]))
    data = _packed(segment, form)
    codec = {NONE: bytes, LZW: imagecodecs.lzw_encode, DEFLATE: imagecodecs.zlib_encode}
    codec |= {PACKBITS: imagecodecs.packbits_encode, ZSTD: imagecodecs.zstd_encode}
    encoded = bytes(codec[form.compression](data))
    if form.fill_order == 2:  # of what lies in the file
        encoded = np.packbits(np.unpackbits(np.frombuffer(encoded, np.uint8)), bitorder="little").tobytes()
    return encoded


def _packed(segment: npt.NDArray[np.generic], form: Form) -> bytes:
    """Samples as they lie in a row: whole words, or bits from the highest on, each row filled up to bytes."""
    if form.bits in (8, 16, 32, 64):
        kind = {1: "u", 2: "i", 3: "f"}[form.kind]
        return segment.astype(f"{form.order}{kind}{form.bits // 8}").tobytes()
    flat = segment.reshape(len(segment), -1).astype(np.uint16)
    bits = (flat[:, :, None] >> np.arange(form.bits - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(len(flat), -1).astype(np.uint8), axis=1).tobytes()


def _jpeg(segment: npt.NDArray[np.generic], form: Form) -> bytes:
    if form.bits != 8 or segment.shape[2] not in (1, 3, 4):
        raise NotImplementedError
    colours = {(YCBCR, 3): ("RGB", "YCBCR"), (RGB, 3): ("RGB", "RGB")}.get((form.photometric, segment.shape[2]))
    if segment.shape[2] == 4:
        colours = ("CMYK", "CMYK")
    stored = segment.astype(np.uint8).squeeze(2) if segment.shape[2] == 1 else segment.astype(np.uint8)
    options = {} if colours is None else {"colorspace": colours[0], "outcolorspace": colours[1]}
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(stored), level=100, subsampling="444", **options))
