"""Both resizers are the same filter, and a bundle says which one it was seen by."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cykooz_resizer
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fcdd import images, onnx_export, resizing
from fcdd.bundle import BundleSpec
from fcdd.cropping import Crop
from fcdd.errors import ConfigError
from fcdd.images import DecodedImage, View
from fcdd.io.isolation import IsolatedDecoder
from jobs.scoring import waves
from jobs.scoring.settings import ScoreSettings
from jobs.shell import checks
from jobs.training import checks as training_checks
from jobs.training.settings import TrainSettings
from tests import detectors

WRONG = """
from cykooz_resizer_itself import *
import cykooz_resizer_itself as itself
class Resizer(itself.Resizer):
    def resize_pil(self, source, target, options):
        pass
"""


def noise(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind)
    return sink.getvalue()


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


SIDE = st.integers(1, 300)


def differ_little(fast: Image.Image, exact: Image.Image) -> bool:
    """By a grey level, and very few values by two."""
    apart = np.abs(values(fast) - values(exact))
    return bool(apart.max() <= 2 and (apart == 2).sum() <= max(1, 1e-4 * apart.size))


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["L", "RGB"]))
@example(62, 216, 216, 168, "RGB")  # by two
@example(62, 148, 285, 141, "L")
def test_values_differ_by_a_grey_level_at_most_and_very_few_by_two(
    width: int, height: int, to: int, down: int, mode: str
) -> None:
    picture = noise(width, height, mode)
    fast, exact = (resizing.resized(picture, (to, down), by) for by in ("cykooz", "pillow"))
    assert (fast.size, fast.mode) == (exact.size, exact.mode) == ((to, down), mode)
    assert differ_little(fast, exact)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.sampled_from(["L", "RGB"]))
@example([0.19424817023517865, 0.0, 1.0, 0.0], "L")  # ends a rounding error beyond the picture
def test_nor_of_a_part_that_begins_within_a_pixel(shares: list[float], mode: str) -> None:
    picture = noise(97, 61, mode)
    left, top = shares[0] * 90, shares[1] * 55
    part = (left, top, left + 0.1 + shares[2] * (96.9 - left), top + 0.1 + shares[3] * (60.9 - top))
    assert differ_little(*(resizing.resized(picture, (32, 48), by, part) for by in ("cykooz", "pillow")))


@pytest.mark.parametrize("size", [(60_000, 10), (3, 50_000), (9000, 7000)])
def test_nor_where_very_many_pixels_become_few(size: tuple[int, int]) -> None:
    picture = noise(*size, "RGB")
    assert differ_little(*(resizing.resized(picture, (16, 16), by) for by in ("cykooz", "pillow")))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_do_not_depend_on_the_instructions_that_a_processor_has(mode: str) -> None:
    picture, library = noise(500, 375, mode), cykooz_resizer
    bilinear = library.ResizeAlg.convolution(library.FilterType.bilinear)
    found = {}
    usual = library.Resizer().cpu_extensions
    for extension in {library.CpuExtensions.none, usual}:
        resizer, small = library.Resizer(), Image.new(mode, (224, 224))
        resizer.cpu_extensions = extension
        resizer.resize_pil(picture, small, library.ResizeOptions(resize_alg=bilinear, use_alpha=False))
        found[extension] = small.tobytes()
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("crop", [None, "10.5%,20%,60%,70%"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_isolated_decoder_resizes_by_the_same(kind: str, crop: str | None) -> None:
    seen = [View((40, 56), 3, None, crop and Crop.parse(crop), by) for by in ("pillow", "cykooz")]
    data, found = encoded(noise(640, 480, "RGB").resize((2000, 1500)), kind), []
    for view in seen:
        with IsolatedDecoder(view) as decoder:
            [image] = decoder.decode_each([data])
        assert isinstance(image, DecodedImage)
        here = images.decode(data, view)
        np.testing.assert_array_equal(image.pixels, here.pixels)
        assert image.hash == here.hash
        found.append(image.pixels.astype(np.int16))
    assert 0 < np.abs(found[0] - found[1]).max() <= 2


def test_bundles_of_before_keep_their_pixels_and_their_digest() -> None:
    older = detectors.make().spec
    assert older.view.resizer == "pillow"
    assert "resizer" not in older.model_dump(mode="json")
    newer = detectors.make(resizer="cykooz").spec
    assert newer.view.resizer == "cykooz"
    assert newer.digest != older.digest
    assert BundleSpec.model_validate_json(newer.model_dump_json()) == newer


def test_a_bundle_whose_resizer_is_not_installed_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    assert resizing.fastest() == "cykooz"
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    forget()
    assert resizing.fastest() == "pillow"
    with pytest.raises(ConfigError, match=r"which is not installed here; run: pip install --upgrade cykooz-resizer; "):
        detectors.make(resizer="cykooz").score([encoded(noise(50, 50, "RGB"))])
    detectors.make().score([encoded(noise(50, 50, "RGB"))])
    with pytest.raises(ConfigError, match="--resizer pillow"):
        onnx_export.export(detectors.make(resizer="cykooz"), with_resize=True)
    detectors.make(resizer="cykooz").save(f"{tmp_path}/bundle")
    scoring = ScoreSettings(
        bundle=f"{tmp_path}/bundle", images=[str(tmp_path)], results=f"{tmp_path}/r", collection="c", date="2026-11-01"
    )
    with pytest.raises(ConfigError, match="--resizer pillow"):
        waves.prepare(scoring.options())
    [finding] = checks.run_check("bundle", lambda: checks.model(f"{tmp_path}/bundle"))
    assert finding.state == "problem"
    with pytest.raises(ConfigError, match="--resizer pillow"):
        training_checks.check_options(TrainSettings(images="x", bundle="y", resizer="cykooz"))


@pytest.fixture
def forget() -> Iterator[Callable[[], None]]:
    """Forgets what was found out about the library, now and after the test."""

    def now() -> None:
        resizing._why_not.cache_clear()
        resizing._cykooz.cache_clear()

    yield now
    now()


@pytest.mark.parametrize(
    ("source", "why"),
    [(WRONG, "does not fit the Pillow that is installed"), ("import no_such_module", "does not work here (Module")],
)
def test_a_resizer_that_does_not_work_is_not_chosen_and_scores_no_image(tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "cykooz_resizer_itself").symlink_to(Path(cykooz_resizer.__file__).parent)
    (tmp_path / "cykooz_resizer.py").write_text(source)
    asking = """
from fcdd import resizing
from fcdd.images import View
from fcdd.io.isolation import IsolatedDecoder
print(resizing.fastest())
IsolatedDecoder(View((8, 8), 3, resizer="cykooz"))
"""
    places = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", asking], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": places}
    )
    assert done.stdout == "pillow\n"
    assert "ConfigError: images are to be resized by cykooz-resizer" in done.stderr
    assert f"which {why}" in done.stderr
