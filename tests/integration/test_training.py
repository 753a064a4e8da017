"""A training and what can happen to it, without Ray: processes of gloo, checkpoints, resuming."""

import dataclasses
import json
import logging
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from fcdd import checkpoint, detector, networks
from fcdd.checkpoint import Progress
from fcdd.detector import Detector
from fcdd.errors import ConfigError
from fcdd.images import View
from fcdd.inference import Runner
from fcdd.io import storage
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.paper.datasets import LabelledImage
from fcdd.scores import summarise
from fcdd.splits import is_held_out
from fcdd.training import TrainOptions
from fcdd.whitening import WhitenedHead
from fcdd.windows import Windows
from jobs import train
from jobs.sources import fetching, listing
from jobs.sources.fetching import ImageSet
from jobs.training import checks, chosen, data_set, finish, prepare, train_loop
from jobs.training import settings as train_settings
from jobs.training.checkpoints import Checkpoints
from jobs.training.prepare import Inputs
from jobs.training.train_loop import Alone, LoopConfig

OPTIONS = TrainOptions(
    epochs=3, batch_size=8, learning_rate=1e-3, weight_decay=1e-4, loss="pixel", gaussian_std=2.0, seed=1
)
SIZE = (32, 32)
WHITENED = "whitened:efficientnet_lite0:stage3+stage4+stage5:1:32+32+32"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, nominal_cells: list[LabelledImage]) -> str:
    folder = tmp_path_factory.mktemp("cells")
    for cell in nominal_cells[:40]:
        (folder / cell.path.name).write_bytes(cell.path.read_bytes())
    return f"file://{folder}"


def make(location: str, checkpoints: str, name: str = "cnn32_s", **changes: Any) -> LoopConfig:
    torch.manual_seed(0)
    size = changes.pop("input_size", SIZE)
    network = networks.build(name, in_channels=3, image_size=size)
    if networks.is_pretrained(name):
        networks.load_pretrained(network, name)
    loop = LoopConfig(
        images=listing.list_images(location)[:32],
        held_out=frozenset(),
        network=name,
        view=View(size, 3),
        initial_weights=detector.serialize(network),
        normalization="mean_std",
        moving_statistics=False,
        frozen=False,
        anomalies="mixed",
        outliers=[],
        outlier_share=0.5,
        labelled=[],
        masks=[],
        labelled_share=0.5,
        augmentation="all",
        options=OPTIONS,
        stream=False,
        loader_processes=0,
        compile=False,
        checkpoints=checkpoints,
        keep_checkpoints=2,
        checkpoint_steps=0,
        conditions={},
    )
    return dataclasses.replace(loop, **changes)


def test_of_large_images_fewer_are_read_at_once(few: str, tmp_path: Path) -> None:
    loop = make(few, f"file://{tmp_path}")
    assert train_loop._sample_images(loop) == train_loop.SAMPLE_IMAGES
    count = train_loop._sample_images(dataclasses.replace(loop, view=View((2048, 2048), 3)))
    assert train_loop.FEWEST_IMAGES < count < train_loop.SAMPLE_IMAGES
    assert count * 2048 * 2048 * 3 <= train_loop.SAMPLE_BYTES


def result(loop: LoopConfig) -> tuple[dict[str, torch.Tensor], Progress, bytes]:
    found = Checkpoints(loop.checkpoints, 2).latest()
    assert found is not None
    weights = checkpoint.network_weights(found[0])
    network = detector.deserialize(weights, loop.network, 3, loop.input_size)
    return network.state_dict(), checkpoint.read_progress(found[0]), weights


class Gloo:
    """A process of `torch.distributed` on the CPU."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.device = rank, size, torch.device("cpu")

    def wrap(self, network: FCDDNetwork) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)


def _worker(rank: int, size: int, meeting: str, loop: LoopConfig) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    train_loop.train(loop, Gloo(rank, size))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo that are still ending abort an interpreter that tidies up, once in many runs


def together(size: int, loop: LoopConfig, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_worker, args=(rank, size, str(folder / f"meeting{size}"), loop)) for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == size * [0]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("cnn32_s", SIZE, marks=pytest.mark.slow),
        ("whitened:efficientnet_lite0:stage3+stage2:2", (64, 64)),
    ],
)
def test_the_result_does_not_depend_on_the_number_of_workers(
    name: str, size: tuple[int, int], few: str, tmp_path: Path
) -> None:
    """Loss curves within 1e-4 relative, scores within 1e-3; 3 workers share batches of 8 unevenly.

    With batch-norms by SGD: Adam makes full steps of the rounding in gradients that are zero (biases before a
    batch-norm), which moves scores by up to 2e-3.
    """
    options = dataclasses.replace(OPTIONS, optimizer="sgd") if name == "cnn32_s" else OPTIONS
    light = "all" if name == "cnn32_s" else "none"  # unchanged images, which each worker remembers its share of
    curves, scores = [], []
    pixels = fetching.load_set(listing.list_images(few)[32:], View(size, 3)).pixels
    for count in (1, 2, 3, 4) if name == "cnn32_s" else (1, 2):
        changes = {"input_size": size, "options": options, "augmentation": light}
        loop = make(few, f"file://{tmp_path}/{count}", name, **changes)
        if count == 1:
            train_loop.train(loop, Alone())
        else:
            together(count, loop, tmp_path)
        _, progress, weights = result(loop)
        curves.append([epoch["loss"] for epoch in progress.history])
        runner = Runner(detector.deserialize(weights, name, 3, size), progress.normalization, size)
        scores.append(summarise(runner(pixels)).mean)
    for curve, score in zip(curves[1:], scores[1:], strict=True):
        np.testing.assert_allclose(curve, curves[0], rtol=1e-4)
        np.testing.assert_allclose(score, scores[0], atol=1e-3 * float(scores[0].max()))


def interrupt(loop: LoopConfig, epoch: int) -> None:
    """Ctrl-C as soon as the end of that epoch is announced."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(f"epoch {epoch}/"):
                raise KeyboardInterrupt

    listener = Listener()
    train_loop.log.addHandler(listener)
    train_loop.log.setLevel(logging.INFO)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_loop.train(loop, Alone())
    finally:
        train_loop.log.removeHandler(listener)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("network", "changes", "optimizer"),
    [
        ("cnn32_s", {}, "adamw"),
        ("cnn32_s", {}, "sgd"),
        (WHITENED, {"input_size": (64, 64), "augmentation": "none"}, "adamw"),  # which remembers features
    ],
)
def test_a_resumed_training_is_bit_equal_to_one_that_was_not_interrupted(
    network: str, changes: dict[str, Any], optimizer: str, few: str, tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, optimizer=optimizer)  # type: ignore[arg-type]
    whole, parts = (
        make(few, f"file://{tmp_path}/{name}", network, options=options, **changes) for name in ("whole", "parts")
    )
    train_loop.train(whole, Alone())
    interrupt(parts, 2)
    train_loop.train(parts, Alone())
    (expected, progress, _), (actual, resumed, _) = result(whole), result(parts)
    assert equal(expected, actual)
    assert [e["loss"] for e in resumed.history] == [e["loss"] for e in progress.history]


def test_what_is_remembered_is_of_the_image_with_that_number(few: str, tmp_path: Path) -> None:
    """Also behind images that cannot be read or are held out."""
    infos = listing.list_images(few)[:32]
    broken = [infos[0], infos[1]._replace(uri=f"{few}/gone.png"), *infos[2:]]
    held_out = frozenset([data_set.pixel_digest(fetching.load_set(infos[3:4], View((64, 64), 3)).pixels[0])])
    changes = {"images": broken, "held_out": held_out, "input_size": (64, 64), "augmentation": "none"}
    loop = make(few, f"file://{tmp_path}", WHITENED, **changes)
    known = train_loop.train(loop, Alone())
    assert known is not None
    assert sorted(known.components) == sorted(set(range(32)) - {1, 3})
    network = detector.deserialize(result(loop)[2], WHITENED, 3, (64, 64)).eval()
    head, scaling = network.head, networks.input_normalization(WHITENED)
    assert isinstance(head, WhitenedHead)
    assert scaling is not None
    for number in (0, 2, 4, 31):
        pixels = torch.from_numpy(fetching.load_set([infos[number]], View((64, 64), 3)).pixels)
        with torch.inference_mode():
            expected = head.project(network.compute_features(scaling(pixels)))[0]
        torch.testing.assert_close(known.components[number], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes", [{"augmentation": "all"}, {"stream": True}, {"compile": True}, {"input_size": (544, 544)}]
)
def test_nothing_is_remembered_where_images_change_or_are_not_kept(changes: dict[str, Any], few: str) -> None:
    loop = make(few, "file:///unused", WHITENED, **{"input_size": (64, 64), "augmentation": "none", **changes})
    field = networks.geometry(WHITENED, loop.input_size)
    assert not train_loop._remembers(loop, Windows.for_images(loop.input_size, field, margin=True))


def test_components_are_those_of_the_calibration_images_that_could_be_read() -> None:
    known = {number: torch.full((1, 1, 1), float(number)) for number in (0, 2, 3)}
    images = ImageSet(np.zeros((3, 1, 1, 3), np.uint8), np.array([0, 2, 3]), np.zeros((3, 1), np.float32), ["PNG"] * 3)
    inputs = Inputs([], [], [], True, [], [], [])
    found = finish._of_calibration(known, inputs, images)
    assert {position: int(each) for position, each in found.items()} == {0: 0, 1: 2, 2: 3}
    assert finish._of_calibration(known, inputs._replace(is_leave_one_out=False), images) == {}


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    few: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, parts = (
        make(few, f"file://{tmp_path}/{name}", checkpoint_steps=1, keep_checkpoints=3) for name in ("whole", "parts")
    )
    train_loop.train(whole, Alone())
    interrupt(parts, 2)
    last = Checkpoints(parts.checkpoints, 3).list()[-1]
    assert (last.epoch, last.step) == (2, 0)
    storage.write(last.uri, storage.read(last.uri)[:-1000])
    with caplog.at_level(logging.INFO):
        train_loop.train(parts, Alone())
    assert f"the checkpoint {last.uri} is damaged" in caplog.text
    assert "falling back to the previous one" in caplog.text
    assert "resuming after epoch 1, step 3" in caplog.text  # of four steps an epoch
    assert equal(result(whole)[0], result(parts)[0])


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(f"file://{tmp_path}", keep=2)
    for epoch, loss in enumerate((3.0, 1.0, 2.0, float("nan"), 2.5)):
        store.save(b"x" * epoch, _progress(epoch), loss)
    assert [each.epoch for each in store.list()] == [1, 3, 4]
    assert store.latest() is None  # none of them is a checkpoint's bytes


def _progress(epoch: int) -> Progress:
    scaling = Normalization(kind="mean_std", shift=(0.0,), scale=(1.0,))
    return Progress(epoch=epoch, step=0, conditions={}, normalization=scaling, num_images=1, history=[])


def _fill(location: str, answers: "multiprocessing.Queue[str]") -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    network = networks.build("cnn32_s", in_channels=3, image_size=SIZE)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    store = Checkpoints(location, keep=1)
    store.save(checkpoint.pack(network, optimizer, schedule, _progress(1)), _progress(1), 1.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a disk that takes no more
    try:
        store.save(checkpoint.pack(network, optimizer, schedule, _progress(2)), _progress(2), 1.0)
    except ConfigError as error:
        answers.put(str(error))


@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_fill, args=(f"file://{tmp_path}", answers))
    process.start()
    message = answers.get(timeout=60)
    process.join()
    assert message.startswith(f"cannot write file://{tmp_path}/epoch-00002-")
    found = Checkpoints(f"file://{tmp_path}", 1).latest()
    assert found is not None
    assert checkpoint.read_progress(found[0]).epoch == 1


def test_a_streamed_training_is_equal_and_names_an_image_that_vanished(
    few: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept, streamed = make(few, f"file://{tmp_path}/kept"), make(few, f"file://{tmp_path}/streamed", stream=True)
    train_loop.train(kept, Alone())
    train_loop.train(dataclasses.replace(streamed, loader_processes=1), Alone())
    assert equal(result(kept)[0], result(streamed)[0])
    missing = streamed.images[3]._replace(uri=f"{few}/gone.png")
    broken = [*streamed.images[:3], missing, *streamed.images[4:]]
    again = make(few, f"file://{tmp_path}/again", stream=True, images=broken)
    train_loop.train(again, Alone())
    assert caplog.text.count("left out vanished: deleted since it was listed") == 1
    assert f"{few}/gone.png" in caplog.text
    assert result(again)[1].num_images == 31


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_the_images_trained_on_are_counted_over_all_workers_and_none_is_held_out(
    stream: bool, few: str, tmp_path: Path
) -> None:
    """In one epoch each worker reads half of the images: what the other left out counts too."""
    infos = listing.list_images(few)[:32]
    broken = [info._replace(uri=f"{few}/gone{n}.png") if n in (3, 17, 20) else info for n, info in enumerate(infos)]
    pixels = fetching.load_set(infos[5:9], View(SIZE, 3)).pixels
    held_out = frozenset(data_set.pixel_digest(picture) for picture in pixels)
    changes = {"images": broken, "held_out": held_out, "options": dataclasses.replace(OPTIONS, epochs=1)}
    loop = make(few, f"file://{tmp_path}/c", stream=stream, **changes)
    together(2, loop, tmp_path)
    assert result(loop)[1].num_images == 32 - 3 - 4


def test_too_many_unreadable_images_stop_a_streamed_training(few: str, tmp_path: Path) -> None:
    infos = listing.list_images(few)[:32]
    broken = [info._replace(uri=f"{few}/gone{n}.png") if n % 4 == 0 else info for n, info in enumerate(infos)]
    loop = make(few, f"file://{tmp_path}", stream=True, images=broken)
    with pytest.raises(ConfigError, match="of 32 images cannot be read"):
        train_loop.train(loop, Alone())


def test_a_loss_that_is_not_finite_names_the_images_of_its_batch(few: str, tmp_path: Path) -> None:
    loop = make(few, f"file://{tmp_path}", options=dataclasses.replace(OPTIONS, learning_rate=1e30, optimizer="sgd"))
    with pytest.raises(
        train_loop.TrainingDiverged, match=r"lower the learning rate; the batch has file://.*cell\d+\.png"
    ):
        train_loop.train(loop, Alone())


SMALL = ("--network", "cnn32_s", "--image-size", "32", "--epochs", "2", "--batch-size", "8", "--alpha", "0.2")


def run(few: str, bundle: Path, *more: str) -> int:
    return train.main(["--images", few, "--bundle", str(bundle), *SMALL, "--workers", "0", *more])


def test_a_training_without_ray_leaves_everything_the_reader_of_a_bundle_needs(
    few: str, tmp_path: Path, nominal_cells: list[LabelledImage], anomalous_cells: list[LabelledImage]
) -> None:
    labels = [
        "image_uri,label",
        *(f"{c.path},0" for c in nominal_cells[50:60]),
        *(f"{c.path},1" for c in anomalous_cells[:10]),
    ]
    (tmp_path / "labels.csv").write_text("\n".join(labels))
    assert run(few, tmp_path / "b", "--labels", str(tmp_path / "labels.csv")) == 0
    spec = Detector.load(str(tmp_path / "b")).spec
    assert {"loss", "auroc", "average_precision", "precision", "recall", "f1"} <= set(spec.training.metrics)
    assert spec.view.resizer == spec.training.options["resizer"] == "cykooz"
    assert "cykooz-resizer" in spec.training.versions
    # A defect of a few cells drowns in the mean of a map; alarms are images that have a region.
    assert spec.score == "maximum"
    assert spec.calibration.threshold == spec.calibration.map_threshold
    assert "- auroc: " in (tmp_path / "b/README.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"loss", "loss_nominal", "loss_anomalous", "learning_rate", "images_per_second"} <= set(lines[0])
    [events] = (tmp_path / "b/events").iterdir()
    assert b"train/loss_nominal" in events.read_bytes()
    page = (tmp_path / "b/training.html").read_text()
    assert "What the training learned" in page
    assert page.count("data:image/webp") > 40
    assert not list((tmp_path / "b/_checkpoints").iterdir())


def test_five_labelled_anomalies_with_masks_join_the_training(few: str, tmp_path: Path, capsys: Any) -> None:
    generator = np.random.default_rng(0)
    for folder in ("bad", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(5):
        Image.fromarray(generator.integers(0, 256, (60, 60, 3)).astype(np.uint8)).save(tmp_path / f"bad/{index}.png")
        mask = np.zeros((60, 60), np.uint8)
        mask[10:40, 20:50] = 255
        Image.fromarray(mask).save(tmp_path / f"masks/{index}_mask.png")
    more = ("--anomalous", str(tmp_path / "bad"), "--masks", str(tmp_path / "masks"), "--anomalous-share", "1")
    assert run(few, tmp_path / "with", *more, "--epochs", "20") == 0
    noisy = np.stack([np.asarray(Image.open(tmp_path / f"bad/{i}.png").resize((32, 32))) for i in range(5)])
    trained = Detector.load(str(tmp_path / "with"))
    flat = np.full((5, 32, 32, 3), 120, np.uint8)
    assert trained.score(noisy).mean.min() > 2 * trained.score(flat).mean.max()
    listed = (
        [f"{tmp_path}/bad/{i}.png" for i in range(5)],
        [f"{tmp_path}/masks/{i}_mask.png" for i in range(4)] + [None],
    )
    pq.write_table(pa.table({"image_uri": listed[0], "mask_uri": listed[1]}), tmp_path / "anomalies.parquet")
    as_list = ("--anomalous", str(tmp_path / "anomalies.parquet"), "--anomalous-share", "1")
    assert run(few, tmp_path / "listed", *as_list, "--epochs", "20") == 0
    scored = Detector.load(str(tmp_path / "listed"))
    assert scored.score(noisy).mean.min() > 2 * scored.score(flat).mean.max()
    (tmp_path / "bad/4.png").rename(tmp_path / "elsewhere.png")
    assert run(few, tmp_path / "gone", *as_list) == 2
    assert "bad/4.png does not exist; correct" in capsys.readouterr().err
    (tmp_path / "elsewhere.png").rename(tmp_path / "bad/4.png")
    (tmp_path / "masks/3_mask.png").unlink()
    assert run(few, tmp_path / "without", *more) == 2
    assert "bad/3.png has no mask in" in capsys.readouterr().err
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(tmp_path / "masks/3_mask.png")
    assert run(few, tmp_path / "without", *more) == 2
    assert "3_mask.png is 0 everywhere, and its image is anomalous" in capsys.readouterr().err
    assert run(few, tmp_path / "without", *as_list) == 2
    assert "3_mask.png is 0 everywhere, and its image is anomalous" in capsys.readouterr().err
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "masks/3_mask.png")
    assert run(few, tmp_path / "without", *more) == 2
    assert "3_mask.png has 9x9 pixels, its image 60x60" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_picture_is_never_on_both_sides_of_the_split(
    few: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, images = Path(few.removeprefix("file://")), tmp_path / "images"
    images.mkdir()
    for path in sorted(folder.iterdir()):
        (images / path.name).write_bytes(path.read_bytes())
        (images / f"copy-of-{path.name}").write_bytes(path.read_bytes())
    straddling = sum(is_held_out(p.name, 0.2) != is_held_out(f"copy-of-{p.name}", 0.2) for p in folder.iterdir())
    assert straddling > 0
    for stream in ((), ("--memory-gb", "1e-9")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert run(str(images), tmp_path / "b", "--overwrite", *stream) == 0
        assert caplog.text.count("not trained on: changed: the same picture is held out") == straddling
    # What is held out does not change when images are added.
    expected = sum(is_held_out(path.name, 0.2) for path in images.iterdir())
    assert Detector.load(str(tmp_path / "b")).spec.training.num_calibration == expected


def test_known_anomalies_among_the_nominal_images_are_not_trained_on_as_nominal(few: str, tmp_path: Path) -> None:
    paths = sorted(Path(few.removeprefix("file://")).iterdir())
    (tmp_path / "known.csv").write_text("\n".join(["image_uri", *map(str, paths[:6])]) + "\n")
    assert run(few, tmp_path / "all") == 0
    assert run(few, tmp_path / "fewer", "--anomalous", str(tmp_path / "known.csv")) == 0
    records = [Detector.load(str(tmp_path / name)).spec.training for name in ("all", "fewer")]
    counts = [record.num_training + record.num_calibration for record in records]
    assert counts == [40, 34]


def test_masks_and_outliers_among_the_nominal_images_are_not_trained_on_as_nominal(few: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for folder in ("good", "flaws", "marks", "things"):
        (images / folder).mkdir(parents=True)
    paths = sorted(Path(few.removeprefix("file://")).iterdir())
    for path in paths:
        (images / "good" / path.name).write_bytes(path.read_bytes())
    generator = np.random.default_rng(0)
    for folder, count in (("flaws", 3), ("things", 4)):
        for index in range(count):
            noise = generator.integers(0, 256, (60, 60, 3)).astype(np.uint8)
            Image.fromarray(noise).save(images / folder / f"{index}.png")
    for index in range(3):
        Image.fromarray(np.full((60, 60), 255, np.uint8)).save(images / "marks" / f"{index}.png")
    more = ("--anomalous", f"{images}/flaws", "--masks", f"{images}/marks", "--outliers", f"{images}/things")
    assert run(str(images), tmp_path / "b", *more) == 0
    record = Detector.load(str(tmp_path / "b")).spec.training
    assert record.num_training + record.num_calibration == len(paths)


def test_checkpoints_of_another_training_are_not_continued(few: str, tmp_path: Path, capsys: Any) -> None:
    settings = train_settings.TrainSettings.parse(
        ["--images", few, "--bundle", str(tmp_path / "b"), *SMALL, "--workers", "0"]
    )
    loop = make(few, f"file://{tmp_path}/b/_checkpoints", conditions={"data": "x", **train_settings.recorded(settings)})
    interrupt(loop, 1)
    assert run(few, tmp_path / "b") == 2
    assert "checkpoints of an unfinished training" in capsys.readouterr().err
    assert run(few, tmp_path / "b", "--resume", "--seed", "5") == 2
    assert "are of another training: the images differ, seed was 0, now 5; give" in capsys.readouterr().err
    assert run(few, tmp_path / "b", "--overwrite") == 0


@pytest.mark.parametrize("is_older", [False, True])
def test_a_dry_run_of_a_training_that_goes_on_finds_its_checkpoints(
    is_older: bool, few: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the name of its network is open; an older one, which did not say so, resized by Pillow."""
    given = ["--images", few, "--bundle", f"{tmp_path}/b", "--image-size", "64", "--alpha", "0.1", "--workers", "0"]
    given += ["--resizer", "pillow"] if is_older else []
    settings = train_settings.TrainSettings.parse(given)
    listed = prepare.list_nominal(settings)
    now = checks.conditions(chosen.with_image_size(settings, listed), listing.digest(listed))
    if is_older:
        del now["resizer"]
    network = networks.build("cnn32_s", in_channels=3, image_size=SIZE)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    progress = _progress(1).model_copy(update={"conditions": now})
    Checkpoints(f"file://{tmp_path}/b/_checkpoints", 1).save(
        checkpoint.pack(network, optimizer, schedule, progress), progress, 1.0
    )
    assert train.main([*given, "--resume", "--dry-run"]) == 0, capsys.readouterr().err
    assert train.main([*given, "--resume", "--dry-run", "--seed", "5"]) == 2


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of which none can be decoded: whoever decodes before looking at the options says so."""
    folder = tmp_path_factory.mktemp("unreadable")
    for index in range(40):
        (folder / f"{index}.png").write_bytes(b"no image")
    return f"file://{folder}"


def _leave_a_bundle(folder: Path) -> None:
    storage.write(f"{folder}/b/bundle.json", b"{}")


def _leave_checkpoints(folder: Path) -> None:
    """Of another training."""
    network = networks.build("cnn32_s", in_channels=3, image_size=SIZE)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    progress = _progress(1)
    Checkpoints(f"file://{folder}/b/_checkpoints", 1).save(
        checkpoint.pack(network, optimizer, schedule, progress), progress, 1.0
    )


def _leave_nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("leave", "options", "message"),
    [
        (_leave_a_bundle, (), "there is a bundle at"),
        (_leave_checkpoints, (), "checkpoints of an unfinished training"),
        (_leave_checkpoints, ("--resume",), "are of another training: alpha, "),
        (_leave_nothing, ("--masks", "m"), "--masks are those of the images of --anomalous"),
        (_leave_nothing, ("--masks", "m", "--anomalous", "known.CSV"), "known.CSV names its masks as mask_uri"),
        (_leave_nothing, ("--outliers", "{folder}/nowhere"), "no images under"),
        (_leave_nothing, ("--bundle", "{images}/"), "--bundle is the location of the images"),
        (_leave_nothing, ("--min-workers", "1"), "expected at most 0 workers as --min-workers"),
        (_leave_nothing, ("--anomalous", "{folder}/known.csv"), "gone.png does not exist; correct"),
        (_leave_nothing, ("--anomalous", "{folder}/changed.csv"), "changed.csv changed since they were labelled"),
        (_leave_nothing, (), "none of 16 images can be read"),
    ],
)
def test_what_stands_in_the_way_is_refused_before_an_image_is_decoded(
    leave: Callable[[Path], None],
    options: tuple[str, ...],
    message: str,
    unreadable: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "known.csv").write_text(f"image_uri\n{tmp_path}/gone.png\n")
    (tmp_path / "changed.csv").write_text(f"image_uri,image_etag\n{unreadable}/3.png,old\n")
    leave(tmp_path)
    given = [option.format(folder=tmp_path, images=unreadable) for option in options]
    assert run(unreadable, tmp_path / "b", *given) == 2
    assert message in capsys.readouterr().err


class Stopper(logging.Handler):
    """Ctrl-C as soon as a line of the log begins so."""

    def __init__(self, beginning: str) -> None:
        super().__init__(logging.INFO)
        self.beginning = beginning

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.beginning):
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("beginning", "options", "said", "then"),
    [
        ("epoch 1/2", (), "stopped; the last checkpoint is {checkpoint}: the same command with --resume goes on", 0),
        ("epoch 1/2", ("--resume",), "stopped; the last checkpoint is {checkpoint}: the same command goes on", 0),
        ("left out ", (), "stopped before the first checkpoint: the same command starts again", 0),
        ("training on ", (), "interrupted; the same command starts again, or goes on", 0),
    ],
)
def test_ctrl_c_says_one_true_sentence(
    beginning: str,
    options: tuple[str, ...],
    said: str,
    then: int,
    few: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, root = tmp_path / "images", logging.getLogger()
    images.mkdir()
    for path in Path(few.removeprefix("file://")).iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    broken = next(f"broken{n}.png" for n in range(100) if not is_held_out(f"broken{n}.png", 0.2))
    (images / broken).write_bytes(b"no image")
    stopper = Stopper(beginning)
    level = root.level
    root.addHandler(stopper)
    root.setLevel(logging.INFO)
    try:
        assert run(str(images), tmp_path / "b", *options) == 130
    finally:
        root.removeHandler(stopper)
        root.setLevel(level)
    last = [each.uri for each in Checkpoints(f"file://{tmp_path}/b/_checkpoints", 1).list()][-1:]
    assert capsys.readouterr().err.splitlines()[-1] == said.format(checkpoint="".join(last))
    again = ("--resume",) if "with --resume" in said else options
    assert run(str(images), tmp_path / "b", *again) == then
    assert Detector.load(str(tmp_path / "b")).spec.training.num_training < len(list(images.iterdir()))


def test_a_copy_of_a_labelled_anomaly_is_neither_trained_nor_calibrated_on(
    few: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = sorted(Path(few.removeprefix("file://")).iterdir())
    (tmp_path / "images").mkdir()
    for path in paths:
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "known").mkdir()
    chosen = [path for path in paths if not is_held_out(path.name, 0.2)][:2]
    chosen += [path for path in paths if is_held_out(path.name, 0.2)][:1]
    for path in chosen:
        (tmp_path / "known" / f"defect-{path.name}").write_bytes(path.read_bytes())
    with caplog.at_level(logging.INFO):
        assert run(str(tmp_path / "images"), tmp_path / "b", "--anomalous", str(tmp_path / "known")) == 0
    record = Detector.load(str(tmp_path / "b")).spec.training
    assert record.num_training + record.num_calibration == len(paths) - 3
    assert caplog.text.count("not trained on: changed: the same picture is held out") == 2
    assert caplog.text.count("not calibrated on: changed: the same picture is held out") == 1


def test_resume_without_a_checkpoint_starts_and_ends_like_any_training(few: str, tmp_path: Path) -> None:
    assert run(few, tmp_path / "b", "--resume") == 0
    assert run(few, tmp_path / "c") == 0
    digests = [Detector.load(str(tmp_path / name)).spec.weights_sha256 for name in ("b", "c")]
    assert digests[0] == digests[1]


def test_a_preset_is_the_published_recipe_where_no_option_says_otherwise(tmp_path: Path) -> None:
    arguments = ["--images", "x", "--bundle", "y", "--preset", "cifar10", "--epochs", "7"]
    settings = train_settings.with_preset(train_settings.TrainSettings.parse(arguments))
    assert (settings.network, settings.image_size, settings.optimizer) == ("cnn32_lw3k", "32x32", "adam")
    assert (settings.epochs, settings.batch_size, settings.milestones) == (7, 200, [400, 500])
    assert settings.score == "mean"
    assert train_settings.view_of(settings).resizer == "pillow"
    chosen = train_settings.with_preset(train_settings.TrainSettings.parse([*arguments, "--score", "top1pct"]))
    assert chosen.score == "top1pct"
    assert (settings.schedule, settings.decay, settings.weight_decay) == ("milestones", 0.1, 1e-6)
    parsed = train_settings.options_of(settings)
    assert (parsed.gaussian_std, parsed.loss, parsed.milestones) == (1.2, "image", (400, 500))


def test_mlflow_that_is_not_installed_is_one_sentence(few: str, tmp_path: Path, capsys: Any) -> None:
    assert run(few, tmp_path / "b", "--mlflow", str(tmp_path / "runs")) == 2
    assert "MLflow is not installed; run `pip install mlflow-skinny`" in capsys.readouterr().err
