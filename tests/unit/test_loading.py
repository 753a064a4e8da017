"""From listed objects to pixels, as training and scoring share it."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch.distributed

from fcdd import storage
from fcdd.datasets import LabelledImage
from fcdd.errors import ConfigError
from fcdd.images import DecodedImage
from fcdd.storage import ObjectInfo
from jobs import _images, _manifest, _train_loop


@pytest.fixture
def listed(tmp_path: Path, nominal_cells: list[LabelledImage]) -> list[ObjectInfo]:
    for cell in nominal_cells[:12]:
        storage.write(f"{tmp_path}/{cell.path.name}", cell.path.read_bytes())
    return _manifest.list_images(f"file://{tmp_path}")


def test_an_image_that_changed_or_vanished_since_the_listing_has_no_pixels(listed: list[ObjectInfo]) -> None:
    """The bytes of another image must never be scored under the listed one's name."""
    storage.write(listed[1].uri, storage.read(listed[2].uri))
    Path(listed[3].uri.removeprefix("file://")).unlink()
    results = _images.fetch_all(listed[:4], (32, 32), 3)
    assert isinstance(results[0], DecodedImage)
    failures = [(r.stage, r.error.reason) for r in results if isinstance(r, _images.Failure)]
    assert failures == [("fetch", "changed"), ("fetch", "vanished")]


def test_a_set_says_which_images_it_holds_and_refuses_a_wrong_prefix(listed: list[ObjectInfo]) -> None:
    storage.write(listed[4].uri, b"broken")
    again = _manifest.list_images(listed[0].uri.rsplit("/", 1)[0])
    loaded = _images.load_set(again, (32, 32), 3)
    assert loaded.positions.tolist() == [i for i in range(12) if i != 4]
    for info in listed[:3]:
        storage.write(info.uri, b"broken")
    with pytest.raises(ConfigError, match="4 of 12 images cannot be read"):
        _images.load_set(_manifest.list_images(listed[0].uri.rsplit("/", 1)[0]), (32, 32), 3)


def _agree(rank: int, folder: str, positions: list[int], answers: "multiprocessing.Queue[list[int]]") -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    answers.put(_train_loop._common(np.array(positions)).tolist())
    torch.distributed.destroy_process_group()


def test_workers_agree_on_the_images_that_all_of_them_could_read(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    read = ([0, 1, 2, 4], [0, 2, 3, 4])
    workers = [context.Process(target=_agree, args=(r, str(tmp_path), read[r], answers)) for r in range(2)]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=60) for _ in workers] == [[0, 2, 4], [0, 2, 4]]
    for worker in workers:
        worker.join()
