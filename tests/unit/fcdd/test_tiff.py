"""TIFF: every combination of what a file may be is the picture that it was made of, or refused with what it is."""

import dataclasses
import functools
import io
import itertools
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from fcdd import images
from fcdd.errors import ImageError
from fcdd.images import View
from tests import tiffs
from tests.tiffs import CMYK, DEFLATE, GREY, JPEG, LZW, NONE, PACKBITS, PALETTE, RGB, WHITE_IS_ZERO, YCBCR, ZSTD, Form

HEIGHT, WIDTH = 18, 21
COLOURS = {WHITE_IS_ZERO: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
ASSOCIATED, UNASSOCIATED = 1, 2
# Bits per sample and sample format.
DEPTHS = [(bits, 1) for bits in (1, 2, 4, 8, 10, 12, 14, 16, 32)] + [(32, 3)]
ALL = itertools.product(
    COLOURS,
    DEPTHS,
    (NONE, LZW, DEFLATE, PACKBITS, JPEG, ZSTD),
    "<>",
    (False, True),
    (False, True),
    ((), (ASSOCIATED,), (UNASSOCIATED,)),
)


@functools.cache
def smooth(bits: int, samples: int) -> npt.NDArray[np.uint32]:
    """Samples (H,W,S) of all levels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [0.5 + 0.5 * np.sin(x / (7 + 2 * k) + y / (9 + k) + k) for k in range(samples)]
    return np.rint(np.stack(waves, -1) * (2 ** min(bits, 16) - 1)).astype(np.uint32)


@functools.cache
def palette(bits: int) -> npt.NDArray[np.uint16]:
    """Colours (3, 2**bits) of 16 bits."""
    return np.random.default_rng(bits).integers(0, 65536, (3, 2**bits)).astype(np.uint16)


def seen(samples: npt.NDArray[np.uint32], form: Form) -> npt.NDArray[np.float64]:
    """What is to be seen (H,W,3), 0 to 255, from the definitions of TIFF 6.0."""
    unit = samples / (2**form.bits - 1)
    number = COLOURS[form.photometric]
    colours = unit[:, :, :number]
    if form.photometric == WHITE_IS_ZERO:
        colours = 1 - colours
    elif form.photometric == PALETTE:
        assert form.palette is not None
        colours = form.palette.T[samples[:, :, 0]] / 65535
    elif form.photometric == CMYK:
        colours = (1 - unit[:, :, :3]) * (1 - unit[:, :, 3:4])
    elif form.photometric == YCBCR and not (form.compression == JPEG and not form.planes):
        y, cb, cr = (unit[:, :, k] * 255 - (128 if k else 0) for k in range(3))
        rgb = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
        colours = np.stack(rgb, -1).clip(0, 255) / 255
    opacity = unit[:, :, number:] if form.extra == (UNASSOCIATED,) else 1.0
    return np.broadcast_to(colours * opacity * 255, (*samples.shape[:2], 3))


def has_rule(form: Form) -> bool:
    """Which files the rules of `fcdd.tiff` are for."""
    if form.bits > 16 or form.kind != 1:
        return False
    if form.photometric == PALETTE and form.compression == JPEG:
        return False
    if form.extra == (ASSOCIATED,) and form.photometric not in (GREY, RGB):
        return False
    if form.photometric == YCBCR:
        return form.bits == 8 and not (form.compression == JPEG and form.extra and not form.planes)
    return True


def file_of(form: Form) -> tuple[bytes, npt.NDArray[np.uint32]]:
    samples = smooth(form.bits, COLOURS[form.photometric] + len(form.extra))
    if form.extra == (ASSOCIATED,):
        colours, opacity = samples[:, :, :-1], samples[:, :, -1:]
        samples = np.concatenate((colours * opacity // (2 ** min(form.bits, 16) - 1), opacity), 2)
    return tiffs.write(samples, form), samples


def outcome(form: Form) -> str:
    """Empty, or what is wrong."""
    try:
        data, samples = file_of(form)
    except NotImplementedError:
        return "not written"
    try:
        found = np.asarray(images.decode_full(data), np.float64)
    except ImageError as error:
        named = f"{form.bits} bits" in error.detail and f"photometric {form.photometric} " in error.detail
        right = error.reason == "unsupported" and named and not has_rule(form)
        return "refused" if right else f"{form}: {error}"
    if not has_rule(form):
        return f"{form}: there is no rule for it, and it has a picture"
    expected = seen(samples, form)
    if found.shape != expected.shape:
        return f"{form}: {found.shape}"
    worst = np.abs(found - expected).max()
    # Rounding of each step, and in JPEG the loss. Sixteen-bit colours keep their high byte.
    return "right" if worst <= (8 if form.compression == JPEG else 2.5) else f"{form}: {worst:.1f} off"


def test_every_combination_is_the_picture_it_was_made_of_or_refused_by_name() -> None:
    counts: Counter[str] = Counter()
    for photometric, (bits, kind), compression, order, planes, tiles, extra in ALL:
        colours = palette(bits) if photometric == PALETTE and bits <= 16 else None
        form = Form(photometric, bits, compression, order, planes, tiles, extra, kind, palette=colours)
        counts[outcome(form)] += 1
    wrong = {text: count for text, count in counts.items() if text not in ("right", "refused", "not written")}
    assert not wrong, f"{len(wrong)} kinds, the first are {list(wrong)[:20]}"
    assert counts["right"] > 3000
    assert counts["refused"] > 1000


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [LZW, DEFLATE, ZSTD, NONE, PACKBITS])
@pytest.mark.parametrize("tiles", [False, True])
def test_a_predictor_counts_where_it_means_something(compression: int, bits: int, order: str, tiles: bool) -> None:
    samples = smooth(bits, 3).astype(f"u{bits // 8}")
    plain = tiffs.write(samples, Form(RGB, bits, NONE, order))
    if compression in (NONE, PACKBITS):  # only a tag
        form = Form(RGB, bits, compression, order, tiles=tiles, tags={317: ("H", [2])})
    else:
        form = Form(RGB, bits, compression, order, tiles=tiles, predictor=2)
    np.testing.assert_array_equal(shown(tiffs.write(samples, form)), shown(plain))


def shown(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(images.decode_full(data))


@pytest.mark.parametrize("form", [Form(order=order, big=True, bits=bits) for order in "<>" for bits in (1, 8, 12, 16)])
def test_a_big_tiff_is_a_tiff(form: Form) -> None:
    assert outcome(form) == "right"


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bits_in_reversed_order_are_turned_round(bits: int) -> None:
    assert outcome(Form(bits=bits, fill_order=2)) == "right"
    assert outcome(Form(bits=bits, fill_order=2, compression=LZW)) == "right"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Form(kind=2), "1 x 8 bits signed"),
        (Form(kind=2, bits=16), "1 x 16 bits signed"),
        (Form(kind=3, bits=64), "1 x 64 bits floating-point"),
        (Form(photometric=8), "photometric 8 (CIELAB)"),
        (Form(photometric=32803), "photometric 32803 (CFA)"),
        (Form(tags={259: ("H", [34712])}), "compression 34712 (JPEG2000)"),
        (Form(tags={259: ("H", [6])}), "compression 6 (OJPEG)"),
        (Form(tags={259: ("H", [12345])}), "compression 12345"),
        (Form(tags={32997: ("I", [2])}), "a volume of 2 layers"),
        (Form(bits=16, fill_order=2), "bits in reversed order"),
        (Form(bits=12, compression=LZW, tags={317: ("H", [2])}), "predictor 2 has no rule"),
        (Form(tags={262: ("H", [RGB])}), "its colours need 3 samples per pixel"),
        (Form(photometric=PALETTE), "its palette is missing"),
        (Form(photometric=YCBCR, tags={530: ("H", [2, 2])}), "colours at a lower resolution"),
        (Form(photometric=CMYK, tags={332: ("H", [2])}), "its inks are not"),
    ],
)
def test_what_has_no_rule_is_refused_with_what_it_is(form: Form, words: str) -> None:
    data = tiffs.write(smooth(form.bits, COLOURS.get(form.photometric, 1)), form)
    with pytest.raises(ImageError, match="unsupported: a TIFF of") as caught:
        images.decode_full(data)
    assert words in caught.value.detail


def test_samples_after_the_colours_that_are_no_opacity_are_left_out() -> None:
    samples = smooth(8, 5)
    expected = shown(tiffs.write(samples[:, :, :3], Form(RGB)))
    np.testing.assert_array_equal(shown(tiffs.write(samples, Form(RGB, extra=(0, 0)))), expected)
    np.testing.assert_array_equal(shown(tiffs.write(samples, Form(RGB, extra=(0, 0), planes=True))), expected)


def pages(*nexts: int) -> bytes:
    """A grey picture, and after it pages of no pixels; each points to the place that is given, or 0 for none.

    The first page is at 8, the n-th after it at 1000 * n; a place beyond the end is nowhere.
    """
    form, picture = Form(), b"".join(smooth(8, 1)[:, :, 0].astype(np.uint8))
    height, width = HEIGHT, WIDTH
    first = {256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8]), 259: ("H", [1]), 262: ("H", [1])}
    first |= {273: ("I", [500]), 278: ("I", [height]), 279: ("I", [len(picture)])}
    data = bytearray(1000 * len(nexts) + 200)
    data[:8] = b"II*\0\x08\0\0\0"
    data[500 : 500 + len(picture)] = picture
    for index, place in enumerate(nexts):
        here = 1000 * index or 8
        page = tiffs.directory(first if not index else {258: ("H", [64]), 339: ("H", [3])}, here, form, place)
        data[here : here + len(page)] = page
    return bytes(data)


@pytest.mark.parametrize(
    ("nexts", "count"),
    [((0,), 1), ((1000, 0), 2), ((1000, 2000, 10**6), 3), ((10**9,), 1), ((1000, 8), 2), ((1000, 1000), 2)],
)
def test_a_later_page_of_any_kind_leaves_the_first_as_it_is(nexts: tuple[int, ...], count: int) -> None:
    decoded = images.decode(pages(*nexts), View((HEIGHT, WIDTH), 1))
    np.testing.assert_array_equal(decoded.pixels, smooth(8, 1))
    assert decoded.frames == count


def test_more_pages_than_the_limit_are_too_many() -> None:
    with pytest.raises(ImageError, match="too_large: more than 2 frames"):
        images.decode_full(pages(1000, 2000, 0), limits=images.Limits(frames=2))
    assert images.decode_full(pages(1000, 2000, 0), limits=images.Limits(frames=3)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("form", [Form(), Form(compression=LZW), Form(bits=12), Form(tiles=True), Form(order=">")])
def test_a_file_that_ends_early_or_lies_is_truncated_or_corrupt(form: Form) -> None:
    whole, _ = file_of(form)
    cut = whole[: len(whole) // 2]
    with pytest.raises(ImageError) as caught:
        images.decode_full(cut)
    assert caught.value.reason == "truncated"
    one_only = {324 if form.tiles else 273: ("I", [8])}
    short = tiffs.write(smooth(form.bits, 1), dataclasses.replace(form, compression=LZW, tags=one_only))
    with pytest.raises(ImageError) as caught:
        images.decode_full(short)
    assert caught.value.reason == "corrupt"


def test_tifffile_writes_what_is_read() -> None:
    """Another author than ours."""
    colours = (smooth(16, 3)).astype(np.uint16)
    for options in ({}, {"compression": "zlib", "predictor": True}, {"planarconfig": "separate"}, {"tile": (16, 16)}):
        sink = io.BytesIO()
        stored = np.moveaxis(colours, 2, 0) if "planarconfig" in options else colours
        tifffile.imwrite(sink, stored, photometric="rgb", **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(shown(sink.getvalue()), (colours >> 8).astype(np.uint8))


def test_a_palette_of_eight_bit_levels_is_taken_as_it_is() -> None:
    """Some writers forget that the map is of 16 bits; libtiff takes it so, too."""
    samples, colours = smooth(8, 1), palette(8)
    right = images.decode_full(tiffs.write(samples, Form(photometric=PALETTE, palette=colours)))
    small = images.decode_full(tiffs.write(samples, Form(photometric=PALETTE, palette=colours >> 8)))
    np.testing.assert_array_equal(np.asarray(small), np.asarray(right))
