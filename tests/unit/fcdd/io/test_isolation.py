"""Decoding in a process of its own: a crash, a hang or a memory blow-up costs the image and nothing else."""

import ctypes
import io
import os
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from fcdd import images
from fcdd.cropping import Box
from fcdd.errors import FCDDError, ImageError
from fcdd.images import DecodedImage, Limits, View
from fcdd.io import decoder_process, isolation
from fcdd.io.isolation import DecoderPool, IsolatedDecoder
from tests.saboteur import SABOTEUR

SIZE = (24, 32)
SERVE = "decoder_process.main(sys.argv[1:])"
# The decoder itself, taken over by an image: it tries what it could do to others, and says what worked.
INTRUDER = """
import ctypes, os, resource, socket, subprocess, sys
from fcdd import images
from fcdd.io import decoder_process
from fcdd.errors import ImageError
parent, libc = os.getppid(), ctypes.CDLL(None, use_errno=True)
class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
def memory_of(pid):
    buffer = ctypes.create_string_buffer(8)
    mine, its = IoVec(ctypes.addressof(buffer), 8), IoVec(SECRET, 8)
    assert libc.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(its), 1, 0) > 0
def traced(pid):
    assert libc.ptrace(16, pid, 0, 0) == 0
attempts = {
    "the environment of the parent": lambda: open(f"/proc/{parent}/environ", "rb").read(),
    "the environment of itself": lambda: open("/proc/self/environ", "rb").read(),
    "a file": lambda: open(sys.executable, "rb").read(1),
    "a new file": lambda: open("/tmp/fcdd-intruder", "w"),
    "a folder": lambda: os.listdir("/"),
    "the network": lambda: socket.create_connection(("127.0.0.1", 9), 1),
    "a name service": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "a local socket": lambda: socket.socket(socket.AF_UNIX),
    "a program": lambda: subprocess.run(["true"], check=True),
    "a fork": lambda: os.fork() or os._exit(0),
    "the memory of the parent": lambda: memory_of(parent),
    "a debugger of the parent": lambda: traced(parent),
    "a signal to the parent": lambda: os.kill(parent, 0),
    "more files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    "smaller shared memory": lambda: [os.ftruncate(fd, 0) for fd in range(3, 20)],
    "another user": lambda: os.setuid(1),
}
def intruded(data):
    worked = []
    for name, attempt in attempts.items():
        try:
            attempt()
            worked.append(name)
        except Exception:
            pass
    raise ImageError("corrupt", f"worked: {worked}; HOME {os.environ.get('HOME')}")
images._format_of = intruded
decoder_process.main(sys.argv[1:])
"""


def picture(seed: int, size: tuple[int, int] = (60, 40), enlarged: tuple[int, int] | None = None) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).resize(enlarged or size, Image.Resampling.NEAREST).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


@pytest.fixture
def sabotaged() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(View(SIZE, 3), timeout_s=1.0, command=("-c", SABOTEUR)) as decoder:
        yield decoder


def outcomes(results: list[DecodedImage | ImageError]) -> list[str]:
    return [result.reason if isinstance(result, ImageError) else "decoded" for result in results]


def test_what_comes_back_is_what_decoding_here_gives() -> None:
    data = [picture(seed) for seed in range(20)] + [b"", b"not an image", picture(3)[:200]]
    with IsolatedDecoder(View(SIZE, 3)) as decoder:
        results = list(decoder.decode_each(data))
    assert outcomes(results[20:]) == ["empty", "not_an_image", "truncated"]
    for encoded, result in zip(data[:20], results, strict=False):
        here = images.decode(encoded, View(SIZE, 3))
        assert isinstance(result, DecodedImage)
        np.testing.assert_array_equal(result.pixels, here.pixels)
        assert (result.width, result.height, result.frames) == (60, 40, 1)
        assert result.brightness == np.float32(here.brightness)
        assert result.contrast == np.float32(here.contrast)
        assert result.sharpness == np.float32(here.sharpness)
        assert (result.format, result.hash) == (here.format, here.hash) == ("PNG", result.hash)


@pytest.mark.parametrize("position", range(5))
def test_a_crash_costs_its_image_two_tries_and_its_neighbours_nothing(
    sabotaged: IsolatedDecoder, position: int
) -> None:
    data = [picture(seed) for seed in range(4)]
    data.insert(position, b"CRASH")
    results = list(sabotaged.decode_each(data))
    expected = ["decoded"] * 4
    expected.insert(position, "decoder_crash")
    assert outcomes(results) == expected
    assert "SIGSEGV" in str(results[position])
    assert sabotaged.crashes == isolation.MAX_CRASHES


def test_images_that_all_crash_each_in_their_own_right(sabotaged: IsolatedDecoder) -> None:
    results = list(sabotaged.decode_each([b"CRASH1", b"CRASH2", picture(0), b"CRASH3"]))
    assert outcomes(results) == ["decoder_crash", "decoder_crash", "decoded", "decoder_crash"]
    assert sabotaged.crashes == 3 * isolation.MAX_CRASHES


def test_a_hang_is_ended(sabotaged: IsolatedDecoder) -> None:
    results = list(sabotaged.decode_each([picture(0), b"HANG", picture(1)]))
    assert outcomes(results) == ["decoded", "timeout", "decoded"]
    assert "more than 1 s" in str(results[1])


def test_a_large_image_behind_a_hang_does_not_block_the_pipe(sabotaged: IsolatedDecoder) -> None:
    large = picture(0, (1500, 1000))
    assert len(large) > isolation._PIPE_BYTES
    assert outcomes(list(sabotaged.decode_each([b"HANG", large, large]))) == ["timeout", "decoded", "decoded"]


def test_waiting_for_the_store_is_not_the_fault_of_an_image(sabotaged: IsolatedDecoder) -> None:
    """The clock of an image runs while it is decoded, not while the next one is fetched."""
    large = picture(0, (1500, 1000))

    def slowly() -> Iterator[bytes]:
        for data in (large, large, large):
            yield data
            time.sleep(1.5)

    assert outcomes(list(sabotaged.decode_each(slowly()))) == ["decoded"] * 3
    assert sabotaged.crashes == 0


def test_a_decoder_that_does_not_start_is_an_error_and_not_a_thousand_bad_images() -> None:
    with (
        IsolatedDecoder(View(SIZE, 3), command=("-c", "raise SystemExit(1)")) as decoder,
        pytest.raises(FCDDError, match=r"the decoder process does not start: it died of exit code 1"),
    ):
        list(decoder.decode_each([picture(0)]))


def test_a_decoder_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    """As a system does that is short of memory: neither an image nor the job is lost for it."""
    ended = tmp_path / "ended"
    killed_once = f"import os, pathlib\nended = pathlib.Path({str(ended)!r})\n"
    killed_once += "if not ended.exists():\n    ended.touch()\n    os.kill(os.getpid(), 9)\n"
    command = ("-c", f"{killed_once}import sys\nfrom fcdd.io import decoder_process\n{SERVE}")
    with IsolatedDecoder(View(SIZE, 3), command=command) as decoder:
        assert outcomes(list(decoder.decode_each([picture(0), picture(1)]))) == ["decoded"] * 2
    assert ended.exists()
    assert decoder.crashes == 0


def test_a_decoder_that_is_killed_at_every_start_is_an_error() -> None:
    with (
        IsolatedDecoder(View(SIZE, 3), command=("-c", "import os; os.kill(os.getpid(), 9)")) as decoder,
        pytest.raises(FCDDError, match="does not start: it died of SIGKILL"),
    ):
        list(decoder.decode_each([picture(0)]))


def test_an_image_that_wants_too_much_memory_is_too_large(sabotaged: IsolatedDecoder) -> None:
    assert outcomes(list(sabotaged.decode_each([b"HOARD", picture(0)]))) == ["too_large", "decoded"]


def test_a_decoder_that_was_left_in_the_middle_starts_afresh() -> None:
    with IsolatedDecoder(View(SIZE, 3)) as decoder:
        results = decoder.decode_each([picture(0), picture(1), picture(2)])
        next(results)
        del results
        [again] = decoder.decode_each([picture(5)])
    assert isinstance(again, DecodedImage)
    np.testing.assert_array_equal(again.pixels, images.decode(picture(5), View(SIZE, 3)).pixels)


def test_limits_are_those_of_the_caller() -> None:
    with IsolatedDecoder(View(SIZE, 1), limits=Limits(pixels=1000, encoded_bytes=10**6)) as decoder:
        assert outcomes(list(decoder.decode_each([picture(0), bytes(10**6 + 1)]))) == ["too_large", "too_large"]


def test_a_decoder_that_was_taken_over_can_do_nothing_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as root: here the tests often are."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("HOME", "/home/canary")
    secret = ctypes.create_string_buffer(b"canary")
    intruder = INTRUDER.replace("SECRET", str(ctypes.addressof(secret)))
    with IsolatedDecoder(View(SIZE, 3), command=("-c", intruder)) as decoder:
        [result] = decoder.decode_each([picture(0)])
        assert isinstance(result, ImageError)
        assert result.detail == "worked: []; HOME None"


def test_a_system_that_leaves_rights_to_the_decoder_is_named(caplog: pytest.LogCaptureFixture) -> None:
    isolation._warn_of_rights.cache_clear()
    command = (
        "-c",
        "import sys; from fcdd.io import decoder_process, sandbox\nsandbox.enter = lambda: False\n" + SERVE,
    )
    for _ in range(2):
        with IsolatedDecoder(View(SIZE, 3), command=command) as decoder:
            assert outcomes(list(decoder.decode_each([picture(0)]))) == ["decoded"]
    assert [each.message for each in caplog.records if "cannot take all rights" in each.message] != []
    assert len(caplog.records) == 1


@pytest.mark.parametrize("mode", ["RGB", "L", "A"])
@pytest.mark.parametrize("within", [None, (30, 30)])
def test_a_whole_picture_is_what_decoding_here_gives(mode: images.Mode, within: tuple[int, int] | None) -> None:
    size = (2400, 1800)
    assert len(decoder_process.bands(size)) > 1
    large = picture(1, (24, 18), size)
    with IsolatedDecoder(View(SIZE, 3)) as decoder:
        for data in (large, picture(2)):
            expected = images.decode_full(data, mode=mode, within=within)
            found = decoder.picture(data, mode=mode, within=within)
            assert found.mode == expected.mode
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        assert outcomes(list(decoder.decode_each([picture(3)]))) == ["decoded"]


@pytest.mark.parametrize(("data", "reason"), [(b"CRASH", "decoder_crash"), (b"HANG", "timeout"), (b"", "empty")])
def test_a_whole_picture_that_cannot_be_had_has_a_reason(sabotaged: IsolatedDecoder, data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        sabotaged.picture(data)
    assert caught.value.reason == reason
    assert sabotaged.picture(picture(0)).size == (60, 40)


@pytest.mark.parametrize("reply", ["b'x' * 200", "decoder_process.PICTURE_REPLY.pack(True, 2**31, 2**31, 0, 0)"])
def test_a_reply_that_is_none_is_a_crash_and_not_an_error_of_the_job(reply: str) -> None:
    lie = (
        "import sys; from fcdd.io import decoder_process\n"
        f"decoder_process._picture = lambda *_: decoder_process._write({reply})\n" + SERVE
    )
    with (
        IsolatedDecoder(View(SIZE, 3), command=("-c", lie), timeout_s=5.0) as decoder,
        pytest.raises(ImageError) as caught,
    ):
        decoder.picture(picture(0))
    assert caught.value.reason == "decoder_crash"


def test_threads_share_a_few_decoders_and_a_fork_gets_its_own() -> None:
    data = [picture(seed) for seed in range(24)]
    pool = DecoderPool(View(SIZE, 3), processes=2)

    def pids() -> set[int]:
        return {
            each.pid for each in psutil.Process().children() if "fcdd.io.decoder_process" in " ".join(each.cmdline())
        }

    before = pids()
    with ThreadPoolExecutor(8) as threads:
        decoded = list(threads.map(pool.decode, data))
        assert len(list(threads.map(pool.picture, data))) == 24
    for encoded, result in zip(data, decoded, strict=True):
        np.testing.assert_array_equal(result.pixels, images.decode(encoded, View(SIZE, 3)).pixels)
    assert 1 <= len(pids() - before) <= 2
    child = os.fork()
    if child == 0:
        os._exit(0 if (pool.decode(data[0]).pixels == decoded[0].pixels).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(pool.decode(data[1]).pixels, decoded[1].pixels)


def flat_png(width: int, height: int, text: bytes = b"") -> bytes:
    """Grey, one level, made row by row: as large as a line-scan camera's, and in no time."""
    rows = zlib.compressobj(1)
    pixels = b"".join(rows.compress(b"\0" + bytes([200]) * width) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    every = ((b"IHDR", header), *([(b"zTXt", b"k\0\0" + zlib.compress(text))] if text else []))
    chunks = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*every, (b"IDAT", pixels), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_the_limit_of_pixels_means_what_it_says_above_that_of_pillow() -> None:
    large = flat_png(8192, 21_900)  # 179.4 megapixels; Pillow alone stops at 179.0
    with IsolatedDecoder(View(SIZE, 1), limits=Limits(pixels=180_000_000), timeout_s=200) as decoder:
        [result] = decoder.decode_each([large])
        assert isinstance(result, DecodedImage)
        assert (result.width, result.height) == (8192, 21_900)
        assert (result.pixels == 200).all()
        assert decoder.picture(large, mode="L", within=(320, 320)).size == (120, 320)
    with IsolatedDecoder(View(SIZE, 1), limits=Limits(pixels=179_000_000)) as decoder:
        assert outcomes(list(decoder.decode_each([large]))) == ["too_large"]


def test_the_memory_of_the_decoder_follows_the_limit_of_pixels() -> None:
    assert Limits().memory_bytes == 2 * 1024**3
    assert Limits(pixels=500_000_000).memory_bytes > 20 * 500_000_000


def test_much_text_beside_a_picture_is_no_fault_of_the_picture() -> None:
    with IsolatedDecoder(View(SIZE, 1)) as decoder:
        assert outcomes(list(decoder.decode_each([flat_png(60, 40, bytes(80 * 1024**2))]))) == ["decoded"]


def test_the_decoder_gets_no_credentials_and_ends_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with IsolatedDecoder(View(SIZE, 3)) as decoder:
        list(decoder.decode_each([picture(0)]))
        assert decoder._process is not None
        process = psutil.Process(decoder._process.pid)
        assert "canary" not in str(process.environ())
        assert process.is_running()
    assert not process.is_running()


def test_an_owner_that_is_killed_takes_the_decoder_with_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from fcdd.io.isolation import IsolatedDecoder\n"
        "from fcdd.images import View\n"
        "decoder = IsolatedDecoder(View((8, 8), 3))\n"
        "list(decoder.decode_each([b'x']))\n"
        "print(decoder._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with os.popen(f"{sys.executable} -c '{code.replace(chr(39), chr(34))}'") as pipe:
        child = int(pipe.read())
    try:
        psutil.Process(child).wait(10)
    except psutil.NoSuchProcess:
        return
    assert not psutil.pid_exists(child)


LIAR = """
import os, sys
from fcdd.io import decoder_process as d
nan = float("nan")
requests = sys.stdin.buffer
os.write(1, d.READY)
while header := requests.read(d.REQUEST.size):
    kind, _, width, height, *_, length = d.REQUEST.unpack(header)
    requests.read(length)
    lie = {lie}
    os.write(1, d.REPLY.pack(True, *lie, b"x" * 32, 0, 0) if kind == 0 else d.PICTURE_REPLY.pack(True, 10**6, 1, 0, 0))
"""
LIES = {
    "a size beyond all limits": (2**32 - 1, 2**32 - 1, 1, b"PNG", False, 1.0, 1.0, 1.0),
    "no size": (0, 7, 1, b"PNG", False, 1.0, 1.0, 1.0),
    "frames beyond the limit": (10, 10, 2**32 - 1, b"PNG", False, 1.0, 1.0, 1.0),
    "statistics that are no numbers": (10, 10, 1, b"PNG", False, float("nan"), 1.0, 1.0),
    "statistics beyond their range": (10, 10, 1, b"PNG", False, 1.0, -1e38, 1.0),
    "a format that is none": (10, 10, 1, b"\x1b[31mX\x07", False, 1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_decoder_that_lies_is_taken_for_one_that_crashed(lie: str) -> None:
    with IsolatedDecoder(View(SIZE, 3), command=("-c", LIAR.format(lie=LIES[lie]))) as decoder:
        assert outcomes(list(decoder.decode_each([picture(1)]))) == ["decoder_crash"]
        with pytest.raises(ImageError, match="decoder_crash"):
            decoder.picture(picture(1), mode="RGB", within=(100, 100))


def test_a_part_of_a_picture_is_what_lies_there() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    data = sink.getvalue()
    with IsolatedDecoder(View()) as decoder:
        part = np.asarray(decoder.picture(data, part=Box(20, 30, 120, 230)))
        np.testing.assert_array_equal(part, pixels[20:120, 30:230])
        beyond = np.asarray(decoder.picture(data, part=Box(250, 350, 400, 500)))
        np.testing.assert_array_equal(beyond, pixels[250:, 350:])
        assert decoder.picture(data, part=Box(0, 0, 200, 100), within=(50, 50)).size == (25, 50)
        with pytest.raises(ImageError, match="lies beyond the 400x300 pixels of the picture"):
            decoder.picture(data, part=Box(300, 0, 310, 10))
