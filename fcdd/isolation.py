"""Decoding in an expendable process: a crash, a hang or a memory blow-up costs the image, never the job.

    encoded bytes -> pipe -> fcdd.decoder_process -> shared memory -> DecodedImage or ImageError

Ray tries a batch that kills its process for ever (RAY), so nothing that is decoded may do that. An image that
kills the decoder gets one more try in a fresh one; then it is a decoder_crash, or a timeout. Its neighbours lose
nothing.
"""

import contextlib
import fcntl
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, get_args

import numpy as np

from fcdd import decoder_process
from fcdd.errors import FCDDError, ImageError, Reason
from fcdd.images import DecodedImage, Limits

# One image is decoded while the next waits in the pipe.
_SLOTS = 2
MAX_CRASHES = 2
_START_TIMEOUT_S = 60.0
TIMEOUT_S = 30.0
# 89 megapixels of 16 bits, their 8-bit copy and the encoded file take about one gigabyte.
MEMORY_BYTES = 2 * 1024**3
_PIPE_BYTES = 1024**2
# The decoder reads hostile bytes: it gets no credentials.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")


class _Died(Exception):
    """The decoder ended or had to be ended; carries the reason for the image it was at."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class _Pending:
    """An image in the decoder's hands."""

    slot: int
    data: bytes
    crashes: int = 0


class IsolatedDecoder:
    """`fcdd.images.decode` in a process of its own. For one thread at a time; close it, or use it as a context."""

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        *,
        limits: Limits = Limits(),  # noqa: B008
        timeout_s: float = TIMEOUT_S,
        memory_bytes: int = MEMORY_BYTES,
        command: Sequence[str] = ("-m", "fcdd.decoder_process"),
    ) -> None:
        """`size` is (height, width); `timeout_s` and `memory_bytes` are what one image may take."""
        self._size, self._channels, self._limits = size, channels, limits
        self._timeout_s, self._memory_bytes, self._command = timeout_s, memory_bytes, tuple(command)
        shape = (_SLOTS, *size, channels)
        self._memory_fd = _shared_memory(int(np.prod(shape)))
        self._pixels = np.ndarray(shape, np.uint8, buffer=mmap.mmap(self._memory_fd, int(np.prod(shape))))
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
        os.close(self._memory_fd)

    def decode_each(self, encoded: Iterable[bytes]) -> Iterator[DecodedImage | ImageError]:
        """One result per image, in order, as they are asked for."""
        if self._pending:  # whoever asked last time did not take everything
            self._kill()
            self._pending.clear()
        free = 0
        for data in encoded:
            self._pending.append(_Pending(free, data))
            free = (free + 1) % _SLOTS
            self._submit_last()
            if len(self._pending) == _SLOTS:
                yield self._next()
        while self._pending:
            yield self._next()

    def _next(self) -> DecodedImage | ImageError:
        """The result of the oldest image; the decoder is started again as often as that takes."""
        first = self._pending[0]
        while True:
            try:
                result = self._receive(first)
            except _Died as death:
                self._kill()
                self.crashes += 1
                first.crashes += 1
                if first.crashes < MAX_CRASHES:
                    self._submit_all()
                    continue
                result = ImageError(death.reason, f"{death}, {MAX_CRASHES} times")
                self._pending.popleft()
                self._submit_all()
                return result
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
        assert process.stdin is not None
        view = memoryview(decoder_process.REQUEST.pack(image.slot, len(image.data)) + image.data)
        while view:
            _, writable, _ = select.select([], [process.stdin], [], self._seconds_left())
            if not writable:
                raise self._timed_out()
            try:
                view = view[os.write(process.stdin.fileno(), view) :]
            except BrokenPipeError as error:
                raise self._dead() from error

    def _receive(self, image: _Pending) -> DecodedImage | ImageError:
        form = decoder_process.REPLY
        decoded, *values, reason_length, detail_length = form.unpack(self._read(form.size))
        if decoded:
            width, height, frames, kind, brightness, contrast, sharpness, hash_ = values
            return DecodedImage(
                pixels=self._pixels[image.slot].copy(),
                width=width,
                height=height,
                frames=frames,
                format=kind.rstrip(b"\0").decode(),
                brightness=brightness,
                contrast=contrast,
                sharpness=sharpness,
                hash=hash_,
            )
        reason, detail = (self._read(n).decode(errors="replace") for n in (reason_length, detail_length))
        assert reason in get_args(Reason), reason
        return ImageError(reason, detail)  # type: ignore[arg-type]

    def _read(self, length: int) -> bytes:
        process = self._running()
        assert process.stdout is not None
        data = b""
        while len(data) < length:
            readable, _, _ = select.select([process.stdout], [], [], self._seconds_left())
            if not readable:
                raise self._timed_out()
            piece = os.read(process.stdout.fileno(), length - len(data))
            if not piece:
                raise self._dead()
            data += piece
        return data

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _timed_out(self) -> _Died:
        return _Died("timeout", f"decoding took more than {self._timeout_s:g} s")

    def _dead(self) -> _Died:
        code = self._running().wait()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Died("decoder_crash", f"the decoder died of {cause}")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            form = (self._memory_fd, _SLOTS, self._size, self._channels, self._limits, self._memory_bytes)
            self._process = subprocess.Popen(
                [sys.executable, *self._command, *decoder_process.arguments(*form)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[self._memory_fd],
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
                # Ray adds to the path of its workers; the threads of a BLAS would only count as memory.
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            assert self._process.stdout is not None
            # Its start is not the image's fault.
            ready = select.select([self._process.stdout], [], [], _START_TIMEOUT_S)[0]
            if not ready or os.read(self._process.stdout.fileno(), 1) != decoder_process.READY:
                self._kill()
                raise FCDDError("the decoder process does not start; is this installation complete, is there memory?")
            self._deadline = max(self._deadline, time.monotonic() + self._timeout_s)
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                with contextlib.suppress(OSError):  # the system may allow less
                    fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _shared_memory(size: int) -> int:
    """A file descriptor of `size` bytes without a name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("fcdd-pixels")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
