"""The expendable process that `fcdd.isolation` decodes in: it is given no credentials, and little memory.

Reads a length and an encoded image from stdin, writes pixels into a slot of the shared memory it inherited and a
reply of fixed form to stdout, until stdin ends. Not for people.
"""

import dataclasses
import mmap
import os
import resource
import struct
import sys
from collections.abc import Sequence

import numpy as np

from fcdd import images
from fcdd.errors import ImageError
from fcdd.images import Limits

REQUEST = struct.Struct("<IQ")  # slot, length
# Decoded; width, height, frames, format, brightness, contrast, sharpness, hash; lengths of reason and detail.
REPLY = struct.Struct(f"<?III8sfff{images.HASH_BYTES}sHH")
_NOTHING = (0, 0, 0, b"", 0.0, 0.0, 0.0, b"")
READY = b"!"
_LONGEST_DETAIL = 1000


def arguments(
    memory_fd: int, slots: int, size: tuple[int, int], channels: int, limits: Limits, memory: int
) -> list[str]:
    """The command line that `main` reads."""
    return [str(each) for each in (memory_fd, slots, *size, channels, *dataclasses.astuple(limits), memory)]


def main(argv: Sequence[str]) -> None:
    """Serve until stdin ends."""
    memory_fd, slots, height, width, channels, *limit_values, memory = map(int, argv)
    limits = Limits(*limit_values)
    _restrict(memory)
    shared = mmap.mmap(memory_fd, slots * height * width * channels)
    pixels = np.ndarray((slots, height, width, channels), np.uint8, buffer=shared)
    requests = sys.stdin.buffer
    os.write(sys.stdout.fileno(), READY)
    while header := requests.read(REQUEST.size):
        slot, length = REQUEST.unpack(header)
        data = requests.read(length)
        try:
            image = images.decode(data, size=(height, width), channels=channels, limits=limits)
            pixels[slot] = image.pixels
            size = (image.width, image.height, image.frames, image.format.encode())
            values = (*size, image.brightness, image.contrast, image.sharpness, image.hash)
            reply, text = (True, *values, 0, 0), b""
        except ImageError as error:
            reason, detail = error.reason.encode(), error.detail.encode(errors="replace")[:_LONGEST_DETAIL]
            reply = (False, *_NOTHING, len(reason), len(detail))
            text = reason + detail
        os.write(sys.stdout.fileno(), REPLY.pack(*reply) + text)


def _restrict(memory: int) -> None:
    """An image that wants more than `memory` bytes gets MemoryError; a crash leaves no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))


if __name__ == "__main__":
    main(sys.argv[1:])
