import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fcdd.errors import ConfigError, ImageError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog.read_only import ReadOnly, path
from jobs.shell import local_files


def listed(uri: str) -> list[ObjectInfo]:
    return [info for page in storage.pages(uri) for info in page]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same promises hold on a disk and on S3."""
    return f"file://{tmp_path}" if request.param == "local" else request.getfixturevalue("prefix")


def test_what_was_written_is_listed_and_read(place: str) -> None:
    storage.write(f"{place}/a/one.png", b"1")
    storage.write(f"{place}/a/b/two.png", b"22")
    storage.write(f"{place}/ab.png", b"333")
    assert {info.uri: info.size for info in listed(f"{place}/a")} == {
        f"{place}/a/one.png": 1,
        f"{place}/a/b/two.png": 2,
    }
    assert storage.read(f"{place}/a/b/two.png") == b"22"
    assert storage.exists(f"{place}/ab.png")
    assert not storage.exists(f"{place}/a/three.png")
    assert listed(f"{place}/nothing") == []


@pytest.mark.parametrize("name", ["with space.png", "ü-日本.png", "50%.png", "a+b=c&d.png", "quote'\".png", "#1?.png"])
def test_unusual_keys_survive_the_round_trip(place: str, name: str) -> None:
    storage.write(f"{place}/keys/{name}", name.encode())
    [info] = listed(f"{place}/keys")
    assert info.uri == f"{place}/keys/{name}"
    assert storage.read_checked(info) == name.encode()


def test_create_puts_once_and_settles_a_lost_answer_by_reading_back(place: str) -> None:
    storage.create(f"{place}/record", b"ours")
    storage.create(f"{place}/record", b"ours")
    with pytest.raises(FileExistsError):
        storage.create(f"{place}/record", b"theirs")
    assert storage.read(f"{place}/record") == b"ours"


def test_an_object_that_changed_or_vanished_since_the_listing_is_not_read(place: str) -> None:
    storage.write(f"{place}/x.png", b"first")
    [info] = listed(place)
    assert storage.read_checked(info) == b"first"
    storage.write(f"{place}/x.png", b"second, and longer")
    with pytest.raises(ImageError) as changed:
        storage.read_checked(info)
    assert changed.value.reason == "changed"
    storage.delete_prefix(place)
    with pytest.raises(ImageError) as vanished:
        storage.read_checked(info)
    assert vanished.value.reason == "vanished"


def test_an_etag_is_compared_without_its_quotes(place: str) -> None:
    """Azure lists tags without the quotes it answers with."""
    storage.write(f"{place}/x.png", b"12345")
    [info] = listed(place)
    assert storage.read_checked(info._replace(etag=info.etag.strip('"'))) == b"12345"


def test_a_body_of_another_length_than_listed_is_truncated(place: str) -> None:
    storage.write(f"{place}/x.png", b"12345")
    [info] = listed(place)
    with pytest.raises(ImageError) as caught:
        storage.read_checked(info._replace(size=7))
    assert caught.value.reason == "truncated"


def test_delete_prefix_leaves_neighbours_alone(place: str) -> None:
    for name in ("run/1", "run/2", "run2/1"):
        storage.write(f"{place}/{name}", b"")
    storage.delete_prefix(f"{place}/run")
    assert [info.uri for info in listed(place)] == [f"{place}/run2/1"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://[b/x",
        "s3://b/../x",
        "S3://b/x",
        "s3:/b/x",
        "ftp://host/x",
        "http://169.254.169.254/latest",
        "s3://user:secret@bucket/x",
        "simplecache::s3://b/x",
        "",
        "s3://",
    ],
)
def test_only_the_supported_schemes_are_locations(uri: str) -> None:
    with pytest.raises(ConfigError, match="expected a location"):
        storage.normalize(uri)


def test_a_local_path_becomes_a_file_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalize("images/") == f"file://{tmp_path}/images"
    assert storage.normalize("images/../other") == f"file://{tmp_path}/other"
    assert storage.normalize("file:///data/") == "file:///data"


def test_clients_that_cannot_be_made_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="set the account and credentials in the environment"):
        storage.read("az://container/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(ConfigError, match="expected AWS_ENDPOINT_URL to start with http://"):
        storage.read("s3://bucket/x")


@pytest.mark.s3
def test_storage_problems_are_one_sentence_with_a_remedy(
    s3: object, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for action in (lambda: storage.read("s3://no-such-bucket/x"), lambda: listed("s3://no-such-bucket/x")):
        with pytest.raises(ConfigError, match=r"^cannot (read|list) s3://no-such-bucket/x: the bucket does not exist"):
            action()
    for name, value, message in (
        ("AWS_SECRET_ACCESS_KEY", "wrong", "access denied; check the credentials"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "check AWS_ENDPOINT_URL"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            for action in (
                lambda: storage.read(f"{prefix}/x"),
                lambda: listed(prefix),
                lambda: storage.write(f"{prefix}/x", b""),
            ):
                with pytest.raises(ConfigError, match=message) as caught:
                    action()
                assert "\n" not in str(caught.value)
                assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_device_or_a_pipe_stays_what_it_is_and_is_written_into(tmp_path: Path, through_a_link: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDWR)
    named = pipe
    if through_a_link:
        named = tmp_path / "link"
        named.symlink_to(pipe)
    try:
        storage.write(f"file://{named}", b"an object")
        assert os.read(reading, 99) == b"an object"
        with local_files.atomic_path(str(named)) as named_path:
            named_path.write_bytes(b"a file")
        assert os.read(reading, 99) == b"a file"
    finally:
        os.close(reading)
    assert pipe.is_fifo()
    assert named.is_symlink() == through_a_link


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, on Linux only")
def test_a_device_that_is_full_is_one_sentence() -> None:
    with (
        pytest.raises(ConfigError, match="cannot write /dev/full: No space left"),
        local_files.atomic_path("/dev/full") as path,
        path.open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for text in ("first", "second"):
        with local_files.atomic_path(str(tmp_path / "link")) as written:
            written.write_text(text)
        assert (tmp_path / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_threads_that_share_a_handle_read_what_they_asked_for(place: str) -> None:
    """As DuckDB's threads do, which call seek, then read."""
    content = bytes(range(256)) * 400
    storage.write(f"{place}/part", content)
    with ReadOnly(place).open(path(f"{place}/part")) as file:

        def wrong(start: int) -> int:
            count = 0
            for position in range(start, len(content) - 99, 7919):
                file.seek(position)
                time.sleep(0.0005)
                count += file.read(99) != content[position : position + 99]
            return count

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(wrong, range(40))) == 0
        file.seek(-3, os.SEEK_END)
        assert (file.read(), file.tell()) == (content[-3:], len(content))


def test_many_are_deleted_also_where_one_of_them_is_gone(place: str) -> None:
    uris = [f"{place}/many/{index}.png" for index in range(5)]
    for uri in uris[1:]:
        storage.write(uri, b"1")
    storage.delete_all([uris[1], uris[0], *uris[2:]])
    assert listed(f"{place}/many") == []
