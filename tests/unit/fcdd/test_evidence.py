import numpy as np
import pytest

from fcdd import evidence
from fcdd.evidence import Evidence

SHAPE = (10, 20)


def seen(maps: np.ndarray, mask: np.ndarray | None = None) -> dict[str, evidence.Concentration]:
    collected = Evidence(np.full(SHAPE, 0.5))
    for start in range(0, len(maps), 7):
        collected.add(maps[start : start + 7].astype(np.float32))
    return {each.where.split(",")[0]: each for each in collected.concentrations(mask)}


def noise(count: int = 50) -> np.ndarray:
    return np.random.default_rng(0).random((count, *SHAPE))


def test_evidence_everywhere_is_not_suspicious() -> None:
    mask = np.zeros(SHAPE, np.bool_)
    mask[2:8, 4:16] = True
    found = seen(noise(), mask)
    assert set(found) == {"at the border", "outside the object", "at one spot"}
    assert not any(each.flagged for each in found.values())
    for each in (found["at the border"], found["outside the object"]):
        assert each.share == pytest.approx(each.area, abs=0.03)


def test_a_few_images_say_nothing() -> None:
    assert not any(each.flagged for count in range(1, 20) for each in seen(noise(count)).values())


def test_a_watermark_in_the_corner_is_flagged_at_its_place() -> None:
    maps = noise()
    maps[:, 9, 0] += 50
    collected = seen(maps)
    assert collected["at the border"].flagged
    spot = collected["at one spot"]
    assert spot.flagged
    assert spot.share == 1.0


def test_evidence_beside_the_object_is_flagged_only_if_the_object_is_known() -> None:
    maps, mask = noise(), np.zeros(SHAPE, np.bool_)
    mask[:, 10:] = True
    generator = np.random.default_rng(1)
    for each in maps:
        each[generator.integers(2, 8), generator.integers(3, 9)] += 60
    assert seen(maps, mask)["outside the object"].flagged is False  # half the area: twice of it is everything
    mask[:, 5:] = True
    assert "outside the object" not in seen(maps)
    small = np.zeros(SHAPE, np.bool_)
    small[:, 9:] = True
    small[:2] = small[8:] = True
    assert seen(maps, small)["outside the object"].flagged


def test_each_image_counts_the_same_and_one_without_evidence_not_at_all() -> None:
    collected = Evidence(np.full(SHAPE, 0.5))
    one, other = np.zeros((2, *SHAPE), np.float32)
    one[0, 0], other[5, 5] = 1000, 1
    collected.add(np.stack([one, other, np.zeros(SHAPE, np.float32)]))
    assert collected.num_images == 2
    assert (collected.share()[0, 0], collected.share()[5, 5]) == (0.5, 0.5)
    assert Evidence(np.zeros(SHAPE)).concentrations(None) == []


def test_an_object_before_a_plain_background_is_found_and_one_that_fills_the_picture_is_not() -> None:
    picture = np.full((60, 80), 30.0) + np.random.default_rng(0).normal(0, 3, (60, 80))
    picture[15:45, 20:60] += 120
    found = evidence.find_object(picture)
    assert found is not None
    assert found[30, 40]
    assert not found[5, 5]
    assert found.mean() == pytest.approx(30 * 40 / 4800, abs=0.01)
    assert evidence.find_object(255 - picture) is not None
    assert evidence.find_object(np.random.default_rng(0).normal(100, 3, (60, 80))) is None
    stripes = np.tile(np.repeat([20.0, 220.0], 10), (60, 4))
    assert evidence.find_object(stripes) is None
    cells = evidence.to_cells(found, (6, 8))
    assert cells.shape == (6, 8)
    assert cells[3, 4]
    assert not cells[0].any()
