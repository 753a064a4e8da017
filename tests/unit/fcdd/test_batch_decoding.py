"""Many JPEGs at once, by the decoder that GPUs have too; on a CPU its libjpeg takes the place of nvJPEG."""

import numpy as np
import pytest
import torch
from PIL import Image

from fcdd import batch_decoding, images, jpeg_files
from fcdd.batch_decoding import BatchDecoder
from fcdd.cropping import Crop
from fcdd.images import DecodedImage, Limits, View
from fcdd.jpeg_files import JpegFile
from tests.jpegs import jpeg, picture

CPU = torch.device("cpu")
FILES = [
    *(jpeg(picture(orientation), orientation, quality=90) for orientation in range(1, 9)),
    jpeg(picture(9, (200, 150)), quality=90),
    jpeg(picture(10, (20, 10)), quality=90),
    jpeg(picture(11).convert("L"), quality=90),
]


def files(data: list[bytes]) -> list[JpegFile]:
    found = [jpeg_files.examine(each, Limits()) for each in data]
    assert None not in found
    return [file for file in found if file]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", [None, Crop.parse("10%,20%,50%,60%"), Crop.parse("2,1,8,7")])
def test_pictures_are_those_of_the_trusted_decoder(channels: int, crop: Crop | None) -> None:
    view = View((32, 48), channels, None, crop)
    found = BatchDecoder(view, CPU)(files(FILES))
    for data, image in zip(FILES, found, strict=True):
        trusted = images.decode(data, view)
        assert image
        assert image.pixels.shape == trusted.pixels.shape
        assert np.abs(image.pixels.astype(int) - trusted.pixels).max() <= 2
        for name in ("width", "height", "frames", "format", "is_faint", "peak"):
            assert getattr(image, name) == getattr(trusted, name)
        for name in ("brightness", "contrast", "sharpness"):
            assert getattr(image, name) == pytest.approx(getattr(trusted, name), abs=0.3)


def test_statistics_and_hashes_of_pixels_are_those_of_the_trusted_decoder() -> None:
    for image in (picture(3, (160, 224)), Image.new("RGB", (30, 20), "teal"), Image.new("RGB", (1, 1), "red")):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        [measured], [bits] = batch_decoding.statistics(pixels), batch_decoding.hashes(pixels)
        grey = image.convert("L")
        expected = (*images._mean_and_deviation(image), images.sharpness(grey))
        assert measured.tolist() == pytest.approx(expected, abs=1e-3)
        trusted = np.unpackbits(np.frombuffer(images.difference_hash(grey), np.uint8))
        assert (bits.numpy() != trusted).sum() <= 1  # of 256: which of two nearly equal cells is the brighter


def test_what_the_decoder_refuses_is_alone_in_it() -> None:
    good = files(FILES)
    broken = JpegFile(b"\xff\xd8\xff and no picture", 60, 44, 1)
    other_size = good[0]._replace(width=61)  # it is not what its header said
    mixed = [good[0], broken, *good[1:4], other_size, *good[4:]]
    decoder = BatchDecoder(View((32, 48), 3), CPU)
    found = decoder(mixed)
    assert [image is None for image in found] == [file in (broken, other_size) for file in mixed]
    alone = decoder(good)
    for image, expected in zip([image for image in found if image], alone, strict=True):
        assert expected
        assert (image.pixels == expected.pixels).all()


def test_pieces_fit_into_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = BatchDecoder(View((32, 48), 3), CPU)
    together = decoder(files(FILES))
    monkeypatch.setattr(batch_decoding, "_PIXELS_AT_ONCE", 60 * 44 * 2)
    assert max(len(piece) for piece in batch_decoding._pieces(files(FILES))) == 2
    for one, other in zip(decoder(files(FILES)), together, strict=True):
        assert isinstance(one, DecodedImage)
        assert isinstance(other, DecodedImage)
        assert (one.pixels == other.pixels).all()
    assert decoder([]) == []


def test_a_decoder_that_refuses_everything_says_why() -> None:
    broken = JpegFile(b"\xff\xd8\xff and no picture", 60, 44, 1)
    decoder = BatchDecoder(View((32, 48), 3), CPU)
    assert decoder([broken]) == [None]
    with pytest.raises(RuntimeError):
        decoder([broken, broken])


def test_a_size_that_cannot_be_scaled_is_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = batch_decoding.resized

    def smaller(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if pixels.shape[3] == 200:
            raise RuntimeError("too much shared memory")
        return resize(pixels, size)

    monkeypatch.setattr(batch_decoding, "resized", smaller)
    found = BatchDecoder(View((32, 48), 3), CPU)(files(FILES))
    assert [index for index, image in enumerate(found) if image is None] == [8]
