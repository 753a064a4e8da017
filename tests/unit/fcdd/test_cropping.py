import io

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

from fcdd import contours, cropping, images, regions
from fcdd.cropping import Box, Crop
from fcdd.errors import ImageError
from fcdd.images import View
from fcdd.io.isolation import DecoderPool
from fcdd.receptive_field import ReceptiveField

FIELD = ReceptiveField(height=4, width=6, stride=8, extent=8, centre=3.5)
IN = {"receptive_field": FIELD, "input_size": (32, 48), "image_size": (400, 300)}


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def photograph(width: int = 600, height: int = 400) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("10,20,100,50", Box(20, 10, 70, 110)),
        ("10%, 25%, 50%, 50%", Box(100, 30, 300, 180)),
        ("0,0,300,400", Box(0, 0, 400, 300)),
        ("0%,0%,33.3333%,100%", Box(0, 0, 400, 100)),
    ],
)
def test_a_crop_is_read_in_pixels_or_per_cent(text: str, box: Box) -> None:
    crop = Crop.parse(text)
    assert crop.box((400, 300)) == box
    assert Crop.parse(str(crop)) == crop


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1,2,3", "expected X,Y,WIDTH,HEIGHT"),
        ("1,2%,3,4", "all four with %"),
        ("-1,2,3,4", "expected X,Y,WIDTH,HEIGHT"),
        ("1,2,0,4", "nothing is left"),
        ("60%,0%,50%,10%", "beyond 100 %"),
        ("nan,0,1,1", "expected X,Y,WIDTH,HEIGHT"),
    ],
)
def test_a_crop_that_is_none_says_what_is_wrong(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Crop.parse(text)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("crop", ["100,50,320,240", "25%,25%,50%,50%"])
def test_a_network_sees_the_crop_and_nothing_else(kind: str, crop: str) -> None:
    picture = photograph()
    data, view = encoded(picture, kind), View((48, 64), 3, None, Crop.parse(crop))
    box = Crop.parse(crop).box((400, 600))
    whole = images.decode_full(data)
    alone = images.decode(encoded(whole.crop((box.left, box.top, box.right, box.bottom))), View((48, 64), 3))
    seen = DecoderPool(view).decode(data)
    off = np.abs(seen.pixels.astype(int) - alone.pixels)
    assert off.max() <= (6 if kind == "JPEG" else 0)  # a JPEG is decoded at a smaller scale where that is enough
    assert (seen.width, seen.height) == (600, 400)


def test_a_crop_is_one_of_the_upright_image() -> None:
    picture = photograph()
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(picture.transpose(Transpose.ROTATE_90), "JPEG", exif=exif.tobytes(), quality=95)
    view = View((48, 64), 3, None, Crop.parse("100,50,320,240"))
    expected = images.decode(encoded(picture, "JPEG", quality=95), view)
    found = images.decode(lying, view)
    assert (found.width, found.height) == (600, 400)
    assert np.abs(found.pixels.astype(int) - expected.pixels).mean() < 2


@pytest.mark.parametrize("crop", ["500,0,200,100", "0,390,10,20"])
def test_a_crop_outside_of_an_image_costs_that_image_alone(crop: str) -> None:
    with pytest.raises(ImageError, match="does not lie in an image of 600x400 pixels") as caught:
        images.decode(encoded(photograph()), View((48, 64), 3, None, Crop.parse(crop)))
    assert caught.value.reason == "unsupported"


def test_regions_and_outlines_lie_where_the_crop_does() -> None:
    map_uv = np.zeros((4, 6), np.float32)
    map_uv[1, 2] = 5
    crop = Crop.parse("50,100,120,80")
    [alone] = regions.find(map_uv, 1.0, receptive_field=FIELD, input_size=(32, 48), image_size=(80, 120))
    [region] = regions.find(map_uv, 1.0, crop=crop, **IN)  # type: ignore[arg-type]
    assert (region.x0, region.y0, region.x1, region.y1) == (
        alone.x0 + 50,
        alone.y0 + 100,
        alone.x1 + 50,
        alone.y1 + 100,
    )
    [ring] = contours.rings(map_uv, 1.0, crop=crop, **IN)  # type: ignore[arg-type]
    assert ring.min(0).tolist() >= [50, 100]
    assert ring.max(0).tolist() <= [170, 180]
    hottest = ring.mean(0)
    assert region.x0 < hottest[0] < region.x1
    assert region.y0 < hottest[1] < region.y1


def test_a_heatmap_is_not_finer_than_the_image() -> None:
    whole = cropping.around(np.ones((224, 224), np.float32), Box(100, 200, 130, 230), (3000, 4000))
    assert whole.shape == (3000, 4000)
    assert whole.sum() == 900
    assert whole[100:130, 200:230].all()


def test_large_numbers_are_written_as_they_are_read() -> None:
    assert str(Crop.parse("1234567,2,3,4.5")) == "1234567,2,3,4.5"


def test_a_heatmap_of_a_crop_is_zero_around_it() -> None:
    whole = cropping.around(np.ones((32, 48), np.float32), Box(100, 50, 180, 170), (400, 300))
    assert whole.shape == (160, 120)
    rows, columns = np.nonzero(whole)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (40, 72, 20, 68)
