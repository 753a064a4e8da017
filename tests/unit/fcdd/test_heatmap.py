import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fcdd import heatmap

MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.floats(0, 1e6, width=32, allow_subnormal=False),
)


@given(MAPS)
def test_a_decoded_map_is_within_half_a_level_of_the_original(map_uv: np.ndarray) -> None:
    decoded = heatmap.decode(heatmap.encode(map_uv))
    span = float(map_uv.max()) - float(map_uv.min())
    assert decoded.shape == map_uv.shape
    # Half of one of 255 levels, and the rounding of float32 itself.
    assert np.abs(decoded.astype(float) - map_uv).max() <= span / 510 + 2e-7 * float(map_uv.max()) + 1e-12


def test_extremes_survive_exactly() -> None:
    map_uv = np.array([[0.25, 7.5], [1.0, 3.0]], np.float32)
    decoded = heatmap.decode(heatmap.encode(map_uv))
    assert decoded.min() == np.float32(0.25)
    assert decoded.max() == pytest.approx(7.5, rel=1e-6)


def test_the_bytes_are_what_the_documentation_says() -> None:
    data = heatmap.encode(np.array([[0, 255], [255, 0]], np.float32))
    assert data[:13] == b"\x01\x02\x00\x02\x00" + np.array([0, 255], "<f4").tobytes()
    # levels 0 255 / 255 0; differences along rows 0 -1 / -1 1, then down 0 -1 / -1 2; zigzag 0 1 / 1 4
    assert data[13:] == bytes([0, 1, 1, 4])


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 2), np.float32), np.array([[np.nan]], np.float32)])
def test_what_is_no_finite_map_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite 2-D map"):
        heatmap.encode(bad)


@pytest.mark.parametrize("bad", [b"", b"\x01\x02\x00", heatmap.encode(np.ones((3, 3), np.float32))[:-1], b"\x02" * 22])
def test_damaged_bytes_are_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="heatmap"):
        heatmap.decode(bad)


def test_the_threshold_shows_as_one_half_in_every_image() -> None:
    shown = heatmap.display_scale(np.array([0, 2, 6], np.float32), 2.0)
    assert shown.tolist() == pytest.approx([0, 0.5, 0.75])


def test_nominal_evidence_leaves_the_picture_untouched_and_anomalous_evidence_colours_it() -> None:
    picture = Image.new("L", (40, 20), 90)
    heat = np.zeros((10, 20), np.float32)
    heat[:, 15:] = 50
    shown = np.asarray(heatmap.overlay(picture, heat, threshold=1.0))
    assert shown.shape == (20, 40, 3)
    assert (shown[:, :25] == 90).all()
    assert shown[10, 38, 0] > 120


def test_many_maps_decode_as_each_does_alone() -> None:
    maps = np.random.default_rng(0).gamma(2, size=(50, 7, 9)).astype(np.float32)
    maps[3] = 1.5
    encoded = heatmap.encode_each(maps)
    np.testing.assert_array_equal(heatmap.decode_each(encoded), np.stack([heatmap.decode(each) for each in encoded]))
    assert heatmap.decode_each([]).shape == (0, 0, 0)
    with pytest.raises(ValueError, match="one shape"):
        heatmap.decode_each([*encoded, heatmap.encode(np.ones((3, 3), np.float32))])
    with pytest.raises(ValueError, match="of version 1 and shape"):
        heatmap.decode_each([*encoded, heatmap.encode(np.ones((9, 7), np.float32))])
    with pytest.raises(ValueError, match="of version 1 and shape"):
        heatmap.decode_each([*encoded, b"\2" + encoded[0][1:]])


def test_sixteen_bits_are_the_display_scale_and_can_be_turned_back() -> None:
    values = np.array([[0, 0.5, 2, 1e6]], np.float32)
    levels = heatmap.to_16bit(values, threshold=2.0)
    assert levels.dtype == np.uint16
    assert levels[0, 0] == 0
    assert levels[0, 2] == 32768
    finite = levels[0, :3].astype(np.float64)
    np.testing.assert_allclose(2.0 * finite / (65535 - finite), values[0, :3], rtol=1e-4)


def test_a_layer_is_clear_where_nominal_and_never_hides_the_image() -> None:
    values = np.linspace(0, 10, 50, dtype=np.float32)[None]
    alpha = np.asarray(heatmap.layer(values, threshold=1.0).getchannel("A"))[0]
    assert (alpha[values[0] <= 0.2] == 0).all()
    assert (np.diff(alpha.astype(int)) >= 0).all()
    assert alpha.max() == round(255 * 0.6)


def test_the_scale_is_ordered_in_grey_and_for_colour_blind_eyes() -> None:
    """Lightness rises along it, also as a deuteranope sees it (Vienot, Brettel and Mollon, 1999)."""
    rgb = (np.asarray(heatmap.colours(64))[0] / 255.0) ** 2.2
    grey = rgb @ [0.2126, 0.7152, 0.0722]
    deuteranope = rgb @ np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]).T
    for lightness in (grey, deuteranope @ [0.2126, 0.7152, 0.0722]):
        assert (np.diff(lightness) > 0).all()


def test_a_heatmap_at_another_size_keeps_its_units_and_place() -> None:
    values = np.zeros((10, 20), np.float32)
    values[2:4, 14:18] = 8
    large = heatmap.at_size(values, 100, 40)
    assert large.shape == (40, 100)
    assert large[11, 80] == pytest.approx(8, abs=0.5)
    assert large[30, 20] == 0
