"""Which objects are images of a run, and in which order they get their row ids."""

import json
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdd import storage
from fcdd.errors import ConfigError, FCDDError
from fcdd.storage import ObjectInfo
from jobs import _listing, _manifest
from jobs._listing import Selection
from jobs._manifest import Listing, Source
from schemas import Layout
from schemas.runs import Intent, Plan

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def info(uri: str, *, etag: str = "e", size: int = 1, when: datetime = NOW) -> ObjectInfo:
    return ObjectInfo(uri, etag, size, when)


def test_training_lists_images_once_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.jpeg", "a/.hidden/d.png", "_e/f.png", "g.txt", "a-b.tif"):
        storage.write(f"{tmp_path}/{name}", b"1")
    infos = _listing.list_images(f"file://{tmp_path}")
    assert [each.uri.removeprefix(f"file://{tmp_path}/") for each in infos] == ["a-b.tif", "a/c.jpeg", "b.PNG"]
    changed = [infos[0]._replace(etag="other"), *infos[1:]]
    assert _listing.digest(infos) != _listing.digest(changed)


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("x.png", None),
        ("a/b/x.JPG", None),
        ("x.txt", "extension"),
        ("folder.png/", "extension"),
        (".trash/x.png", "hidden"),
        ("a/_tmp/x.png", "hidden"),
        ("a/thumbs/x.png", "excluded"),
        ("b/x.png", "not included"),
    ],
)
def test_every_rule_has_a_name(key: str, rule: str | None) -> None:
    selection = Selection(include=("a/*", "x*", "*.txt", ".*", "folder*"), exclude=("*/thumbs/*",))
    assert selection.leaves_out(key, info("s3://b/" + key)) == rule


def test_older_objects_are_left_out() -> None:
    selection = Selection(modified_since=NOW)
    assert selection.leaves_out("x.png", info("s3://b/x.png", when=NOW.replace(year=2025))) == "older"
    assert selection.leaves_out("x.png", info("s3://b/x.png")) is None


def test_locations_below_others_are_listed_once() -> None:
    assert _listing.outermost(["s3://b/x/", "s3://b/x/y", "s3://b/xy", "s3://b/x"]) == ["s3://b/x", "s3://b/xy"]


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
    [page] = _listing.entries(f"file://{tmp_path}/{name}", "s3://b")
    assert [(each.uri, each.size) for each in page] == [
        ("s3://b/a/1.png", -1),
        ("s3://other/2 ü.png", -1),
    ]


def test_a_parquet_inventory_brings_what_it_knows(tmp_path: Path) -> None:
    rows = {"uri": ["s3://b/1.png"], "e_tag": ["abc"], "size": [7], "last_modified_date": [NOW], "other": [1]}
    pq.write_table(pa.table(rows), tmp_path / "inventory.parquet")
    assert list(_listing.entries(f"file://{tmp_path}/inventory.parquet", None)) == [
        [ObjectInfo("s3://b/1.png", "abc", 7, NOW)]
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "a.png\n", "names 'a.png', which is relative"),
        ("l.jsonl", '{"uri": "s3://b/a.png"}\n[1]\n', "line 2 is no JSON object"),
        ("l.jsonl", "{\n", "cannot read the list"),
        ("l.csv", "name\nx\n", "entry 1 of .*none of the columns"),
        ("l.txt", "ftp://x/y.png\n", "entry 1 of"),
        ("l.doc", "x", "expected a list that ends in"),
        (None, "", "does not exist"),
    ],
)
def test_a_wrong_list_is_one_sentence(name: str | None, content: str, message: str, tmp_path: Path) -> None:
    if name:
        storage.write(f"{tmp_path}/{name}", content.encode())
    with pytest.raises(ConfigError, match=message):
        list(_listing.entries(f"file://{tmp_path}/{name or 'none.txt'}", None))


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
    with Listing(layout, make_intent(run_id), source) as listing:
        return listing.plan()


def uris(layout: Layout, plan: Plan) -> list[str]:
    parts = [_manifest.read_part(layout, plan.intent.run_id, index) for index in range(len(plan.parts))]
    rows = pa.concat_tables(parts)
    assert rows["row_id"].to_pylist() == list(range(plan.num_images))
    return list(rows["image_uri"].to_pylist())


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_manifest, "FIRST_ROWS", 3)
    monkeypatch.setattr(_manifest, "PART_ROWS", 5)
    monkeypatch.setattr(_manifest, "FIRST_PARTS", 2)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(f"file://{tmp_path}/results")


@pytest.mark.usefixtures("small_parts")
@given(
    keys=st.lists(st.text("ab-/é9", min_size=1, max_size=4), min_size=1, max_size=40),
    pages=st.integers(1, 7),
)
def test_whatever_order_a_store_lists_in_each_image_is_in_the_manifest_once(
    keys: list[str], pages: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pages that repeat, go back, or come in no order at all (RELIABILITY fault 15)."""
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
    assert plan.manifest_digest == _listing.digest(listed[1:])


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
        Listing(layout, make_intent(), source) as listing,
        pytest.raises(FCDDError, match="access denied"),
    ):
        listing.wait(known=1 << 40)


@pytest.mark.parametrize("prefix", ["s3://b/a-long-prefix-indeed", ""])
def test_what_a_list_names_is_an_image_wherever_it_is(prefix: str) -> None:
    named = [info("s3://o/x.png"), info("s3://o/_archive/.y.png")]
    skipped: Counter[str] = Counter()
    assert _listing.selected(prefix, named, Selection(), skipped, named=True) == named
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
    with Listing(layout, make_intent(), Source(["s3://b/x"], None, Selection(), False)) as listing:
        first = listing.wait()
        assert (len(first.parts), first.parts[0].rows, first.complete) == (1, 3, False)
        go_on.set()
        assert listing.plan().num_images == 5
        assert listing.wait(known=1).complete


def test_several_locations_share_one_manifest(layout: Layout, tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "c/1.png"):
        storage.write(f"{tmp_path}/{name}", b"1")
    prefixes = _listing.outermost([f"{tmp_path}/a", f"{tmp_path}/c", f"{tmp_path}/a"])
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


def test_a_plan_stands_when_images_are_added(layout: Layout, tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/images/a.png", b"x")
    source = Source([f"file://{tmp_path}/images"], None, Selection(), False)
    first = plan_of(layout, source)
    storage.write(f"{tmp_path}/images/b.png", b"x")
    assert plan_of(layout, source) == first
    assert json.loads(storage.read(layout.plan("r")))["num_images"] == 1
