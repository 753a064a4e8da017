"""Decoding in an expendable process: a crash, a hang or a memory blow-up costs the image, never the job.

    encoded bytes -> pipe -> fcdd.io.decoder_process -> shared memory -> DecodedImage or ImageError
                                                  -> pipe          -> a whole picture, to be looked at

Ray tries a batch that kills its process for ever (docs/facts.md), so nothing that is decoded may do that. An image that
kills the decoder gets one more try in a fresh one; then it is a decoder_crash, or a timeout. Its neighbours lose
nothing. The process has no credentials, and none of the rights that it could get some with (`fcdd.io.sandbox`).
"""

import contextlib
import fcntl
import functools
import logging
import mmap
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Self, get_args

import numpy as np
from PIL import Image

from fcdd import resizing
from fcdd.cropping import Box
from fcdd.errors import FCDDError, ImageError, Reason
from fcdd.images import ACCEPTED, FORMATS, DecodedImage, Limits, Mode, View
from fcdd.io import decoder_process

# One image is decoded while the next waits in the pipe.
_SLOTS = 2
MAX_CRASHES = 2
# A system that is short of memory ends a process while it starts, too.
_MAX_STARTS = 3
_START_TIMEOUT_S = 60.0
TIMEOUT_S = 30.0
# Of the decoders that a process shares. The largest images take gigabytes: not sixteen at once.
_SHARED_DECODERS = max(2, min(4, os.cpu_count() or 2))
# For an image that somebody chose: it may be larger, and the machine busy with training.
_SHARED_TIMEOUT_S = 120.0
_PIPE_BYTES = 1024**2
# The decoder reads hostile bytes: it gets no credentials, and no way to find some.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")

log = logging.getLogger(__name__)


class _Died(Exception):
    """The decoder ended or had to be ended; carries the reason for the image it was at."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


# Of a request: no size to fit into, and no part.
_NOTHING = (0,) * 6


@dataclass
class _Pending:
    """An image in the decoder's hands, and what reads the reply."""

    header: bytes
    data: bytes
    receive: Callable[[], DecodedImage | Image.Image]
    crashes: int = 0


class IsolatedDecoder:
    """`fcdd.images.decode` and `decode_full` in a process of its own, which starts with the first image.

    For one thread at a time, see `DecoderPool`; close it, or use it as a context.
    """

    def __init__(
        self,
        view: View,
        *,
        limits: Limits = Limits(),  # noqa: B008
        timeout_s: float = TIMEOUT_S,
        command: Sequence[str] = ("-m", "fcdd.io.decoder_process"),
    ) -> None:
        """`view` is what `decode_each` gives; `timeout_s` is what one image may take.

        Raises ConfigError when what resizes its images is not installed.
        """
        resizing.check(view.resizer)
        self._view, self._limits = view, limits
        self._timeout_s, self._command = timeout_s, tuple(command)
        shape = (_SLOTS, *view.size, view.channels)
        self._memory = _shared_memory(int(np.prod(shape)))
        self._pixels = np.ndarray(shape, np.uint8, buffer=mmap.mmap(self._memory.fileno(), int(np.prod(shape))))
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: deque[_Pending] = deque()
        self._deadline = 0.0
        self.crashes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._kill()
        self._memory.close()

    def decode_each(self, encoded: Iterable[bytes]) -> Iterator[DecodedImage | ImageError]:
        """One result per image, in order, as they are asked for."""
        self._begin()
        free = 0
        for data in encoded:
            header = decoder_process.REQUEST.pack(decoder_process.DECODE, free, *_NOTHING, len(data))
            self._pending.append(_Pending(header, data, functools.partial(self._receive_pixels, free)))
            free = (free + 1) % _SLOTS
            self._submit_last()
            if len(self._pending) == _SLOTS:
                yield self._next_pixels()
        while self._pending:
            yield self._next_pixels()

    def picture(
        self, data: bytes, *, mode: Mode = "RGB", within: tuple[int, int] | None = None, part: Box | None = None
    ) -> Image.Image:
        """`fcdd.images.decode_full`: a picture or a part of it, as it is or made to fit `within` (width, height).

        Raises ImageError, also for one that crashes the decoder or takes it too long.
        """
        self._begin()
        header = decoder_process.REQUEST.pack(
            decoder_process.PICTURES[mode], 0, *(within or _NOTHING[:2]), *(part or _NOTHING[2:]), len(data)
        )
        self._pending.append(_Pending(header, data, functools.partial(self._receive_picture, mode, within)))
        self._submit_last()
        result = self._next()
        if isinstance(result, ImageError):
            raise result
        assert isinstance(result, Image.Image)
        return result

    def _begin(self) -> None:
        if self._pending:  # whoever asked last time did not take everything
            self._kill()
            self._pending.clear()

    def _next_pixels(self) -> DecodedImage | ImageError:
        result = self._next()
        assert not isinstance(result, Image.Image)
        return result

    def _next(self) -> DecodedImage | Image.Image | ImageError:
        """The result of the oldest image; the decoder is started again as often as that takes."""
        first = self._pending[0]
        while True:
            try:
                result: DecodedImage | Image.Image | ImageError = first.receive()
            except ImageError as error:
                result = error
            except _Died as death:
                self._kill()
                self.crashes += 1
                first.crashes += 1
                if first.crashes < MAX_CRASHES:
                    self._submit_all()
                    continue
                self._pending.popleft()
                self._submit_all()
                return ImageError(death.reason, f"{death}, {MAX_CRASHES} times")
            self._pending.popleft()
            self._deadline = time.monotonic() + self._timeout_s
            return result

    def _submit_last(self) -> None:
        # Its clock starts when the decoder is free for it: it may have waited for this image.
        if len(self._pending) == 1 or self._has_replied():
            self._deadline = time.monotonic() + self._timeout_s
        # A decoder that died is found out by `_next`, which knows whose fault it is.
        with contextlib.suppress(_Died):
            self._send(self._pending[-1])

    def _has_replied(self) -> bool:
        if self._process is None:
            return False
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def _submit_all(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s
        for each in self._pending:
            with contextlib.suppress(_Died):
                self._send(each)

    def _send(self, image: _Pending) -> None:
        process = self._running()
        for data in (image.header, image.data):
            self._write(process, memoryview(data))

    def _write(self, process: "subprocess.Popen[bytes]", view: memoryview) -> None:
        assert process.stdin is not None
        while view:
            _, writable, _ = select.select([], [process.stdin], [], self._seconds_left())
            if not writable:
                raise self._timed_out()
            try:
                view = view[os.write(process.stdin.fileno(), view) :]
            except BrokenPipeError as error:
                raise self._dead() from error

    def _receive_pixels(self, slot: int) -> DecodedImage:
        """Raises ImageError, _Died."""
        reply = self._reply(decoder_process.REPLY)
        width, height, frames, kind, is_faint, peak, brightness, contrast, sharpness, hash_ = reply
        kind = kind.rstrip(b"\0").decode(errors="replace")
        counted = 0 < width * height <= self._limits.pixels and 1 <= frames <= self._limits.frames
        # A decoder that was taken over must not be believed what would stop the run, or lie in a table as nonsense.
        measured = peak >= 0 and all(0 <= each <= 255 for each in (brightness, contrast, sharpness))
        if not (counted and kind in FORMATS and measured):
            raise _Died("decoder_crash", "the decoder gave a reply that is none")
        return DecodedImage(
            pixels=self._pixels[slot].copy(),
            width=width,
            height=height,
            frames=frames,
            format=kind,
            is_faint=is_faint,
            peak=peak,
            brightness=brightness,
            contrast=contrast,
            sharpness=sharpness,
            hash=hash_,
        )

    def _receive_picture(self, mode: Mode, within: tuple[int, int] | None) -> Image.Image:
        """Raises ImageError, _Died."""
        width, height = self._reply(decoder_process.PICTURE_REPLY)
        fits = within is None or (width <= within[0] and height <= within[1])
        if not (fits and 0 < width * height <= self._limits.pixels):
            raise _Died("decoder_crash", f"the decoder replied with a picture of {width}x{height} pixels")
        kind = "RGB" if mode == "RGB" else "L"
        picture = Image.new(kind, (width, height))
        for first, last in decoder_process.bands(picture.size):
            rows = self._read(width * (last - first) * len(kind))
            picture.paste(Image.frombuffer(kind, (width, last - first), rows, "raw", kind, 0, 1), (0, first))
        return picture

    def _reply(self, form: struct.Struct) -> list[Any]:
        """The values of a reply. Raises ImageError for one that says why there are none."""
        decoded, *values, reason_length, detail_length = form.unpack(self._read(form.size))
        if decoded:
            return values
        reason, detail = (self._read(n).decode(errors="replace") for n in (reason_length, detail_length))
        if reason not in get_args(Reason):
            raise _Died("decoder_crash", "the decoder gave a reply that is none")
        raise ImageError(reason, detail)  # type: ignore[arg-type]

    def _read(self, length: int) -> bytearray:
        process = self._running()
        assert process.stdout is not None
        data = bytearray(length)
        view = memoryview(data)
        while view:
            readable, _, _ = select.select([process.stdout], [], [], self._seconds_left())
            if not readable:
                raise self._timed_out()
            count = os.readv(process.stdout.fileno(), [view])
            if not count:
                raise self._dead()
            view = view[count:]
        return data

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _timed_out(self) -> _Died:
        return _Died("timeout", f"decoding took more than {self._timeout_s:g} s")

    def _dead(self) -> _Died:
        process = self._running()
        process.wait()
        return _Died("decoder_crash", f"the decoder {_cause(process)}")

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._process = self._started()
            self._deadline = max(self._deadline, time.monotonic() + self._timeout_s)
        return self._process

    def _started(self) -> "subprocess.Popen[bytes]":
        """A decoder that is ready: its start is not the image's fault. Raises FCDDError when there is none."""
        attempt = 1
        while True:
            process = self._launched()
            assert process.stdin is not None
            assert process.stdout is not None
            ready = select.select([process.stdout], [], [], _START_TIMEOUT_S)[0]
            said = os.read(process.stdout.fileno(), 1) if ready else b""
            if said in (decoder_process.READY, decoder_process.READY_WITH_RIGHTS):
                break
            # What closed its output is about to end, and then says itself how.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1 if ready else 0)
            why = f"did not begin within {_START_TIMEOUT_S:g} s" if process.returncode is None else _cause(process)
            was_killed = (process.returncode or 0) < 0
            process.kill()
            process.communicate()
            if not was_killed or attempt == _MAX_STARTS:
                raise FCDDError(
                    f"the decoder process does not start: it {why}; is this installation complete, is there memory?"
                )
            attempt += 1
        if said == decoder_process.READY_WITH_RIGHTS:
            _warn_of_rights()
        os.set_blocking(process.stdin.fileno(), False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # the system may allow less
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return process

    def _launched(self) -> "subprocess.Popen[bytes]":
        memory_fd = self._memory.fileno()
        form = (memory_fd, _SLOTS, self._view, self._limits, self._limits.memory_bytes)
        return subprocess.Popen(
            [sys.executable, *self._command, *decoder_process.arguments(*form)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[memory_fd],
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            # Ray adds to the path of its workers; the threads of a BLAS would only count as memory.
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
        )

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class DecoderPool:
    """Isolated decoders for the threads of a process: each image takes one that is free, or waits.

    They start when they are needed, at most `processes`. A process that is forked gets decoders of its own.
    """

    def __init__(
        self,
        view: View = View(),  # noqa: B008
        *,
        processes: int = 2,
        limits: Limits = Limits(),  # noqa: B008
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`view` is what `decode` gives; who only asks for pictures needs none."""
        self._new = functools.partial(IsolatedDecoder, view, limits=limits, timeout_s=timeout_s)
        self._processes = processes
        self._fill()

    def _fill(self) -> None:
        self._owner = os.getpid()
        self._free = queue.LifoQueue[IsolatedDecoder | None]()  # the last used first; None: not started yet
        for _ in range(self._processes):
            self._free.put(None)

    def decode(self, data: bytes) -> DecodedImage:
        """`fcdd.images.decode`, isolated. Raises ImageError."""
        with self._one() as decoder:
            [result] = decoder.decode_each([data])
        if isinstance(result, ImageError):
            raise result
        return result

    def picture(
        self, data: bytes, *, mode: Mode = "RGB", within: tuple[int, int] | None = None, part: Box | None = None
    ) -> Image.Image:
        """`IsolatedDecoder.picture`."""
        with self._one() as decoder:
            return decoder.picture(data, mode=mode, within=within, part=part)

    @contextlib.contextmanager
    def _one(self) -> Iterator[IsolatedDecoder]:
        if self._owner != os.getpid():
            self._fill()  # the others are the parent's, which goes on with them
        decoder = self._free.get()
        try:
            decoder = decoder or self._new()
            yield decoder
        finally:
            self._free.put(decoder)


@functools.lru_cache(maxsize=4)
def shared_pool(view: View = View()) -> DecoderPool:  # noqa: B008
    """The decoders of this process for images that are seen so; they end with it, since their input ends."""
    return DecoderPool(view, processes=_SHARED_DECODERS, limits=ACCEPTED, timeout_s=_SHARED_TIMEOUT_S)


def picture(
    data: bytes,
    *,
    mode: Mode = "RGB",
    within: tuple[int, int] | None = None,
    full_scale: float | None = None,
    part: Box | None = None,
) -> Image.Image:
    """A picture (`fcdd.images.decode_full`), decoded apart from this process. Raises ImageError."""
    return shared_pool(View(full_scale=full_scale)).picture(data, mode=mode, within=within, part=part)


def _cause(ended: "subprocess.Popen[bytes]") -> str:
    code = ended.returncode
    return f"died of {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


@functools.cache
def _warn_of_rights() -> None:
    """Once per process."""
    log.warning(
        "this system cannot take all rights from the process that decodes images: a picture that takes it over could "
        "read what this user may read; see SECURITY.md"
    )


def _shared_memory(size: int) -> IO[bytes]:
    """An open file of `size` bytes without a name."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("fcdd-pixels"), "r+b", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 as long as the decoder
    file.truncate(size)
    return file
