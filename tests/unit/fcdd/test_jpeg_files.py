"""Which files a GPU's decoder is given: it would return damaged ones as pictures."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from fcdd import images, jpeg_files
from fcdd.errors import ImageError
from fcdd.images import Limits, View
from tests.jpegs import jpeg, picture

LIMITS = Limits()
NOISY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8))
ORDINARY = {
    "4:2:0": jpeg(NOISY),
    "4:4:4": jpeg(NOISY, subsampling=0),
    "grey": jpeg(NOISY.convert("L")),
    "its own tables": jpeg(NOISY, optimize=True, quality=60),
    "restarts": jpeg(NOISY, restart_marker_blocks=1),
    "a comment": jpeg(NOISY, comment="about \xff\xd9 this"),
    "bytes after its end": jpeg(NOISY) + b"\xff\xd8\xff more",
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_files_are_taken_with_their_size(kind: str) -> None:
    file = jpeg_files.examine(ORDINARY[kind], LIMITS)
    assert file == (ORDINARY[kind], 120, 90, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_the_trusted_decoder(orientation: int) -> None:
    data = jpeg(NOISY, orientation)
    file, trusted = jpeg_files.examine(data, LIMITS), images.decode(data, View((8, 8), 3))
    assert file
    assert (file.orientation, file.upright_size) == (orientation, (trusted.width, trusted.height))


def several() -> bytes:
    sink = io.BytesIO()
    picture(1).save(sink, "MPO", save_all=True, append_images=[picture(2)])
    return sink.getvalue()


def png() -> bytes:
    sink = io.BytesIO()
    NOISY.save(sink, "PNG")
    return sink.getvalue()


UNUSUAL = {
    "progressive": jpeg(NOISY, progressive=True),
    "CMYK": jpeg(NOISY.convert("CMYK")),
    "RGB": jpeg(NOISY, keep_rgb=True),
    "several pictures": several(),
    "PNG": png(),
    "nothing": b"",
    "12 bits": jpeg(NOISY).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "arithmetic coding": jpeg(NOISY).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc9\x00\x11\x08"),
    "no height": jpeg(NOISY).replace(b"\x08\x00\x5a\x00\x78", b"\x08\x00\x00\x00\x78"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_unusual_is_left_to_the_trusted_decoder(kind: str) -> None:
    assert jpeg_files.examine(UNUSUAL[kind], LIMITS) is None


def test_what_is_beyond_the_limits_is_not_taken() -> None:
    data = jpeg(NOISY)
    assert jpeg_files.examine(data, Limits(pixels=120 * 90))
    assert jpeg_files.examine(data, Limits(pixels=120 * 90 - 1)) is None
    assert jpeg_files.examine(data, Limits(encoded_bytes=len(data) - 1)) is None


def damaged(data: bytes, source: random.Random) -> bytes:
    """Cut off, overwritten with noise or zeros, or with one bit turned; anywhere but in the first bytes."""
    at, length = source.randrange(20, len(data) - 2), source.choice([8, 64, 512])
    length = min(length, len(data) - at)
    how = source.choice(["cut", "noise", "zeros", "bit"])
    if how == "cut":
        return data[:at]
    if how == "bit":
        return data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :]
    filling = source.randbytes(length) if how == "noise" else bytes(length)
    return data[:at] + filling + data[at + length :]


@pytest.mark.parametrize("kind", ["4:2:0", "grey", "its own tables", "restarts"])
def test_nothing_is_taken_that_the_trusted_decoder_refuses(kind: str) -> None:
    source, refused = random.Random(kind), 0
    for _ in range(400):
        data = damaged(ORDINARY[kind], source)
        try:
            images.decode(data, View((8, 8), 3))
        except ImageError:
            refused += 1
            assert jpeg_files.examine(data, LIMITS) is None
    assert refused > 50


def test_what_is_cut_off_is_never_taken() -> None:
    data = ORDINARY["4:2:0"]
    assert not any(jpeg_files.examine(data[:length], LIMITS) for length in range(0, len(data) - 1, 3))
