import pytest
import torch
from torch.nn import functional as F

from fcdd import networks, upsampling
from fcdd.receptive_field import ReceptiveField


@pytest.mark.parametrize(("name", "size"), [("cnn28", (28, 28)), ("cnn224", (224, 224)), ("cnn224", (224, 160))])
def test_matrix_products_equal_the_transposed_convolution(name: str, size: tuple[int, int]) -> None:
    field = networks.build(name, in_channels=3, image_size=size).receptive_field
    maps = torch.rand(2, 1, field.height, field.width)
    kernel = torch.from_numpy(upsampling.gaussian_kernel(field.extent, 5.0)).float()
    # The full transposed convolution, long enough to be cropped to the image at the official offset.
    full = F.conv_transpose2d(F.pad(maps, (0, 9, 0, 9)), torch.outer(kernel, kernel)[None, None], stride=field.stride)
    start = (field.extent - 1) // 2 - int(field.centre // 1)
    expected = full[:, :, start : start + size[0], start : start + size[1]]
    torch.testing.assert_close(upsampling.upsample(maps, field, size, 5.0), expected, rtol=1e-5, atol=1e-5)


def test_peak_stays_inside_the_receptive_field_of_its_cell() -> None:
    field = networks.build("cnn224", in_channels=3, image_size=(224, 224)).receptive_field
    maps = torch.zeros(1, 1, 28, 28)
    maps[0, 0, 10, 20] = 1
    peak = int(upsampling.upsample(maps, field, (224, 224), 8.0).argmax())
    assert divmod(peak, 224) == (10 * 8, 20 * 8)


def test_display_mode_keeps_a_constant_map_constant_up_to_the_border() -> None:
    field = networks.build("cnn224", in_channels=3, image_size=(224, 224)).receptive_field
    heatmap = upsampling.upsample(torch.full((1, 1, 28, 28), 0.7), field, (224, 224), 8.0, normalized=True)
    torch.testing.assert_close(heatmap, torch.full((1, 1, 224, 224), 0.7))


def test_gradients_flow_to_the_map() -> None:
    field = networks.build("cnn28", in_channels=1, image_size=(28, 28)).receptive_field
    maps = torch.rand(1, 1, 7, 7, requires_grad=True)
    upsampling.upsample(maps, field, (28, 28)).sum().backward()
    assert maps.grad is not None
    assert (maps.grad > 0).all()


def test_another_extent_of_the_gaussian_keeps_the_centres_and_cuts_the_reach() -> None:
    field = networks.build("backbone:resnet18:layer3", in_channels=3, image_size=(96, 96)).receptive_field
    assert field.extent == 211  # larger than the image
    small = upsampling.with_extent(field, 33)
    maps = torch.zeros(1, 1, field.height, field.width)
    maps[0, 0, 2, 3] = 1
    wide, narrow = (upsampling.upsample(maps, f, (96, 96), 8.0)[0, 0] for f in (field, small))
    assert wide.argmax() == narrow.argmax() == 32 * 96 + 48
    assert (narrow > 0).sum() == 33 * 33
    assert (wide > 0).sum() > (narrow > 0).sum()
    assert upsampling.with_extent(field, None) == field


def test_no_factor_is_so_small_that_processors_compute_slowly_with_it() -> None:
    field = ReceptiveField(height=32, width=40, stride=8, extent=387, centre=4.375)
    matrix = upsampling._axis_matrix(32, 256, field, 12.0, False)
    assert matrix[matrix > 0].min() > 1e-21
    assert (matrix > 0).any(1).all()
