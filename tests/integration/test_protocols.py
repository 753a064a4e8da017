"""Every published experiment on a tiny stand-in in the published layout, by the real command."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fcdd.errors import ConfigError
from fcdd.paper import protocols
from fcdd.paper.protocols import PROTOCOLS
from jobs import reproduce
from tests import standins


def _fashion(root: Path) -> None:
    standins.fashion_mnist(root)
    standins.cifar100(root)


def _fashion_emnist(root: Path) -> None:
    standins.fashion_mnist(root)
    standins.emnist(root)


def _cifar(root: Path) -> None:
    standins.cifar10(root)
    standins.cifar100(root)


# protocol -> stand-in, class, batch size that divides its few images
CASES: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "fmnist": (_fashion, "Boot", 12),
    "fmnist-emnist": (_fashion_emnist, "Boot", 12),
    "cifar10": (_cifar, "truck", 10),
    "imagenet30": (standins.imagenet30, "acorn", 6),
    "mvtec": (standins.mvtec, "bottle", 20),
    "mvtec-semi": (standins.mvtec, "bottle", 20),
    "voc": (standins.voc, "horse", 4),
    "custom": (lambda root: standins.custom(root, maps=False), "screw", 6),
    "custom-maps": (lambda root: standins.custom(root, maps=True), "screw", 6),
}


def _run(protocol: str, data: Path, into: Path, *more: str) -> int:
    _, name, batch = CASES[protocol]
    return reproduce.main(
        [
            *(protocol, "--data", str(data), "--output", str(into), "--classes", name),
            *("--epochs", "1", "--batch-size", str(batch), "--no-pretrained", *more),
        ]
    )


def test_every_protocol_has_a_case() -> None:
    assert set(CASES) == set(PROTOCOLS)


@pytest.mark.parametrize(
    "protocol", [pytest.param(each, marks=() if each == "custom" else pytest.mark.slow) for each in CASES]
)
def test_a_protocol_trains_tests_and_reports(protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, name, batch = CASES[protocol]
    make(tmp_path / "data")
    assert _run(protocol, tmp_path / "data", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert f"| {name} |" in printed
    folder = tmp_path / "out" / protocol
    document = json.loads((folder / "report.json").read_text())
    assert document["conditions"]["network"] == PROTOCOLS[protocol].network
    assert document["conditions"]["batch_size"] == batch
    [row] = document["classes"]
    assert 0 <= row["image"][0] <= 100
    assert ("pixel" in row) == (protocol.startswith("mvtec") or protocol == "custom-maps")
    [result] = [json.loads(path.read_text()) for path in folder.glob(f"{name}-seed0.json")]
    assert len(result["losses"]) == 1
    assert np.isfinite(result["losses"][0])
    if protocol in ("mvtec", "fmnist", "cifar10"):
        assert "published: paper" in printed


@pytest.mark.slow
def test_a_protocol_learns_what_its_class_looks_like(tmp_path: Path) -> None:
    """The classes of the stand-in are grey levels, and so are the outliers it trains with."""
    _cifar(tmp_path / "data")
    assert _run("cifar10", tmp_path / "data", tmp_path / "out", "--epochs", "40") == 0
    [result] = [json.loads(path.read_text()) for path in (tmp_path / "out/cifar10").glob("truck-seed0.json")]
    assert result["image"]["auroc"]["value"] > 0.9
    assert result["losses"][-1] < result["losses"][0] / 2


@pytest.mark.slow
def test_published_batches_are_larger_than_small_classes_and_still_train(tmp_path: Path) -> None:
    standins.voc(tmp_path)
    arguments = ["voc", "--data", str(tmp_path), "--output", str(tmp_path / "out"), "--epochs", "1"]
    assert reproduce.main(arguments) == 0
    assert len(json.loads((tmp_path / "out/voc/horse-seed0.json").read_text())["losses"]) == 1


def test_anomalies_can_be_made_once_and_outliers_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fashion(tmp_path / "data")
    assert _run("fmnist", tmp_path / "data", tmp_path / "out", "--offline", "--oe-limit", "3") == 0
    assert "offline True" in capsys.readouterr().out
    standins.mvtec(tmp_path / "data")
    experiment = PROTOCOLS["mvtec"].load(tmp_path / "data", "bottle", 0)
    made = protocols.offline(PROTOCOLS["mvtec"], experiment, 0)
    assert (len(made.training.images), made.probability) == (8, 0)
    assert made.training.masks is not None
    assert [mask.mean() for mask in made.training.masks] == 4 * [0] + 4 * [1]
    assert _run("mvtec", tmp_path / "data", tmp_path / "out", "--oe-limit", "3") == 2
    assert "no outlier exposure to limit" in capsys.readouterr().err


def test_images_like_pascals_classes_are_no_outliers(tmp_path: Path) -> None:
    """Numbered folders are named by their order: n...281 is the tabby, n...282 the tiger cat, n...339 a sorrel."""
    for index in range(1000):
        (tmp_path / f"imagenet/n{index:08}").mkdir(parents=True)
    left_out = protocols._voc_like(tmp_path / "imagenet")
    assert {"n00000282", "n00000284", "n00000285"} <= set(left_out)  # cats by name
    assert "n00000001" not in left_out  # goldfish
    (tmp_path / "imagenet/n00000001").rmdir()
    with pytest.raises(ConfigError, match="expected the 1000 class folders of ImageNet 1k"):
        protocols._voc_like(tmp_path / "imagenet")


def test_known_anomalies_of_a_folder_are_trained_on(tmp_path: Path) -> None:
    standins.custom(tmp_path, maps=True)
    standins.save(tmp_path / "train/screw/anomalous/0.png", standins.noisy(30, 20, 3, 30))
    experiment = PROTOCOLS["custom"].load(tmp_path, "screw", 0)
    image, mask = experiment.replacements(experiment.training.images[0], np.random.default_rng(0))
    assert image.shape == (30, 20, 3)
    assert mask.all()
    assert experiment.test.masks is None  # the chain without maps cuts the image: masks would not fit


@pytest.mark.slow
def test_a_report_covers_what_was_done_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fashion(tmp_path / "data")
    assert _run("fmnist", tmp_path / "data", tmp_path / "out") == 0
    arguments = ["fmnist", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    options = ["--classes", "Bag", "--classes", "Bag", "--epochs", "1", "--batch-size", "12", "--no-pretrained"]
    assert reproduce.main([*arguments, *options]) == 0
    document = json.loads((tmp_path / "out/fmnist/report.json").read_text())
    assert [row["class"] for row in document["classes"]] == ["Bag", "Boot"]
    (tmp_path / "out/fmnist/Bag-seed0.json").write_text("{")
    assert reproduce.main([*arguments, *options]) == 2
    assert "Bag-seed0.json cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_another_data_set_under_the_same_name_is_not_taken_for_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in ("one", "two"):
        standins.custom(tmp_path / data, maps=False)
    assert _run("custom", tmp_path / "one", tmp_path / "out") == 0
    assert _run("custom", tmp_path / "two", tmp_path / "out") == 2
    assert "made with other options or data" in capsys.readouterr().err


def test_the_same_command_goes_on_where_it_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fashion(tmp_path / "data")
    more = ("--repetitions", "2")
    assert _run("fmnist", tmp_path / "data", tmp_path / "out", *more) == 0
    first, second = ((tmp_path / f"out/fmnist/Boot-seed{seed}.json") for seed in (0, 1))
    kept, redone = first.read_text(), json.loads(second.read_text())
    second.unlink()
    with caplog.at_level(logging.INFO):
        assert _run("fmnist", tmp_path / "data", tmp_path / "out", *more) == 0
    assert "Boot, seed 0: done before" in caplog.text
    assert "Boot, seed 1: training on 12 images, testing on 30" in caplog.text
    assert first.read_text() == kept
    again = json.loads(second.read_text())
    assert (again["losses"], again["image"]) == (redone["losses"], redone["image"])  # seeded


def test_results_of_other_options_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fashion(tmp_path / "data")
    assert _run("fmnist", tmp_path / "data", tmp_path / "out") == 0
    assert _run("fmnist", tmp_path / "data", tmp_path / "out", "--epochs", "2") == 2
    assert "was made with other options or data; give another folder by --output" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", CASES)
def test_a_missing_data_set_is_one_sentence_that_says_where_to_get_it(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(protocol, tmp_path, tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "get it from http" in line or "from http" in line or "custom" in protocol


def test_trained_anomalies_leave_the_test_set(tmp_path: Path) -> None:
    standins.mvtec(tmp_path)
    experiment = PROTOCOLS["mvtec-semi"].load(tmp_path, "bottle", 0)
    everything = PROTOCOLS["mvtec"].load(tmp_path, "bottle", 0)
    left_out = set(everything.test.names) - set(experiment.test.names)
    assert {name.partition("/")[0] for name in left_out} == {"broken_large", "contamination"}
    assert len(left_out) == 2
    drawn = [experiment.replacements(everything.training.images[0], np.random.default_rng(i)) for i in range(30)]
    tested = {image.tobytes() for image in experiment.test.images}
    assert not tested & {image.tobytes() for image, _ in drawn}
    assert {int(mask.sum()) for _, mask in drawn} <= set(range(7000, 16000))  # masks at 240 x 240


def test_a_trained_anomaly_whose_mask_vanishes_when_it_is_made_smaller_is_named(tmp_path: Path) -> None:
    standins.mvtec(tmp_path)
    mask = np.zeros((500, 500), np.uint8)
    mask[1, 1] = 255
    for index in range(3):
        standins.save(tmp_path / f"bottle/test/contamination/{index:03}.png", standins.noisy(500, 500, 3, 100))
        standins.save(tmp_path / f"bottle/ground_truth/contamination/{index:03}_mask.png", mask)
    with pytest.raises(ConfigError, match=r"nothing is left of the mask of .*contamination/00\d.png at 240 pixels"):
        PROTOCOLS["mvtec-semi"].load(tmp_path, "bottle", 0)


def test_horses_are_the_anomaly_and_outliers_the_nominal_class(tmp_path: Path) -> None:
    standins.voc(tmp_path)
    experiment = PROTOCOLS["voc"].load(tmp_path, "horse", 0)
    assert experiment.training.labels is not None
    assert experiment.training.labels.tolist() == 4 * [1]
    assert experiment.test.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    drawn = {
        experiment.replacements(experiment.training.images[0], np.random.default_rng(i))[0].shape for i in range(9)
    }
    assert drawn == {(224, 224, 3)}


def test_published_defaults_are_the_ones_of_the_official_code() -> None:
    """METHOD section 5, by hand."""
    expected = {
        "fmnist": ("cnn28_w", "sgd", 1e-2, "exponential", 0.98, 1e-6, 128, 400, 1.2, "image"),
        "cifar10": ("cnn32_lw3k", "adam", 1e-3, "milestones", 0.1, 1e-6, 200, 600, 1.2, "image"),
        "imagenet30": ("vgg_nopt", "adam", 1e-3, "milestones", 0.1, 1e-6, 200, 600, 8.0, "image"),
        "mvtec": ("vgg_f", "sgd", 1e-3, "exponential", 0.985, 1e-4, 128, 200, 12.0, "pixel"),
        "voc": ("vgg_nopt", "adam", 1e-3, "milestones", 0.1, 1e-6, 200, 600, 8.0, "image"),
        "custom": ("vgg_f", "sgd", 1e-3, "exponential", 0.985, 1e-6, 128, 200, 10.0, "image"),
    }
    for name, values in expected.items():
        protocol, o = PROTOCOLS[name], PROTOCOLS[name].options
        found = (protocol.network, o.optimizer, o.learning_rate, o.schedule, o.decay, o.weight_decay, o.batch_size)
        assert (*found, o.epochs, o.gaussian_std, o.loss) == values
    assert PROTOCOLS["mvtec"].options.repeats == 10
    assert PROTOCOLS["cifar10"].options.milestones == (400, 500)
    assert protocols.published("mvtec")["paper"]["mean"] == 92
    assert np.mean(protocols.published("mvtec")["re-run image"]["values"]) == pytest.approx(85.1, abs=0.1)
    for table in (t for p in PROTOCOLS for s, t in protocols.published(p).items() if s != "metric" and t["values"]):
        assert np.mean(table["values"]) == pytest.approx(table["mean"], abs=0.6)
