"""The expendable process that `fcdd.io.isolation` decodes in: it is given no credentials, and little memory.

Reads requests and encoded images from stdin, until stdin ends. Of an image to score it writes the pixels into a slot of
the shared memory it inherited and a reply of fixed form to stdout; of a whole picture all pixels to stdout, after
theirs. Not for people.
"""

import codecs
import dataclasses
import functools
import importlib
import logging
import mmap
import os
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from fcdd import images, resizing
from fcdd.cropping import Box, Crop
from fcdd.errors import ImageError
from fcdd.images import Limits, Mode, View
from fcdd.io import sandbox
from fcdd.resizing import Resizer

# What is asked for (DECODE, or a mode of PICTURE); slot; width and height that a picture is to fit into, or 0; the part
# of it that is asked for (top, left, bottom, right), or 0; length.
REQUEST = struct.Struct("<BBIIIIIIQ")
DECODE = 0
PICTURES: dict[Mode, int] = {"L": 1, "RGB": 2, "A": 3}
# Decoded; width, height, frames, format, is faint, peak, brightness, contrast, sharpness, hash; lengths of reason and
# detail.
REPLY = struct.Struct(f"<?III8s?ffff{images.HASH_BYTES}sHH")
_NOTHING = (0, 0, 0, b"", False, 0.0, 0.0, 0.0, 0.0, b"")
# Decoded; width, height; lengths of reason and detail.
PICTURE_REPLY = struct.Struct("<?IIHH")
# Ready, and without the rights that `fcdd.io.sandbox` gives up; or with some that could not be given up.
READY, READY_WITH_RIGHTS = b"!", b"?"
# Rows of a picture are passed on in pieces of about so many pixels.
BAND_PIXELS = 2**22
_LONGEST_DETAIL = 1000
# Pillow loads these when it meets an orientation, or several pictures in a JPEG.
_LOADED_LATE = ("PIL.TiffImagePlugin", "PIL.MpoImagePlugin")
# Of texts in metadata; Python would load them when they are met with, from files.
_ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp1252")


def arguments(memory_fd: int, slots: int, view: View, limits: Limits, memory: int) -> list[str]:
    """The command line that `main` reads."""
    values = (memory_fd, slots, *view.size, view.channels, *dataclasses.astuple(limits), memory)
    return [str(view.crop or ""), repr(view.full_scale or 0.0), view.resizer, *map(str, values)]


def main(argv: Sequence[str]) -> None:
    """Serve until stdin ends."""
    memory_fd, slots, height, width, channels, *limit_values, memory = map(int, argv[3:])
    crop = Crop.parse(argv[0]) if argv[0] else None
    view = View((height, width), channels, float(argv[1]) or None, crop, cast(Resizer, argv[2]))
    limits = Limits(*limit_values)
    shared = mmap.mmap(memory_fd, slots * height * width * channels)
    pixels = np.ndarray((slots, height, width, channels), np.uint8, buffer=shared)
    os.close(memory_fd)
    requests = sys.stdin.buffer
    _prepare(view)
    _limit_memory(memory)
    _write(READY if sandbox.enter() else READY_WITH_RIGHTS)
    modes: dict[int, Mode] = {number: mode for mode, number in PICTURES.items()}
    while header := requests.read(REQUEST.size):
        kind, slot, *numbers, length = REQUEST.unpack(header)
        data = requests.read(length)
        if kind == DECODE:
            _answer(REPLY, _NOTHING, lambda: _decode(data, view, pixels[slot], limits))  # noqa: B023 called at once
        else:
            _picture(data, modes[kind], numbers, view, limits)


def _prepare(view: View) -> None:
    """Load what is loaded late, while files can still be opened, and lift the limits that the memory's replaces."""
    from fcdd import tiff  # not for those who only send requests

    logging.disable()
    for module in _LOADED_LATE:
        importlib.import_module(module)
    for name in _ENCODINGS:
        codecs.lookup(name)
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = sys.maxsize
    tiff.prepare()
    resizing.check(view.resizer)


def _decode(data: bytes, view: View, pixels: npt.NDArray[np.uint8], limits: Limits) -> tuple[object, ...]:
    """The values of a reply; the pixels are where they belong."""
    image = images.decode(data, view, limits=limits)
    pixels[:] = image.pixels
    found = (image.width, image.height, image.frames, image.format.encode(), image.is_faint, image.peak)
    return (*found, image.brightness, image.contrast, image.sharpness, image.hash)


def _picture(data: bytes, mode: Mode, numbers: list[int], view: View, limits: Limits) -> None:
    """Reply with a picture; the numbers are those of a request."""
    within, part = (numbers[0], numbers[1]), Box(*numbers[2:])
    decode = functools.partial(
        images.decode_full,
        data,
        mode=mode,
        within=within if all(within) else None,
        full_scale=view.full_scale,
        part=part if any(part) else None,
        limits=limits,
    )
    made: list[Image.Image] = []

    def make() -> tuple[object, ...]:
        made.append(decode())
        return made[0].size

    _answer(PICTURE_REPLY, (0, 0), make)
    for picture in made:
        for first, last in bands(picture.size):
            _write(picture.crop((0, first, picture.width, last)).tobytes())


def bands(size: tuple[int, int]) -> list[tuple[int, int]]:
    """First rows, and the rows after the last, of the pieces that a picture of `size` (width, height) comes in."""
    width, height = size
    step = max(1, BAND_PIXELS // width)
    return [(first, min(first + step, height)) for first in range(0, height, step)]


def _answer(form: struct.Struct, nothing: tuple[object, ...], make: Callable[[], tuple[object, ...]]) -> None:
    """Reply with the values that `make` returns, or with the ImageError that it raises."""
    try:
        values, lengths, text = make(), (0, 0), b""
        decoded = True
    except ImageError as error:
        reason, detail = error.reason.encode(), error.detail.encode(errors="replace")[:_LONGEST_DETAIL]
        decoded, values, lengths, text = False, nothing, (len(reason), len(detail)), reason + detail
    _write(form.pack(decoded, *values, *lengths) + text)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]


def _limit_memory(memory: int) -> None:
    """An image that wants more than `memory` bytes gets MemoryError."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))


if __name__ == "__main__":
    main(sys.argv[1:])
