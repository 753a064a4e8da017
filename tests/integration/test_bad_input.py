"""What a user can get wrong: one sentence that names it and the remedy, exit code 2, and no Ray started."""

import os
import re
from pathlib import Path

import pytest

from cluster.local_s3 import LocalS3
from fcdd.io import storage
from fcdd.paper.datasets import LabelledImage
from tests.conftest import Fcdd
from tests.detectors import make
from tests.integration.conftest import NIGHT, Night, Trained
from tests.line import run_verb

pytestmark = [pytest.mark.s3, pytest.mark.ray]


@pytest.fixture(scope="module")
def trained(s3: LocalS3, nominal_cells: list[LabelledImage]) -> Trained:
    """Nothing here looks at a score: an untrained bundle is as good."""
    root = f"s3://{s3.bucket}/bad-input"
    for cell in nominal_cells[:80]:
        storage.write(f"{root}/nominal/{cell.path.name}", cell.path.read_bytes())
    make().save(f"{root}/bundle")
    return Trained(f"{root}/bundle", f"{root}/nominal", "", "")


@pytest.fixture(scope="module")
def night(trained: Trained, nominal_cells: list[LabelledImage]) -> Night:
    root = trained.images.rsplit("/", 1)[0]
    uploaded = {f"{root}/{NIGHT}/{cell.path.name}": cell.path.read_bytes() for cell in nominal_cells[100:104]}
    for uri, content in uploaded.items():
        storage.write(uri, content)
    labels = f"{root}/labels.csv"
    committed = Night(trained.bundle, f"{root}/{NIGHT}", f"{root}/results", labels, uploaded, {}, "", None)  # type: ignore[arg-type]
    run_verb(*committed.arguments(), "--workers", "0")
    return committed


CASES = {
    "missing bucket": (
        ["train", "--images", "s3://no-such-bucket/x", "--bundle", "{prefix}/b"],
        "cannot list s3://no-such-bucket/x: the bucket does not exist; create it or correct it",
    ),
    "empty prefix": (
        ["train", "--images", "{prefix}/nothing", "--bundle", "{prefix}/b"],
        "(0 other objects: nothing); nothing at all is there: is the location right?; expected files ending in .jpg",
    ),
    "unknown network": (
        ["train", "--images", "{images}", "--bundle", "{prefix}/b", "--network", "resnet9000"],
        "unknown network 'resnet9000'; choose one of: cnn224",
    ),
    "anomalous images below the location": (
        ["train", "--images", "{prefix}/mvtec", "--bundle", "{prefix}/b"],
        "{prefix}/mvtec holds a folder 'ground_truth' ({prefix}/mvtec/ground_truth/hole/1_mask.png): training needs",
    ),
    "too few calibration images": (
        ["train", "--images", "{images}", "--bundle", "{prefix}/b", "--network", "cnn32", "--image-size", "32"],
        "nominal images are too few: ",
    ),
    "batch that does not divide": (
        ["train", "--images", "{images}", "--bundle", "{prefix}/b", "--workers", "2", "--batch-size", "9"],
        "a global batch of 9 does not divide among 2 workers",
    ),
    "bundle already there": (
        ["train", "--images", "{images}", "--bundle", "{bundle}", "--alpha", "0.2", "--batch-size", "8"],
        "there is a bundle at {bundle}, and runs may name it",
    ),
    "no bundle": (
        [
            "score",
            "--bundle",
            "{prefix}/none",
            "--images",
            "{images}",
            *["--results", "{prefix}/r", "--collection", "c"],
        ],
        "no bundle at {prefix}/none",
    ),
    "damaged bundle": (
        [
            "score",
            "--bundle",
            "{prefix}/bad",
            "--images",
            "{images}",
            *["--results", "{prefix}/r", "--collection", "c"],
        ],
        "{prefix}/bad/bundle.json is not a bundle specification",
    ),
    "results in a missing bucket": (
        ["score", "--bundle", "{bundle}", "--images", "{images}", *["--results", "s3://gone/r", "--collection", "c"]],
        "cannot list s3://gone/r/runs: the bucket does not exist",
    ),
    "unusable results folder": (
        ["score", "--bundle", "{bundle}", "--images", "{images}", *["--results", "/proc/none", "--collection", "c"]],
        "cannot write file:///proc/none",
    ),
    "collection that is a path": (
        ["score", "--bundle", "{bundle}", "--images", "{images}", *["--results", "{prefix}/r", "--collection", "../c"]],
        "expected a collection of lower-case letters, digits, - and _, got '../c'",
    ),
    "nothing to query": (
        ["query", "--results", "{prefix}/r", "--collection", "c"],
        "no committed run of 'c' under {prefix}/r; score a collection with `fcdd score` first",
    ),
    "missing labels": (
        ["evaluate", "--results", "{results}", "--collection", "cells", "--labels", "{prefix}/none.csv"],
        "the labels {prefix}/none.csv cannot be found",
    ),
    "labels of other images": (
        ["evaluate", "--results", "{results}", "--collection", "cells", "--labels", "{prefix}/other.csv"],
        "none of the 1 labels is of an image scored in 'cells'",
    ),
    "wrong labels": (
        ["evaluate", "--results", "{results}", "--collection", "cells", "--labels", "{prefix}/wrong.csv"],
        "expected labels 0 (nominal), 1 (anomalous) and -1 (a bad image) in {prefix}/wrong.csv, or words such as",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_exit_code_2_before_ray_starts(
    fcdd: Fcdd, prefix: str, trained: Trained, night: Night, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    storage.write(f"{prefix}/bad/bundle.json", b"{}")
    storage.write(f"{prefix}/bad/model.safetensors", b"")
    storage.write(f"{prefix}/mvtec/ground_truth/hole/1_mask.png", b"")
    storage.write(f"{prefix}/wrong.csv", b"image_uri,label\nx,7\n")
    storage.write(f"{prefix}/other.csv", b"image_uri,label\nelsewhere/x.png,1\n")
    values = {"prefix": prefix, "images": trained.images, "bundle": trained.bundle, "results": night.results}
    arguments, message = CASES[case]
    if arguments[0] == "score":
        arguments = [*arguments, "--date", NIGHT]
    done = fcdd(*(argument.format(**values) for argument in arguments), check=False)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message.format(**values) in errors[0]
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("verb", ["train", "score", "query"])
def test_wrong_credentials_are_named_and_never_shown(
    fcdd: Fcdd, s3: LocalS3, trained: Trained, night: Night, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    arguments = {
        "train": ["train", "--images", trained.images, "--bundle", f"{trained.bundle}-2"],
        "score": night.arguments(),
        "query": ["query", "--results", night.results, "--collection", "cells"],
    }[verb]
    done = fcdd(*arguments, check=False)
    assert done.returncode == 2
    assert "access denied; check the credentials in the environment" in done.stderr
    assert "canary-secret" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_named(fcdd: Fcdd, trained: Trained, prefix: str) -> None:
    small = ("--network", "cnn32_s", "--image-size", "32", "--batch-size", "16", "--alpha", "0.1")
    done = fcdd("train", "--images", trained.images, "--bundle", f"{prefix}/b", *small, "--gpu", check=False)
    assert done.returncode == 2
    assert "needs 2 CPUs and 2 GPUs, the cluster has" in done.stderr


@pytest.mark.chaos  # half a minute
def test_a_training_that_diverges_says_so_and_leaves_no_bundle(fcdd: Fcdd, trained: Trained, prefix: str) -> None:
    small = ("--network", "cnn32_s", "--image-size", "32", "--batch-size", "16", "--alpha", "0.1", "--epochs", "2")
    done = fcdd(
        *("train", "--images", trained.images, "--bundle", f"{prefix}/b", *small, "--learning-rate", "1e30"),
        check=False,
    )
    assert done.returncode == 1
    assert "error: the loss became nan; lower the learning rate; the batch has s3://" in done.stderr
    assert "/nominal/cell" in done.stderr
    assert not storage.exists(f"{prefix}/b/bundle.json")


@pytest.mark.slow
def test_too_many_unreadable_images_stop_the_run_and_keep_what_was_staged(
    fcdd: Fcdd, prefix: str, night: Night
) -> None:
    for index in range(6):
        storage.write(f"{prefix}/images/{index}.png", b"broken" if index else next(iter(night.uploaded.values())))
    arguments = ["--bundle", night.bundle, "--images", f"{prefix}/images", "--results", f"{prefix}/results"]
    command = ["score", *arguments, "--collection", "c", "--date", NIGHT]
    done = fcdd(*command, check=False)
    assert done.returncode == 3
    assert "5 of the images under" in done.stderr
    assert "not_an_image 5" in done.stderr
    assert not any(page for page in storage.pages(f"{prefix}/results/runs"))
    accepted = fcdd(*command, "--max-quarantine-share", "0.9")
    assert re.search(r"quarantined +5  \(not_an_image 5\)", accepted.stdout)
