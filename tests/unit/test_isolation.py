"""Decoding in a process of its own: a crash, a hang or a memory blow-up costs the image and nothing else."""

import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from fcdd import images, isolation
from fcdd.errors import FCDDError, ImageError
from fcdd.images import DecodedImage, Limits
from fcdd.isolation import IsolatedDecoder

SIZE = (24, 32)
# The decoder itself, which dies, hangs or swallows memory at bytes that begin like this.
SABOTEUR = """
import os, signal, sys, time
from fcdd import decoder_process, images
decode = images._decode
def sabotaged(data, *options):
    if data.startswith(b"CRASH"):
        with open(os.environ["HOME"] + "/crashes", "a") as file:
            file.write(data.decode())
        os.kill(os.getpid(), signal.SIGSEGV)
    if data.startswith(b"HANG"):
        time.sleep(60)
    if data.startswith(b"HOARD"):
        bytearray(8 * 1024**3)
    return decode(data, *options)
images._decode = sabotaged
decoder_process.main(sys.argv[1:])
"""


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def sabotaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[IsolatedDecoder]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with IsolatedDecoder(SIZE, 3, timeout_s=1.0, command=("-c", SABOTEUR)) as decoder:
        yield decoder


def outcomes(results: list[DecodedImage | ImageError]) -> list[str]:
    return [result.reason if isinstance(result, ImageError) else "decoded" for result in results]


def test_what_comes_back_is_what_decoding_here_gives() -> None:
    data = [picture(seed) for seed in range(20)] + [b"", b"not an image", picture(3)[:200]]
    with IsolatedDecoder(SIZE, 3) as decoder:
        results = list(decoder.decode_each(data))
    assert outcomes(results[20:]) == ["empty", "not_an_image", "truncated"]
    for encoded, result in zip(data[:20], results, strict=False):
        here = images.decode(encoded, size=SIZE, channels=3)
        assert isinstance(result, DecodedImage)
        np.testing.assert_array_equal(result.pixels, here.pixels)
        assert (result.width, result.height, result.frames) == (60, 40, 1)
        assert result.brightness == np.float32(here.brightness)
        assert result.contrast == np.float32(here.contrast)
        assert result.sharpness == np.float32(here.sharpness)
        assert (result.format, result.hash) == (here.format, here.hash) == ("PNG", result.hash)


@pytest.mark.parametrize("position", range(5))
def test_a_crash_costs_its_image_two_tries_and_its_neighbours_nothing(
    sabotaged: IsolatedDecoder, position: int, tmp_path: Path
) -> None:
    data = [picture(seed) for seed in range(4)]
    data.insert(position, b"CRASH")
    results = list(sabotaged.decode_each(data))
    expected = ["decoded"] * 4
    expected.insert(position, "decoder_crash")
    assert outcomes(results) == expected
    assert "SIGSEGV" in str(results[position])
    assert (tmp_path / "crashes").read_text() == "CRASH" * isolation.MAX_CRASHES


def test_images_that_all_crash_each_in_their_own_right(sabotaged: IsolatedDecoder, tmp_path: Path) -> None:
    results = list(sabotaged.decode_each([b"CRASH1", b"CRASH2", picture(0), b"CRASH3"]))
    assert outcomes(results) == ["decoder_crash", "decoder_crash", "decoded", "decoder_crash"]
    assert (tmp_path / "crashes").read_text() == "CRASH1CRASH1CRASH2CRASH2CRASH3CRASH3"


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
        IsolatedDecoder(SIZE, 3, command=("-c", "raise SystemExit(1)")) as decoder,
        pytest.raises(FCDDError, match="the decoder process does not start"),
    ):
        list(decoder.decode_each([picture(0)]))


def test_an_image_that_wants_too_much_memory_is_too_large(sabotaged: IsolatedDecoder) -> None:
    assert outcomes(list(sabotaged.decode_each([b"HOARD", picture(0)]))) == ["too_large", "decoded"]


def test_a_decoder_that_was_left_in_the_middle_starts_afresh() -> None:
    with IsolatedDecoder(SIZE, 3) as decoder:
        results = decoder.decode_each([picture(0), picture(1), picture(2)])
        next(results)
        del results
        [again] = decoder.decode_each([picture(5)])
    assert isinstance(again, DecodedImage)
    np.testing.assert_array_equal(again.pixels, images.decode(picture(5), size=SIZE, channels=3).pixels)


def test_limits_are_those_of_the_caller() -> None:
    with IsolatedDecoder(SIZE, 1, limits=Limits(pixels=1000, encoded_bytes=10**6)) as decoder:
        assert outcomes(list(decoder.decode_each([picture(0), bytes(10**6 + 1)]))) == ["too_large", "too_large"]


def test_the_decoder_gets_no_credentials_and_ends_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with IsolatedDecoder(SIZE, 3) as decoder:
        list(decoder.decode_each([picture(0)]))
        assert decoder._process is not None
        process = psutil.Process(decoder._process.pid)
        assert "canary" not in str(process.environ())
        assert process.is_running()
    assert not process.is_running()


def test_an_owner_that_is_killed_takes_the_decoder_with_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from fcdd.isolation import IsolatedDecoder\n"
        "decoder = IsolatedDecoder((8, 8), 3)\n"
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
