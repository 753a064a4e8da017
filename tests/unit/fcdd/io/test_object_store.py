"""Names that no tidy store has: keys as real S3 lists them, and files as a real disk has them, stop nothing."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from fcdd.errors import ConfigError, ImageError
from fcdd.io import object_store, storage
from fcdd.io.storage import ObjectInfo, Unreadable
from tests.awkward_s3 import AwkwardS3

NAMES = [
    "plain.png",
    "b//c.png",
    "/rooted.png",
    "./d.png",
    "x/../e.png",
    "x/./e.png",
    "..",
    "../../etc/passwd.png",
    "ctl\x01.png",
    "escape\x1b[2J.png",
    "tab\t.png",
    "line\nbreak.png",
    "return\r.png",
    "nul\x00.png",
    "del\x7f.png",
    "end.png ",
    " lead.png",
    "mid /x.png",
    "%2e%2e.png",
    "%zz.png",
    "plus+ .png",
    "folder.png/",
    "&amp;<x>.png",
    "ü日.png",
    "\u2028.png",
    "\x85.png",
    "a\\b.png",
]


def listed(uri: str, after: str | None = None) -> list[ObjectInfo]:
    return [info for page in storage.pages(uri, after=after) for info in page]


@pytest.mark.parametrize("name", NAMES)
def test_any_key_is_listed_stated_read_written_and_deleted(awkward: AwkwardS3, name: str) -> None:
    awkward.put(f"i/{name}", b"content")
    uri = f"s3://{awkward.bucket}/i/{name}"
    [info] = listed(f"s3://{awkward.bucket}/i")
    if name == "folder.png/":  # obstore lists it as folder.png, and nothing tells; read, it is gone
        return
    assert info.uri == uri
    assert storage.read_checked(info) == b"content"
    assert storage.stat(uri)[:3] == info[:3]
    storage.write(uri, b"other")
    assert awkward.objects[f"i/{name}"].body == b"other"
    with pytest.raises(ImageError, match="changed"):
        storage.read_checked(info)
    storage.delete_all([uri])
    assert not awkward.objects
    storage.create(uri, b"first")
    with pytest.raises(FileExistsError):
        storage.create(uri, b"second")


@pytest.mark.parametrize("among", [3, 2500])
def test_awkward_keys_are_listed_among_others_in_order_and_from_any_place(awkward: AwkwardS3, among: int) -> None:
    for index in range(among):
        awkward.put(f"i/{index:05d}.png", b"")
        if index % 700 == 1:
            awkward.put(f"i/{index:05d}//again.png", b"")
    for name in (*NAMES, "folder.png"):
        awkward.put(f"i/{name}", b"")
    keys = sorted(key for key in awkward.objects if key.startswith("i/"))
    root = f"s3://{awkward.bucket}/"
    assert [info.uri.removeprefix(root) for info in listed(f"{root}i")] == keys
    for position in (0, len(keys) // 2, len(keys) - 3):
        assert [i.uri.removeprefix(root) for i in listed(f"{root}i", root + keys[position])] == keys[position + 1 :]


def test_what_begins_with_a_slash_is_listed_with_it(awkward: AwkwardS3) -> None:
    awkward.put("/a.png", b"1")
    awkward.put("a.png", b"2")
    assert [info.uri for info in listed("s3://awkward")] == ["s3://awkward//a.png", "s3://awkward/a.png"]
    assert [info.uri for info in listed("s3://awkward//")] == ["s3://awkward//a.png", "s3://awkward/a.png"]


def test_a_location_that_is_no_path_is_listed(awkward: AwkwardS3) -> None:
    awkward.put("a//b/c.png", b"1")
    awkward.put("a/b/c.png", b"1")
    assert [info.uri for info in listed("s3://awkward/a//b")] == ["s3://awkward/a//b/c.png"]


def test_the_rule_that_chooses_the_door_is_that_of_obstore() -> None:
    names = [f"a{chr(code)}b" for code in range(1, 0x300)] + [name for name in NAMES if "\x00" not in name]
    for name in names:
        store = MemoryStore()
        try:
            obstore.put(store, name, b"")
            spelled = [meta["path"] for page in obstore.list(store) for meta in page] == [name]
        except ValueError:
            spelled = False
        assert object_store.is_path(name) == spelled, repr(name)


def test_a_damaged_body_is_found_through_either_door(awkward: AwkwardS3) -> None:
    for key in ("i/plain.png", "i/a//b.png"):
        awkward.put(key, b"12345")
        info = storage.stat(f"s3://awkward/{key}")
        awkward.flipped[key] = 1
        assert storage.read_checked(info) == b"12345"
        with pytest.raises(ImageError, match="truncated"):
            storage.read_checked(info._replace(size=9))


def test_lists_in_buckets_of_kms_are_read(awkward: AwkwardS3, tmp_path: Path) -> None:
    """Their ETags look like MD5s and are none."""
    for index in range(3):
        awkward.put(f"list-{index}.txt", b"a.png\n", kms=True)
        storage.download(f"s3://awkward/list-{index}.txt", str(tmp_path / "list"))
        assert (tmp_path / "list").read_bytes() == b"a.png\n"


def test_an_object_of_kms_in_a_mixed_bucket_is_read_once(awkward: AwkwardS3) -> None:
    awkward.put("i/plain.png", b"plain")
    storage.read("s3://awkward/i/plain.png")
    for index in range(8):
        awkward.put(f"i/{index}.png", b"secret", kms=True)
        awkward.requests.clear()
        assert storage.read(f"s3://awkward/i/{index}.png") == b"secret"
        assert sorted(method for method, _ in awkward.requests) == ["GET", "HEAD"]


def test_damage_is_found_in_a_bucket_that_began_with_objects_of_kms(awkward: AwkwardS3) -> None:
    for index in range(5):
        awkward.put(f"i/{index}.png", b"secret", kms=True)
        storage.read(f"s3://awkward/i/{index}.png")
    for _ in range(2):  # the first is what teaches that there are MD5s
        awkward.put("i/plain.png", b"plain")
        assert storage.read("s3://awkward/i/plain.png") == b"plain"
        awkward.flipped["i/plain.png"] = 1
        assert storage.read("s3://awkward/i/plain.png") == b"plain"


def test_another_account_or_server_has_a_client_that_was_taught_nothing(
    awkward: AwkwardS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        awkward.put(f"i/{index}.png", b"secret", kms=True)
        storage.read(f"s3://awkward/i/{index}.png")
    awkward.requests.clear()
    storage.read("s3://awkward/i/0.png")
    assert [method for method, _ in awkward.requests] == ["GET"]
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    storage.read("s3://awkward/i/0.png")
    assert [method for method, _ in awkward.requests] == ["GET", "GET", "HEAD"]


def test_the_endpoint_of_s3_alone_comes_first(awkward: AwkwardS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("i/a.png", "i/a//b.png"):
        awkward.put(key, b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", awkward.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert [storage.read(info.uri) for info in listed("s3://awkward/i")] == [b"1", b"1"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1")
    with pytest.raises(ConfigError, match="expected AWS_ENDPOINT_URL_S3 to start with"):
        listed("s3://awkward/i")


def test_an_error_names_a_key_on_one_line(awkward: AwkwardS3) -> None:
    awkward.put("i/a\nb.png", b"12345")
    info = storage.stat("s3://awkward/i/a\nb.png")
    with pytest.raises(ImageError) as caught:
        storage.read_checked(info._replace(size=7))
    assert "\n" not in str(caught.value)
    for uri in ("gs://bucket/a\nb", "s3://no-such\nbucket/x"):
        with pytest.raises(ConfigError) as refused:
            storage.read(uri)
        assert "\n" not in str(refused.value)
        assert ("rename what is named so" in str(refused.value)) == uri.startswith("gs:")


def test_files_that_no_table_can_name_and_links_that_lead_back_are_one_entry_each(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/good.png").write_bytes(b"1")
    (tmp_path / "a/line\nbreak \x1b.png").write_bytes(b"2")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.png")).write_bytes(b"3")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff")).mkdir()
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "other.png").symlink_to("a/good.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = listed(str(tmp_path))
    root = f"file://{tmp_path}/"
    readable = {info.uri.removeprefix(root): info for info in found if not isinstance(info, Unreadable)}
    assert set(readable) == {"a/good.png", "a/line\nbreak \x1b.png", "other.png"}
    assert storage.read_checked(readable["a/line\nbreak \x1b.png"]) == b"2"
    unreadable = sorted(info.uri.removeprefix(root) for info in found if isinstance(info, Unreadable))
    assert unreadable == ["a/\\xff.png", "a/up/", "b\\xff", "gone.png/", "self"]
    for nothing in ("pipe.png", "a", "other.png/below.png", "nul\x00.png"):
        with pytest.raises(ImageError, match="vanished"):
            storage.stat_checked(f"{root}{nothing}")


def test_folders_deeper_than_a_path_may_be_long_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    Path("deep.png").write_bytes(b"1")
    readable, unreadable = listed(str(tmp_path))
    assert readable.uri == f"file://{tmp_path}/a.png"
    assert isinstance(unreadable, Unreadable)


def test_a_location_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is not UTF-8"):
        storage.normalize("/data/\udcff")


def test_the_etag_of_a_file_is_what_it_was_when_obstore_read_it(tmp_path: Path) -> None:
    """So that what was listed before an upgrade is still the same image."""
    (tmp_path / "a.png").write_bytes(b"12345")
    theirs = obstore.head(LocalStore(str(tmp_path)), "a.png")
    [ours] = listed(str(tmp_path))
    assert storage.plain_etag(theirs["e_tag"] or "") == ours.etag
    assert (theirs["last_modified"], theirs["size"]) == (ours.last_modified, ours.size)


@contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Root may read everything, so such tests are somebody else."""
    if os.geteuid():
        yield
        return
    for each in (folder, *folder.parents):
        if (
            each.owner() == "root"
            and each.is_relative_to(tempfile.gettempdir())
            and each != Path(tempfile.gettempdir())
        ):
            each.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_local_file_that_may_not_be_read_is_forbidden(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    [info] = listed(str(tmp_path))
    (tmp_path / "a.png").chmod(0)
    with nobody(tmp_path), pytest.raises(ImageError, match="forbidden"):
        storage.read_checked(info)


def test_a_folder_that_may_not_be_listed_is_one_entry_and_as_a_location_an_error(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        storage.write(f"{tmp_path}/{name}", b"1")
    (tmp_path / "a").chmod(0)
    with nobody(tmp_path):
        found = listed(str(tmp_path))
        assert [(info.uri.removeprefix(f"file://{tmp_path}/"), isinstance(info, Unreadable)) for info in found] == [
            ("a/", True),
            ("b/2.png", False),
        ]
        with pytest.raises(ConfigError, match=r"cannot list .*access denied; check who may read"):
            listed(f"{tmp_path}/a")


@pytest.mark.parametrize("how", ["write", "create"])
def test_a_local_file_and_its_folder_are_on_the_disk_before_it_counts(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is reported as written survives a power cut: seen in the order of the calls, since none can be had here."""
    calls: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

    def fsync(number: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        real["fsync"](number)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "link"):
        monkeypatch.setattr(os, name, lambda *paths, name=name: (calls.append("named"), real[name](*paths))[1])
    getattr(storage, how)(f"{tmp_path}/new/x", b"1")
    assert calls == ["folder", "file", "named", "folder"]
    assert hashlib.sha256((tmp_path / "new/x").read_bytes()).hexdigest() == hashlib.sha256(b"1").hexdigest()
    assert os.listdir(tmp_path / "new") == ["x"]


@pytest.mark.parametrize("location", ["s3://b/[x]", "/data/*", "s3://b/r?", "/data/a\\b", "s3://b/a//b", "s3://b/./a"])
def test_results_are_refused_where_not_every_reader_finds_them(location: str) -> None:
    with pytest.raises(ConfigError, match="results cannot be at"):
        storage.check_results(location)
