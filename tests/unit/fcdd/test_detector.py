import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from fcdd import detector
from fcdd.detector import Detector
from fcdd.errors import BundleError
from fcdd.images import View
from fcdd.paper.datasets import LabelledImage
from fcdd.scores import summarise
from tests.detectors import make

PIXELS = np.random.default_rng(1).integers(0, 256, (37, 32, 48, 3)).astype(np.uint8)


def test_a_saved_bundle_loads_with_the_same_digest_and_scores(tmp_path: Path) -> None:
    original = make()
    original.save(str(tmp_path))
    loaded = Detector.load(str(tmp_path))
    assert loaded.spec == original.spec
    assert loaded.spec.digest == original.spec.digest
    np.testing.assert_array_equal(loaded.score(PIXELS).mean, original.score(PIXELS).mean)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "bundle.json", "model.safetensors"]
    assert original.spec.digest[:12] in (tmp_path / "README.md").read_text()


def test_scores_do_not_depend_on_the_batch() -> None:
    together, trained = make().score(PIXELS), make()
    alone = np.concatenate([trained.score(PIXELS[i : i + 1]).mean for i in range(len(PIXELS))])
    np.testing.assert_allclose(together.mean, alone, rtol=1e-5)


def test_folding_batch_norms_does_not_change_the_map() -> None:
    trained = make()
    plain = detector.deserialize(trained.weights, "cnn32_s", 3, (32, 48)).eval()
    with torch.no_grad():
        output = plain(trained.spec.normalization(torch.from_numpy(PIXELS)))
    expected = (torch.sqrt(output.square() + 1) - 1)[:, 0].numpy()
    np.testing.assert_allclose(trained.score(PIXELS).maps, expected, rtol=1e-4, atol=1e-6)


def test_the_three_scores_come_from_the_same_map() -> None:
    scored = make().score(PIXELS)
    cells = scored.maps.reshape(len(PIXELS), -1)
    np.testing.assert_allclose(scored.mean, cells.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(scored.maximum, cells.max(1))
    wide = np.arange(300, dtype=np.float32).reshape(1, 10, 30)
    assert summarise(wide).top1pct.tolist() == [(299 + 298 + 297) / 3]


def test_encoded_images_are_scored_like_their_pixels(nominal_cells: list[LabelledImage]) -> None:
    data = nominal_cells[0].path.read_bytes()
    trained = make()
    from fcdd import images

    pixels = images.decode(data, View((32, 48), 3)).pixels
    assert trained.score([data]).mean == trained.score(pixels[None]).mean
    assert len(trained.score([]).mean) == 0


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected pixels of shape \(N, 32, 48, 3\)"):
        make().score(PIXELS[:, :16])


def test_a_heatmap_has_the_input_size_and_keeps_the_units() -> None:
    heatmap = make().heatmap(np.full((8, 12), 3, np.float32))
    assert heatmap.shape == (32, 48)
    np.testing.assert_allclose(heatmap, 3, rtol=1e-5)


def _damage(folder: Path, name: str) -> None:
    path = folder / name
    if name == "bundle.json":
        document = json.loads(path.read_text())
        document["calibration"]["threshold"] = 99.0
        path.write_text(json.dumps(document))
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["bundle.json", "model.safetensors"])
def test_a_changed_file_does_not_match_the_digest(tmp_path: Path, name: str) -> None:
    make().save(str(tmp_path))
    _damage(tmp_path, name)
    with pytest.raises(BundleError, match="does not match its digest"):
        Detector.load(str(tmp_path))


def test_unknown_versions_and_other_files_are_refused(tmp_path: Path) -> None:
    make().save(str(tmp_path))
    path = tmp_path / "bundle.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"format_version": 99}))
    with pytest.raises(BundleError, match="bundle format 99"):
        Detector.load(str(tmp_path))
    path.write_text("[]")
    with pytest.raises(BundleError, match="not a bundle specification"):
        Detector.load(str(tmp_path))
    with pytest.raises(BundleError, match=r"no bundle at .*train one"):
        Detector.load(str(tmp_path / "elsewhere"))


def test_weights_that_are_not_finite_or_of_another_network_are_refused() -> None:
    state = safetensors.torch.load(make().weights)
    state["head.bias"][:] = torch.nan
    with pytest.raises(BundleError, match="NaN"):
        make(safetensors.torch.save(state))
    del state["head.bias"]
    with pytest.raises(BundleError, match="do not fit network 'cnn32_s'"):
        make(safetensors.torch.save(state))


def test_a_pickle_in_place_of_the_weights_is_never_opened(tmp_path: Path) -> None:
    make().save(str(tmp_path))
    torch.save({"head.bias": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BundleError):
        Detector.load(str(tmp_path))
    with pytest.raises(BundleError, match="do not fit"):
        make((tmp_path / "model.safetensors").read_bytes())


def test_the_choice_of_the_score_and_the_extent_belong_to_the_bundle(tmp_path: Path) -> None:
    chosen = make(score="maximum", gaussian_extent=9)
    chosen.save(str(tmp_path))
    loaded = Detector.load(str(tmp_path))
    assert (loaded.spec.score, loaded.spec.gaussian_extent) == ("maximum", 9)
    assert loaded.spec.digest != make().spec.digest
    assert "the maximum of its anomaly map is\nthe score" in (tmp_path / "README.md").read_text()
    hot = np.zeros((8, 12), np.float32)
    hot[4, 6] = 1
    assert (loaded.heatmap(hot) > 0).sum() <= 81
    scored = loaded.score(PIXELS[:3])
    np.testing.assert_array_equal(getattr(scored, loaded.spec.score), scored.maps.max((1, 2)))


def test_three_scores_are_statistics_of_the_same_map() -> None:
    maps = np.zeros((2, 20, 20), np.float32)
    maps[0, 0, :8] = np.arange(1, 9)
    scored = summarise(maps)
    assert scored.mean.tolist() == pytest.approx([36 / 400, 0])
    assert scored.maximum.tolist() == [8, 0]
    assert scored.top1pct.tolist() == [(8 + 7 + 6 + 5) / 4, 0]  # 1 % of 400 cells
