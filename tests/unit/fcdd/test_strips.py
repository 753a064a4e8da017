import pytest
import torch

from fcdd import networks, strips
from fcdd.errors import ConfigError

SIZES = [(1088, 320), (992, 288)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "name", ["whitened:efficientnet_lite0:stage4+stage3+stage5:1:16", "cnn224", "vgg_nopt", "backbone:resnet18:layer3"]
)
def test_features_of_strips_are_those_of_the_whole_image(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = networks.build(name, in_channels=3, image_size=size).eval()
    monkeypatch.setattr(strips, "LARGEST", 320 * 600)
    cut = networks.build(name, in_channels=3, image_size=size).eval()
    cut.load_state_dict(whole.state_dict())
    images = torch.randn(1, 3, *size)
    planned = strips.plan(size, whole.receptive_field, 16)
    assert len(planned) > 1
    assert len({strip.rows.stop - strip.rows.start for strip in planned}) == 1
    assert [strip.rows.start for strip in planned] == sorted(strip.rows.start for strip in planned)
    sizes = []
    for part in cut.features.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[2]))
            break
    with torch.inference_mode():
        expected, found = whole.compute_features(images), cut.compute_features(images)
        assert len(sizes) > 1
        assert max(sizes) < size[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        torch.testing.assert_close(cut.for_inference()(images), whole(images), rtol=1e-3, atol=1e-3)


def test_sides_that_the_coarsest_cells_do_not_divide_are_refused_beyond_what_is_computed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strips, "LARGEST", 320 * 600)
    name = "whitened:resnet18:layer2+layer4:1:8"
    with pytest.raises(ConfigError, match="must divide by 32, got 1040x320"):
        networks.build(name, in_channels=3, image_size=(1040, 320))
    networks.build(name, in_channels=3, image_size=(1056, 320))


def test_a_network_that_looks_at_the_whole_image_is_refused_beyond_what_memory_allows() -> None:
    with pytest.raises(ConfigError, match="efficientnet_b0 looks at the whole image at once"):
        networks.build("whitened:efficientnet_b0:features.3:1:16", in_channels=3, image_size=(4096, 4096))
