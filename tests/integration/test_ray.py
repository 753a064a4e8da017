"""A local Ray as jobs start it: closed to others, in need of no home, and its errors as sentences."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
import ray.data

from fcdd.errors import BundleError, FCDDError, ImageError
from jobs.on_ray import local, session
from jobs.scoring.publishing import IncompleteRun
from jobs.shell.errors import LeaseHeld

pytestmark = pytest.mark.ray
MB = 1024**2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ProtectHome has it: nobody, not even root, can make a folder below a file."""
    file = tmp_path_factory.mktemp("home") / "file"
    file.touch()
    return file / "home"


@pytest.fixture(scope="module")
def local_session(home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_AUTH_TOKEN", "of-a-cluster")
        for _ in range(2):  # the second has a token of its own, too
            with session.session():
                pass
        with session.session():
            yield
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_session_leaves_the_handlers_of_others_as_they_were(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that uses `jobs`, like pytest, may have hung its own handler on Ray's loggers."""
    handler, logger = logging.StreamHandler(), logging.getLogger("ray.data")
    logger.addHandler(handler)
    monkeypatch.setenv("HOME", str(home))
    try:
        with session.session():
            assert handler.level == logging.CRITICAL
        assert handler.level == logging.NOTSET
    finally:
        logger.removeHandler(handler)


def test_a_local_ray_listens_on_loopback_only(local_session: None) -> None:
    me = psutil.Process()
    listening = [
        each.laddr.ip
        for process in (me, *me.children(recursive=True))
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN and "ray" in " ".join(process.cmdline())
    ]
    assert len(listening) > 5
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_it_has_a_token_of_its_own_and_needs_no_home(local_session: None, home: Path) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert list(session.parallel_map(os.getenv, ["RAY_AUTH_TOKEN", "HOME"])) == [token, str(home)]


def raises(kind: type[Exception], *arguments: str) -> Callable[[object], object]:
    def function(_: object) -> object:
        raise kind(*arguments)

    return function


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (raises(IncompleteRun, "rows were lost"), IncompleteRun, "rows were lost"),
        (raises(LeaseHeld, "s3://b/a\nb is\tbusy: really"), LeaseHeld, "s3://b/a\nb is\tbusy: really"),
        (raises(ImageError, "corrupt", "x.png"), ImageError, "corrupt: x.png"),
        (raises(TypeError, "a bug"), FCDDError, "Ray could not go on: TypeError: a bug"),
        (lambda _: os._exit(1), FCDDError, "memory was short"),
    ],
    ids=["ours", "with line breaks", "with a reason", "not ours", "died"],
)
def test_an_error_of_a_task_keeps_its_class_and_its_words(
    local_session: None, raised: Callable[[object], object], kind: type[FCDDError], said: str
) -> None:
    with pytest.raises(FCDDError) as caught:
        list(session.parallel_map(raised, [0]))
    assert type(caught.value) is kind
    assert said in str(caught.value)


def raising_when_made(error: Exception) -> type:
    class Stage:
        def __init__(self) -> None:
            raise error

        def __call__(self, rows: object) -> object:
            return rows

    return Stage


def raising_at_work(error: Exception) -> type:
    class Stage:
        def __call__(self, rows: object) -> object:
            raise error

    return Stage


def raising_between_blocks(error: Exception) -> type:
    class Stage:
        def __call__(self, rows: object) -> Iterator[object]:
            yield rows
            raise error

    return Stage


@pytest.mark.parametrize("stage", [raising_when_made, raising_at_work, raising_between_blocks])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BundleError("of another version"), "of another version"),
        (LeaseHeld("another\nprocess"), "another\nprocess"),
        (OSError("no space"), "Ray could not go on: OSError: no space"),
    ],
    ids=["of fcdd", "of jobs", "not ours"],
)
def test_an_error_of_an_actor_of_ray_data_keeps_its_class_and_its_words(
    local_session: None, stage: Callable[[Exception], type], error: Exception, said: str
) -> None:
    actors = ray.data.ActorPoolStrategy(size=1)
    chain = ray.data.from_items([{"a": 1}]).map_batches(stage(error), compute=actors)
    with pytest.raises(FCDDError) as caught, session.translated_errors():
        list(chain.iter_batches())
    assert type(caught.value) is (type(error) if isinstance(error, FCDDError) else FCDDError)
    assert str(caught.value) == said


def test_what_ray_cannot_start_with_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    monkeypatch.setattr(local, "_USUAL_STORE_BYTES", 128 * MB)
    with pytest.raises(FCDDError, match=r"Ray could not start on this machine: .*`fcdd doctor`"), session.session():
        pass


@pytest.mark.parametrize(
    ("cpus", "memory", "shared", "store"),
    [
        (2, 16_000, 8_000, 512),  # a laptop
        (3, 24_000, 12_000, 768),
        (16, 128_000, 64_000, 4_096),
        (64, 512_000, 256_000, 16_384),
        (64, 16_000, 16_000, 4_800),  # of memory a third at most
        (16, 128_000, 1_000, 800),  # a container that was given a gigabyte of shared memory
        (16, 128_000, 64, 128),  # and one that was given nothing: Ray takes the disk
    ],
)
def test_the_object_store_has_room_for_the_blocks_of_all_cpus(cpus: int, memory: int, shared: int, store: int) -> None:
    assert local.object_store_bytes(cpus, 32 * MB, memory * MB, shared * MB) == store * MB
