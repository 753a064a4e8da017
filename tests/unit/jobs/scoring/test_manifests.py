"""Which objects are images of a run, and in which order they get their row ids."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdd.errors import ConfigError, FCDDError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import manifest_parts
from jobs.scoring import manifests
from jobs.scoring.manifests import Listing, Source
from jobs.shell import temporary
from jobs.sources import listing, lists
from jobs.sources.listing import OwnFiles, Selection
from schemas import Layout
from schemas.runs import Intent, Plan
from tests.awkward_s3 import AwkwardS3

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def info(uri: str, *, etag: str = "e", size: int = 1, when: datetime = NOW) -> ObjectInfo:
    return ObjectInfo(uri, etag, size, when)


def test_training_lists_images_once_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.jpeg", "a/.hidden/d.png", "_e/f.png", "g.txt", "a-b.tif"):
        storage.write(f"{tmp_path}/{name}", b"1")
    infos = listing.list_images(f"file://{tmp_path}")
    assert [each.uri.removeprefix(f"file://{tmp_path}/") for each in infos] == ["a-b.tif", "a/c.jpeg", "b.PNG"]
    changed = [infos[0]._replace(etag="other"), *infos[1:]]
    assert listing.digest(infos) != listing.digest(changed)


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("x.png", None),
        ("a/b/x.JPG", None),
        ("x.txt", "extension"),
        ("folder.png/", "extension"),
        (".trash/x.png", "hidden"),
        ("a/.x.png", "hidden"),
        ("a/_tmp/x.png", "hidden"),
        ("a/_MG_0001.JPG", None),
        ("a/_archive/x.png", None),
        ("a/thumbs/x.png", "excluded"),
        ("b/x.png", "not included"),
    ],
)
def test_every_rule_has_a_name(key: str, rule: str | None) -> None:
    selection = Selection(include=("a/*", "x*", "*.txt", "folder*", "*/_archive/*"), exclude=("*/thumbs/*",))
    assert selection.leaves_out(key, info("s3://b/" + key)) == rule


def test_older_objects_are_left_out() -> None:
    selection = Selection(modified_since=NOW)
    assert selection.leaves_out("x.png", info("s3://b/x.png", when=NOW.replace(year=2025))) == "older"
    assert selection.leaves_out("x.png", info("s3://b/x.png")) is None


def test_locations_below_others_are_listed_once() -> None:
    assert listing.outermost(["s3://b/x/", "s3://b/x/y", "s3://b/xy", "s3://b/x"]) == ["s3://b/x", "s3://b/xy"]


LISTS = {
    "list.txt": "a/1.png\n\ns3://other/2 ü.png\n",
    "list.csv": "image_uri,comment\na/1.png,x\ns3://other/2 ü.png,y\n",
    "list.jsonl": '{"uri": "a/1.png"}\n{"uri": "s3://other/2 ü.png", "more": 1}\n',
    # Lookout for Vision and SageMaker Ground Truth
    "train.manifest": '{"source-ref": "s3://b/a/1.png", "anomaly-label": 1, "anomaly-label-metadata": {"class-name": '
    '"anomaly"}}\n{"source-ref": "s3://other/2 ü.png", "anomaly-label": 0}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_any_kind_names_images_below_the_base_or_anywhere(name: str, tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/{name}", LISTS[name].encode())
    [page] = lists.entries(f"file://{tmp_path}/{name}", "s3://b")
    assert [(each.uri, each.size) for each in page] == [
        ("s3://b/a/1.png", -1),
        ("s3://other/2 ü.png", -1),
    ]


def test_a_parquet_inventory_brings_what_it_knows(tmp_path: Path) -> None:
    rows = {"uri": ["s3://b/1.png"], "e_tag": ["abc"], "size": [7], "last_modified_date": [NOW], "other": [1]}
    pq.write_table(pa.table(rows), tmp_path / "inventory.parquet")
    assert list(lists.entries(f"file://{tmp_path}/inventory.parquet", None)) == [
        [ObjectInfo("s3://b/1.png", "abc", 7, NOW)]
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "a.png\n", "names 'a.png', which is relative"),
        ("l.jsonl", '{"uri": "s3://b/a.png"}\n[1]\n', "line 2 is no JSON object"),
        ("l.jsonl", "{\n", "cannot read the list"),
        ("l.jsonl", "[" * 200_000, "cannot read the list"),
        ("l.jsonl", '{"uri": "s3://b/a.png", "etag": "x", "size": 1e999, "last_modified": "2026-01-01"}', "entry 1 of"),
        ("l.jsonl", '{"uri": "s3://b/a.png", "etag": "x", "size": [1], "last_modified": "2026-01-01"}', "entry 1 of"),
        ("l.jsonl", '{"uri": "s3://b/a.png", "etag": "x", "size": -7, "last_modified": "2026-01-01"}', "-7 bytes"),
        (
            "l.jsonl",
            '{"uri": "s3://b/a.png", "etag": "x", "size": 1' + "0" * 30 + ', "last_modified": "2026-01-01"}',
            "a size of 10000",
        ),
        (
            "l.jsonl",
            '{"uri": "s3://b/a.png", "etag": "x", "size": 1, "last_modified": "0001-01-01T00:00:00+14:00"}',
            "entry 1 of",
        ),
        ("manifest.json", "[" * 200_000, "cannot read the list"),
        (
            "manifest.json",
            '{"fileFormat": "CSV", "fileSchema": ["Key"], "files": [{"key": 5}], "destinationBucket": "b"}',
            "cannot read the list",
        ),
        ("l.jsonl", '{"uri": "s3://b/\\ud800.png"}\n', "entry 1 of .*is not UTF-8"),
        ("l.csv", "name\nx\n", "first line has none of the columns .* give the manifest.json"),
        ("l.csv", "b,a.png,7,etag\n", "first line has none of the columns .* give the manifest.json"),
        ("l.jsonl", '{"name": "x"}\n', "entry 1 of .*none of the columns"),
        ("l.csv", "uri,size\ns3://b/x,1,2\n", "line 2 has 3 columns"),
        ("manifest.json", "{}", "not the manifest of an inventory"),
        ("manifest.json", '{"fileFormat": "ORC", "fileSchema": "", "files": [], "destinationBucket": ""}', "'ORC'"),
        ("l.txt", "ftp://x/y.png\n", "entry 1 of"),
        ("l.doc", "x", "expected a list that ends in"),
        (None, "", "does not exist"),
    ],
)
def test_a_wrong_list_is_one_sentence(name: str | None, content: str, message: str, tmp_path: Path) -> None:
    if name:
        storage.write(f"{tmp_path}/{name}", content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        list(lists.entries(f"file://{tmp_path}/{name or 'none.txt'}", None))
    assert "\n" not in str(caught.value)


KEYS = ["a/b 1.png", "a/b+2.png", "a//3.png", "a/../ü.png", 'a/"4",.png', "a/line\nbreak.png", "a/end.png "]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
@pytest.mark.parametrize("beside", ["data", "copy"])
def test_an_inventory_of_s3_is_a_list_by_its_manifest(kind: str, beside: str, tmp_path: Path) -> None:
    """With the columns that its `fileSchema` names, in any order; old versions and deletion marks are no objects."""
    rows = [("b", key, "v", "true", "false", 7, f"{NOW:%Y-%m-%dT%H:%M:%S.000Z}", "0" * 32) for key in KEYS]
    rows += [
        ("b", "old.png", "v", "false", "false", 7, rows[0][6], "e"),
        ("b", "x.png", "v", "true", "true", 0, "", ""),
    ]
    names = ["bucket", "key", "version_id", "is_latest", "is_delete_marker", "size", "last_modified_date", "e_tag"]
    folder = tmp_path / ("data" if beside == "data" else "night")
    folder.mkdir()
    (tmp_path / "night").mkdir(exist_ok=True)
    if kind == "CSV":
        sink = io.StringIO()
        writer = csv.writer(sink, quoting=csv.QUOTE_ALL)
        writer.writerows((row[0], urllib.parse.quote_plus(row[1]), *row[2:]) for row in rows)
        (folder / "1.csv.gz").write_bytes(gzip.compress(sink.getvalue().encode()))
        schema = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
    else:
        table = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
        booleans = {name: table[name].cast(pa.bool_()) for name in ("is_latest", "is_delete_marker")}
        for name, column in booleans.items():
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, folder / "1.parquet")
        schema = "message s3.inventory { required binary bucket (UTF8); }"
    key = "inventory/b/all/data/1." + ("csv.gz" if kind == "CSV" else "parquet")
    document = {
        "sourceBucket": "b",
        "destinationBucket": "arn:aws:s3:::elsewhere",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [{"key": key, "size": 1, "MD5checksum": "x"}],
    }
    (tmp_path / "night/manifest.json").write_text(json.dumps(document))
    [page] = lists.entries(f"file://{tmp_path}/night/manifest.json", None, must_be_known=True)
    assert page == [ObjectInfo(f"s3://b/{key}", "0" * 32, 7, NOW) for key in KEYS]


def test_a_small_inventory_needs_no_manifest(tmp_path: Path) -> None:
    line = '"b","a/b%201%2B.png","7","2026-11-01T00:00:00.000Z","abc"\n'
    for name, content in (("l.csv", line.encode()), ("l.csv.gz", gzip.compress(line.encode()))):
        storage.write(f"{tmp_path}/{name}", content)
        [page] = lists.entries(f"file://{tmp_path}/{name}", None, must_be_known=True)
        assert page == [ObjectInfo("s3://b/a/b 1+.png", "abc", 7, NOW)]
    storage.write(f"{tmp_path}/l.csv", b"bucket,key,size,last_modified_date,e_tag\nb,a/b 1+.png,7,2026-11-01,abc\n")
    [page] = lists.entries(f"file://{tmp_path}/l.csv", None, must_be_known=True)
    assert page == [ObjectInfo("s3://b/a/b 1+.png", "abc", 7, NOW)]


def test_keys_of_a_list_are_data(tmp_path: Path) -> None:
    """And blanks at the end of a line of text are not."""
    storage.write(f"{tmp_path}/l.txt", "\ufeffs3://b/a/../x.png \t\r\n  lead\r.png\n \n".encode())
    [page] = lists.entries(f"file://{tmp_path}/l.txt", "s3://b")
    assert [each.uri for each in page] == ["s3://b/a/../x.png", "s3://b/  lead\r.png"]
    storage.write(f"{tmp_path}/l.jsonl", b'{"uri": "s3://b/end.png "}')
    [page] = lists.entries(f"file://{tmp_path}/l.jsonl", "s3://b")
    assert page[0].uri == "s3://b/end.png "


@pytest.mark.parametrize("named", ["/etc/x.png", "file:///etc/x.png", "../x.png", "a/../../images2/x.png"])
def test_only_a_local_list_names_local_files(named: str, awkward: AwkwardS3, tmp_path: Path) -> None:
    base = f"file://{tmp_path}/images"
    awkward.put("list.txt", b"below/x.png\n")
    [page] = lists.entries("s3://awkward/list.txt", base)
    assert page[0].uri == f"{base}/below/x.png"
    awkward.put("list.txt", f"{named}\n".encode())
    with pytest.raises(
        ConfigError, match=r"entry 1 of s3://awkward/list.txt names .*only a list that is itself on this"
    ):
        list(lists.entries("s3://awkward/list.txt", base))
    storage.write(f"{tmp_path}/list.txt", f"{named}\n".encode())
    assert list(lists.entries(f"file://{tmp_path}/list.txt", base))


def make_intent(run_id: str = "r", *images: str) -> Intent:
    return Intent(
        run_id=run_id,
        collection="c",
        day=date(2026, 11, 1),
        images=images,
        selection={},
        bundle="b",
        alpha=0.01,
        fdr=0.1,
        bundle_digest="d",
        started_at=NOW,
    )


def plan_of(layout: Layout, source: Source, run_id: str = "r") -> Plan:
    with Listing(layout, make_intent(run_id), source) as found:
        return found.plan()


def uris(layout: Layout, plan: Plan) -> list[str]:
    parts = [manifest_parts.read(layout, plan.intent.run_id, index) for index in range(len(plan.parts))]
    rows = pa.concat_tables(parts)
    assert rows["row_id"].to_pylist() == list(range(plan.num_images))
    return list(rows["image_uri"].to_pylist())


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "FIRST_ROWS", 3)
    monkeypatch.setattr(manifests, "PART_ROWS", 5)
    monkeypatch.setattr(manifests, "FIRST_PARTS", 2)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(f"file://{tmp_path}/results")


@pytest.mark.usefixtures("small_parts")
@settings(deadline=None)  # a disk takes its time until what it was given is safe
@given(
    keys=st.lists(st.text("ab-/é9", min_size=1, max_size=4), min_size=1, max_size=40),
    pages=st.integers(1, 7),
)
def test_whatever_order_a_store_lists_in_each_image_is_in_the_manifest_once(
    keys: list[str], pages: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pages that repeat, go back, or come in no order at all."""
    layout = Layout(f"file://{tmp_path_factory.mktemp('r')}")
    listed = [info(f"s3://b/x/{key}.png", etag=key) for key in keys]

    rule = Selection().leaves_out
    expected = {each.uri for each in listed if rule(each.uri.removeprefix("s3://b/x/").lstrip("/"), each) is None}

    def stub(prefix: str, *, after: str | None = None) -> list[list[ObjectInfo]]:
        assert prefix == "s3://b/x"
        return [listed[start : start + pages] for start in range(0, len(listed), pages)]

    with pytest.MonkeyPatch.context() as patch:
        pages_of = storage.pages
        patch.setattr(storage, "pages", lambda u, **k: stub(u, **k) if u.startswith("s3:") else pages_of(u, **k))
        try:
            plan = plan_of(layout, Source(["s3://b/x"], None, Selection(), False))
        except ConfigError:
            assert not expected
            return
    assert sorted(uris(layout, plan)) == sorted(expected)
    assert plan.num_images + plan.num_duplicates + sum(plan.skipped.values()) == len(keys)


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_listing_goes_on_behind_its_last_part(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [info(f"s3://b/x/{index:03d}.png") for index in range(20)]
    asked: list[str | None] = []
    pages_of = storage.pages

    def stub(prefix: str, *, after: str | None = None) -> object:
        if not prefix.startswith("s3:"):
            return pages_of(prefix)
        asked.append(after)

        def pages() -> object:
            rest = [each for each in listed if after is None or each.uri > after]
            yield rest[:8]
            if after is None:
                raise FCDDError("the store went away")
            yield rest[8:]

        return pages()

    monkeypatch.setattr(storage, "pages", stub)
    source = Source(["s3://b/x"], None, Selection(), False)
    with pytest.raises(FCDDError, match="went away"):
        plan_of(layout, source)
    listed.insert(0, info("s3://b/x/000-late.png"))  # before what is sealed: the next night has it
    plan = plan_of(layout, source)
    assert asked == [None, "s3://b/x/005.png"]
    assert uris(layout, plan) == [f"s3://b/x/{index:03d}.png" for index in range(20)]
    assert plan.manifest_digest == listing.digest(listed[1:])


@pytest.mark.usefixtures("small_parts")
def test_what_came_out_of_order_before_an_interruption_is_not_lost(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b", "c", "d", "e", "a", "f", "g"]
    interrupted = [True]
    pages_of = storage.pages

    def stub(prefix: str, *, after: str | None = None) -> object:
        if not prefix.startswith("s3:"):
            return pages_of(prefix)

        def pages() -> object:
            for name in names:
                if after is None or f"s3://b/x/{name}.png" > after:
                    yield [info(f"s3://b/x/{name}.png")]
                if name == "f" and interrupted.pop():
                    raise FCDDError("the store went away")

        return pages()

    monkeypatch.setattr(storage, "pages", stub)
    source = Source(["s3://b/x"], None, Selection(), False)
    with pytest.raises(FCDDError, match="went away"):
        plan_of(layout, source)
    interrupted.append(False)
    assert sorted(uris(layout, plan_of(layout, source))) == [f"s3://b/x/{name}.png" for name in "abcdefg"]


def test_the_first_error_of_one_place_ends_the_listing_of_the_others(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages_of = storage.pages

    def stub(prefix: str, *, after: str | None = None) -> object:
        if not prefix.startswith("s3:"):
            return pages_of(prefix)

        def pages() -> object:
            if prefix.endswith("/b"):
                raise FCDDError("access denied")
            for index in range(10**9):
                yield [info(f"{prefix}/{index:010d}.png")]

        return pages()

    monkeypatch.setattr(storage, "pages", stub)
    source = Source(["s3://b/a", "s3://b/b"], None, Selection(), False)
    with (
        Listing(layout, make_intent(), source) as found,
        pytest.raises(FCDDError, match="access denied"),
    ):
        found.wait(known=1 << 40)


@pytest.mark.parametrize("prefix", ["s3://b/a-long-prefix-indeed", ""])
def test_what_a_list_names_is_an_image_wherever_it_is(prefix: str) -> None:
    named = [info("s3://o/x.png"), info("s3://o/_archive/.y.png")]
    skipped: Counter[str] = Counter()
    assert listing.selected(prefix, named, Selection(), skipped) == named
    assert not skipped


@pytest.mark.usefixtures("small_parts")
def test_parts_can_be_read_while_the_listing_goes_on(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go_on = threading.Event()
    pages_of = storage.pages

    def stub(prefix: str, *, after: str | None = None) -> object:
        if not prefix.startswith("s3:"):
            return pages_of(prefix)

        def pages() -> object:
            yield [info(f"s3://b/x/{index}.png") for index in range(4)]
            assert go_on.wait(30)
            yield [info("s3://b/x/9.png")]

        return pages()

    monkeypatch.setattr(storage, "pages", stub)
    with Listing(layout, make_intent(), Source(["s3://b/x"], None, Selection(), False)) as found:
        first = found.wait()
        assert (len(first.parts), first.parts[0].rows, first.complete) == (1, 3, False)
        go_on.set()
        assert found.plan().num_images == 5
        assert found.wait(known=1).complete


def test_several_locations_share_one_manifest(layout: Layout, tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "c/1.png"):
        storage.write(f"{tmp_path}/{name}", b"1")
    prefixes = listing.outermost([f"{tmp_path}/a", f"{tmp_path}/c", f"{tmp_path}/a"])
    plan = plan_of(layout, Source(prefixes, None, Selection(), False))
    assert [uri.removeprefix(f"file://{tmp_path}/") for uri in uris(layout, plan)] == ["a/1.png", "a/2.png", "c/1.png"]


def test_a_list_becomes_a_sorted_manifest_without_duplicates(layout: Layout, tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/list.txt", b"b.png\na.png\nb.png\nreadme.md\n")
    source = Source(["s3://b/x"], f"file://{tmp_path}/list.txt", Selection(), False)
    plan = plan_of(layout, source)
    assert uris(layout, plan) == ["s3://b/x/a.png", "s3://b/x/b.png"]
    assert (plan.num_duplicates, plan.skipped) == (1, {"extension": 1})


def test_a_listing_without_an_image_says_what_it_found(layout: Layout, tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/images/readme.md", b"x")
    with pytest.raises(ConfigError, match=r"no images under file://.*1 other objects: 1 by rule 'extension'"):
        plan_of(layout, Source([f"file://{tmp_path}/images"], None, Selection(), False))


@pytest.mark.parametrize(
    ("names", "place", "said"),
    [
        (["one.png"], "one.png", "'one.png' is a file: give its folder .*--include"),
        (["one.png"], "*.png", "locations are not patterns: give .*/images and `--include`"),
        (["_hidden/one.png"], "", 'hidden is what starts with "." or lies in a folder that starts with "_"'),
        (["one.xyz"], "", r"expected files ending in \.jpg"),
    ],
)
def test_an_empty_place_is_answered_with_what_to_do(
    names: list[str], place: str, said: str, layout: Layout, tmp_path: Path
) -> None:
    for name in names:
        storage.write(f"{tmp_path}/images/{name}", b"x")
    prefix = f"file://{tmp_path}/images/{place}".rstrip("/")
    for work in (
        lambda: plan_of(layout, Source([prefix], None, Selection(), False)),
        lambda: listing.list_images(prefix),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            work()
        assert ("expected files ending" in str(caught.value)) == ("_hidden" not in names[0])


def test_what_we_wrote_ourselves_is_no_image(tmp_path: Path) -> None:
    """Below the images lie a bundle, with the picture that `fcdd train` leaves there, and results with review masks."""
    results = "line/results"
    ours = ["b/bundle.json", "b/model.safetensors", "b/calibration.png", f"{results}/runs/r.json"]
    ours += [f"{results}/labels/collection=c/masks/{'0' * 8}.png"]
    theirs = ["line/1.png", "line/calibration.png", "x/bundle.json", "x/calibration.png"]
    theirs += ["y/labels/collection=c/masks/1.png", "b/mine.png", f"{results}/mine.png"]
    for name in ours + theirs:
        storage.write(f"{tmp_path}/{name}", b"x")
    expected = sorted(name for name in theirs if name.endswith(".png"))
    found = [each.uri.removeprefix(f"file://{tmp_path}/") for each in listing.list_images(f"file://{tmp_path}")]
    assert found == expected
    masks = f"file://{tmp_path}/{results}/labels/collection=c/masks"
    assert len(listing.list_images(masks)) == 1  # somebody asks for them
    skipped: Counter[str] = Counter()
    for page in storage.pages(str(tmp_path)):
        listing.selected(f"file://{tmp_path}", page, Selection(), skipped, OwnFiles())
    assert skipped == {"our own files": 2, "extension": 4}


def test_images_are_streamed_from_s3_without_our_own_files(awkward: AwkwardS3, layout: Layout) -> None:
    for index in range(50):
        awkward.put(f"i/{index:02d}.png", b"1")
    for name in ("bundle.json", "calibration.png", "model.safetensors"):
        awkward.put(f"i/bundle/{name}", b"1")
    plan = plan_of(layout, Source(["s3://awkward/i"], None, Selection(), False))
    assert plan.num_images == 50
    assert plan.skipped == {"extension": 2, "our own files": 1}
    assert len(awkward.requests) == 3  # one page, and two questions about one folder


def test_names_that_no_client_can_name_are_counted_and_said(
    layout: Layout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage.write(f"{tmp_path}/images/a.png", b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/\xff.png")).write_bytes(b"x")
    (tmp_path / "images/loop").symlink_to(".")
    plan = plan_of(layout, Source([f"file://{tmp_path}/images"], None, Selection(), False))
    assert (plan.num_images, plan.skipped) == (1, {"unreadable name": 2})
    assert [record.message for record in caplog.records if "no client can name" in record.message] == [
        f"left out file://{tmp_path}/images/{name}: no client can name or open it" for name in ("loop/", r"\xff.png")
    ]


@pytest.mark.parametrize("left", [".DS_Store", "marker/", "readme.md", "_trash/x.png", "other/x.png"])
def test_an_empty_place_is_not_taken_for_deleted_images(left: str, awkward: AwkwardS3, layout: Layout) -> None:
    """Whatever an unmounted disk or a console leaves behind."""
    awkward.put(f"i/{left}", b"")
    source = Source(["s3://awkward/i"], None, Selection(exclude=("other/*",)), since_last=True)
    with pytest.raises(ConfigError, match=r"no images under s3://awkward/i .1 other objects"):
        plan_of(layout, source)
    awkward.put("i/old.png", b"")
    newer = Selection(exclude=("other/*",), modified_since=NOW.replace(year=2099))
    assert plan_of(layout, source._replace(selection=newer)).num_images == 0
    empty = source._replace(prefixes=["s3://awkward/none"], may_be_empty=("s3://awkward/none",))
    assert plan_of(layout, empty, "empty").num_images == 0


def test_a_folder_that_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, time; from jobs.shell import temporary; folder = temporary.ScratchFolder('listing');"
        "print(folder.name, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    names = [process.stdout.readline().strip() for process in started if process.stdout]
    (tmp_path / "fcdd-list-old").mkdir()
    os.utime(tmp_path / "fcdd-list-old", (0, 0))
    (tmp_path / "fcdd-query-new").mkdir()
    started[0].kill()
    started[0].wait()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(tmp_path))
            with temporary.folder("query") as folder:
                assert {folder.name, "fcdd-query-new", Path(names[1]).name} == set(os.listdir(tmp_path))
    finally:
        started[1].kill()
        started[1].wait()


def test_a_plan_stands_when_images_are_added(layout: Layout, tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/images/a.png", b"x")
    source = Source([f"file://{tmp_path}/images"], None, Selection(), False)
    first = plan_of(layout, source)
    storage.write(f"{tmp_path}/images/b.png", b"x")
    assert plan_of(layout, source) == first
    assert json.loads(storage.read(layout.plan("r")))["num_images"] == 1
