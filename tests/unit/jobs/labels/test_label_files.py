"""Files of labels, as people keep them: what counts, what is missing, and what is refused."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.local_s3 import LocalS3
from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.labels import label_files

SAME = {
    "no ETags": "image_uri,label\ns3://b/a.png,1\ns3://b/b.png,0\n",
    "an empty column": "image_uri,label,image_etag,mask_uri\ns3://b/a.png,1,,\ns3://b/b.png,0,,\n",
    "a column that is empty for some": 'image_uri,label,image_etag\ns3://b/a.png,1,\ns3://b/b.png,0,"""x"""\n',
    "blanks and capitals in the header": " image_uri , Label\ns3://b/a.png,1\ns3://b/b.png,0\n",
    "a byte order mark": "\ufeffimage_uri,label\ns3://b/a.png,1\ns3://b/b.png,0\n",
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("name", ["labels.csv", "LABELS.CSV"])
def test_labels_without_an_etag_are_of_the_image_whatever_it_was(tmp_path: Path, case: str, name: str) -> None:
    (tmp_path / name).write_text(SAME[case], encoding="utf-8")
    found = label_files.read(str(tmp_path / name))
    assert found["label"].to_pylist() == [1, 0]
    assert found["image_etag"].to_pylist() == (["", "x"] if "some" in case else ["", ""])
    assert label_files.read_anomalies(str(tmp_path / name)) == [("s3://b/a.png", None, "")]


def test_nulls_in_a_parquet_file_are_empty_and_its_ending_may_be_in_capitals(tmp_path: Path) -> None:
    columns = {"image_uri": ["s3://b/a.png"], "label": [1], "image_etag": [None], "mask_uri": [None]}
    types = {"image_etag": pa.null(), "mask_uri": pa.string()}
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "labels.PARQUET")
    assert label_files.is_file(str(tmp_path / "labels.PARQUET"))
    assert label_files.read_anomalies(str(tmp_path / "labels.PARQUET")) == [("s3://b/a.png", None, "")]


WRONG = {
    "no rows": ("image_uri,label\n", "there is not one label in"),
    "bad images only": ("image_uri,label\ns3://b/a.png,-1\n", "all 1 labels in .* are -1"),
    "no label": ("image_uri,label\ns3://b/a.png,\n", "expected labels 0"),
    "no name": ("image_uri,label\n,1\n", "row 1"),
    "the same image twice": ("image_uri,label\ns3://b/a.png,1\ns3://b/a.png,0\n", "got s3://b/a.png more than once"),
    "a word that is none": (
        "image_uri,label\ns3://b/a.png,good\ns3://b/b.png,scratch\n",
        "got 'scratch'. .* defect_class",
    ),
    "a number that is none": ("image_uri,label\ns3://b/a.png,2\n", "expected labels 0 .* got '2'"),
    "half a label": ("image_uri,label\ns3://b/a.png,0.5\n", "labels 0 or 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_labels_that_say_nothing_are_one_sentence(tmp_path: Path, case: str) -> None:
    text, message = WRONG[case]
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        label_files.read_decided(str(tmp_path / "x.csv"))


@pytest.mark.s3
def test_a_file_that_is_not_local_names_no_local_file_that_will_be_opened(s3: LocalS3, prefix: str) -> None:
    rows = {"image_uri": ["file:///etc/a.png", "s3://b/a.png"], "label": [1, 0], "mask_uri": ["", ""]}
    for name, changes in (
        ("image", {}),
        ("mask", {"image_uri": ["s3://b/c.png", "s3://b/a.png"], "mask_uri": ["/m.png", ""]}),
    ):
        sink = io.BytesIO()
        pq.write_table(pa.table(rows | changes), sink)
        storage.write(f"{prefix}/{name}.parquet", sink.getvalue())
        with pytest.raises(ConfigError, match="only a local file may name local ones"):
            label_files.read_anomalies(f"{prefix}/{name}.parquet")
    assert label_files.read_decided(f"{prefix}/image.parquet").num_rows == 2  # who only compares names opens nothing
    with pytest.raises(ConfigError, match=r"names the local file file:///etc/a\.png"):
        label_files.read_decided(f"{prefix}/image.parquet", opened=True)


@pytest.mark.parametrize("etag", ["0x8DB9F1A2B3C4D5E", "12345678", "1e5", '"""0x8DB9F1A2B3C4D5E"""', " 0x1 "])
def test_an_etag_that_looks_like_a_number_is_the_text_that_it_is(tmp_path: Path, etag: str) -> None:
    (tmp_path / "x.csv").write_text(f"image_uri,label,image_etag\ns3://b/a.png,1,{etag}\ns3://b/b.png,0,\n")
    [found] = label_files.read_anomalies(str(tmp_path / "x.csv"))
    assert found.etag == etag.strip().strip('"')


def test_columns_that_differ_in_capitals_only_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image_uri,label,Label\ns3://b/a.png,1,0\n")
    with pytest.raises(ConfigError, match="columns of the same name"):
        label_files.read(str(tmp_path / "x.csv"))


def test_labels_are_numbers_or_words(tmp_path: Path) -> None:
    good = ["good", "OK", " nominal ", "normal", "false_alarm", "0", "pass"]
    bad = ["bad", "NOK", "not ok", "not-ok", "anomalous", "Defect", "real defect", "1", "reject"]
    neither = ["-1", "bad image"]
    words = [*good, *bad, *neither]
    rows = "".join(f"s3://b/{number}.png,{word}\n" for number, word in enumerate(words))
    (tmp_path / "x.csv").write_text(f"image_uri,label\n{rows}")
    found = label_files.read(str(tmp_path / "x.csv"))["label"].to_pylist()
    assert found == [0] * len(good) + [1] * len(bad) + [-1] * len(neither)


def test_a_label_says_what_kind_of_defect_it_is_and_may_not(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image_uri,label,defect_class\ns3://b/a.png,1,7\ns3://b/b.png,1,\n")
    assert label_files.read(str(tmp_path / "x.csv"))["defect_class"].to_pylist() == ["7", ""]
    table = pa.table({"image_uri": ["s3://b/a.png"], "label": [1], "defect_class": pa.array([None], pa.string())})
    pq.write_table(table, tmp_path / "x.parquet")
    assert label_files.read(str(tmp_path / "x.parquet"))["defect_class"].to_pylist() == [""]
