"""Pretrained convolutional trunks cut after named stages, as features for an FCDD head.

A trunk is EfficientNet-Lite0 (`fcdd.efficientnet_lite`, stages "stage1" to "stage7") or any classification network
of torchvision whose convolutions follow each other in the order they are declared; its stages are torchvision's own
names of the parts: "layer3" of a ResNet, "features.5" of an EfficientNet, ConvNeXt, MobileNet or VGG.

Several stages joined by "+" are concatenated on the grid of the first one: finer maps are averaged over its cells,
coarser ones interpolated.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdd import efficientnet_lite, receptive_field
from fcdd.efficientnet_lite import EfficientNetLite
from fcdd.errors import ConfigError
from fcdd.normalization import Normalization
from fcdd.receptive_field import Layer, ReceptiveField

LITE0 = "efficientnet_lite0"
# Families whose modules are declared in the order of their use, so that cutting and geometry follow it.
FAMILIES = ("resnet", "resnext", "wide_resnet", "efficientnet", "convnext", "mobilenet", "vgg")
# Parts that are no convolutional trunk any more.
_CLASSIFIER = ("avgpool", "classifier", "fc")
IMAGENET = Normalization(kind="mean_std", shift=(0.485, 0.456, 0.406), scale=(0.229, 0.224, 0.225))


class Trunk(NamedTuple):
    """Features of images (B,3,H,W) as (B, all channels, height, width of the field), randomly initialised.

    `channels` are those of each stage, one after the other; `coarsest` is the largest stride of the stages.
    """

    features: nn.Module
    field: ReceptiveField
    channels: tuple[int, ...]
    coarsest: int


def build(name: str, stages: Sequence[str], image_size: tuple[int, int]) -> Trunk:
    """The trunk `name` with the outputs of `stages`, for images of `image_size` = (height, width).

    The receptive field is the theoretical one of the deepest stage. Raises ConfigError for an unknown name or stage,
    or an image that does not fit.
    """
    if name == LITE0:
        _check_stages(name, stages, tuple(efficientnet_lite.STAGES))
        geometries = [efficientnet_lite.layers(stage) for stage in stages]
        channels = [efficientnet_lite.STAGES[stage][-1].channels for stage in stages]
        trunk: nn.Module = EfficientNetLite(tuple(stages))
    else:
        model = _torchvision_model(name)
        _check_stages(name, stages, tuple(_stage_names(model)))
        trunk = _TorchvisionTrunk(model, stages)
        geometries = [list(_layers(_cut(model, stage.split(".")))) for stage in stages]
        with torch.no_grad():
            outputs = trunk.eval()(torch.zeros(1, 3, 64, 64))
        channels = [output.shape[1] for output in outputs]
        trunk.train()
    fields = [receptive_field.compute(layers, image_size) for layers in geometries]
    # TensorFlow's "SAME" padding is symmetric for divisible sizes only.
    coarsest = max(field.stride for field in fields)
    if name == LITE0 and any(side % coarsest for side in image_size):
        raise ConfigError(f"{name} takes images whose sides divide by {coarsest}, got {image_size[0]}x{image_size[1]}")
    field = _joined_field(fields)
    if name == LITE0:
        field = replace(field, centre=_effective_centre(field))
    return Trunk(_Joined(trunk), field, tuple(channels), coarsest)


# Of the way from the middle of a cell's tile to the centre of its theoretical field: where its features look.
_LEANING = 0.25


def _effective_centre(field: ReceptiveField) -> float:
    """Where the cells of Lite0 look, in pixels; the theoretical centre lies 6 of them right and down of that.

    Its convolutions pad after the image only, so theory moves the centre by half a cell; its weights do not follow.
    Measured by spots of 8 pixels on solar cells and boards, at a stride of 16: 9.3 (three stages) and 10.1 (stage 4),
    where theory says 15 and the middle of the tile is 7.5.
    """
    tile = (field.stride - 1) / 2
    return tile + _LEANING * (field.centre - tile)


def names() -> list[str]:
    """Every trunk, torchvision's included."""
    from torchvision import models

    return [LITE0, *(name for name in models.list_models(module=models) if name.startswith(FAMILIES))]


def input_normalization(name: str) -> Normalization:
    """What the trunk's ImageNet weights expect."""
    return efficientnet_lite.INPUT_NORMALIZATION if name == LITE0 else IMAGENET


def load_pretrained(features: nn.Module, name: str, weights: Path | None = None) -> None:
    """Fill the trunk `name` with its ImageNet weights, in place.

    EfficientNet-Lite0 takes them from its package. Torchvision's networks, and the features of `fcdd.networks`' VGG
    (name "vgg11_bn"), take them from `weights`, a file with torchvision's state, or download them. Raises ConfigError
    when they are not to be had or do not fit.
    """
    inner = features.trunk if isinstance(features, _Joined) else features
    prefix = "" if isinstance(features, _Joined) else "features."
    state = efficientnet_lite.pretrained_state() if name == LITE0 else _torchvision_state(name, weights)
    wanted = inner.state_dict()
    wrong = [key for key in wanted if (v := state.get(prefix + key)) is None or v.shape != wanted[key].shape]
    if wrong:
        raise ConfigError(f"the weights lack a fitting {prefix}{wrong[0]}: expected the state of torchvision's {name}")
    broken = [key for key in wanted if not torch.isfinite(state[prefix + key]).all()]
    if broken:
        raise ConfigError(f"the weights of {name} hold NaN or infinity in {prefix}{broken[0]}; get the file again")
    inner.load_state_dict({key: state[prefix + key] for key in wanted})


class _Joined(nn.Module):
    """The outputs of a trunk's stages, concatenated on the grid of the first."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images_bchw: Tensor) -> Tensor:
        outputs: list[Tensor] = self.trunk(images_bchw)
        if len(outputs) == 1:
            return outputs[0]
        outputs = [each.float() for each in outputs]  # of bfloat16: torch resizes none with antialiasing on CPUs
        return torch.cat([outputs[0], *(_on_grid(other, outputs[0]) for other in outputs[1:])], 1)


def _on_grid(features: Tensor, first: Tensor) -> Tensor:
    # Averages where the grid of the first is coarser. Where it is finer there is nothing to average, and a faster way.
    is_coarser = (first.shape[2] < features.shape[2]) | (first.shape[3] < features.shape[3])  # torch.fx knows no "or"
    return F.interpolate(features, size=first.shape[2:], mode="bilinear", align_corners=False, antialias=is_coarser)


def _joined_field(fields: Sequence[ReceptiveField]) -> ReceptiveField:
    """Cells of the first field that see what any of them sees, and the neighbours used by the interpolation."""
    first = fields[0]
    reach = [field.extent + 2 * max(field.stride, first.stride) * (field != first) for field in fields]
    return replace(first, extent=max(reach))


class _TorchvisionTrunk(nn.Module):
    """The parts of a torchvision network up to the deepest stage, under torchvision's names."""

    def __init__(self, model: nn.Module, stages: Sequence[str]) -> None:
        super().__init__()
        order = list(_stage_names(model))
        kept = _cut(model, max(stages, key=order.index).split("."))
        for name, child in kept.named_children():
            self.add_module(name, child)
        for module in self.modules():  # working in place would change the output of an earlier stage
            if hasattr(module, "inplace"):
                setattr(module, "inplace", False)  # noqa: B010 (typed as a submodule)
        self._stages = tuple(stages)

    def forward(self, images_bchw: Tensor) -> list[Tensor]:
        outputs, hidden = {}, images_bchw
        for name, part in _parts(self):
            hidden = part(hidden)
            outputs[name] = hidden
        return [outputs[stage] for stage in self._stages]


def _torchvision_model(name: str) -> nn.Module:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ConfigError(f"torchvision cannot be imported ({error}); install the build that fits torch") from error
    if not name.startswith(FAMILIES) or name not in models.list_models(module=models):
        raise ConfigError(f"unknown backbone {name!r}; choose one of: {', '.join(names())}")
    model: nn.Module = models.get_model(name, weights=None)
    return model


def _check_stages(name: str, stages: Sequence[str], known: Sequence[str]) -> None:
    for stage in stages:
        if stage not in known:
            raise ConfigError(f"unknown stage {stage!r} of {name}; choose from: {', '.join(known)}")
    if len(set(stages)) < len(stages):
        raise ConfigError(f"expected each stage of {name} once, got {'+'.join(stages)}")


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The convolutional parts in order, with the containers "features" and "trunk_output" opened."""
    for name, child in model.named_children():
        if name in _CLASSIFIER:
            return
        if name == "features":
            yield from ((f"{name}.{inner}", part) for inner, part in child.named_children())
        else:
            yield name, child


def _stage_names(model: nn.Module) -> Iterator[str]:
    return (name for name, _ in _parts(model))


def _cut(model: nn.Module, path: Sequence[str]) -> nn.Sequential:
    """The children of `model` up to and including the part at `path`."""
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in model.named_children():
        kept[name] = _cut(child, path[1:]) if name == path[0] and path[1:] else child
        if name == path[0]:
            break
    return nn.Sequential(kept)


def _layers(trunk: nn.Module) -> Iterator[Layer]:
    """The convolutions and poolings of the longest path; gates that see the whole image do not count."""
    for name, module in trunk.named_modules():
        # A projection beside a residual block sees less than the block; squeeze-and-excitation sees everything.
        if "downsample" in name or ".fc" in name or not isinstance(module, nn.Conv2d | nn.MaxPool2d):
            continue
        kernel, stride, padding, dilation = (_single(getattr(module, key)) for key in _GEOMETRY)
        yield Layer((kernel - 1) * dilation + 1, stride, padding)


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")


def _single(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def _torchvision_state(name: str, path: Path | None) -> dict[str, Tensor]:
    source = str(path or name)
    try:
        if path is not None:
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
        else:
            from torchvision import models

            weights = models.get_model_weights(name).DEFAULT
            source = weights.url
            state = torch.hub.load_state_dict_from_url(source, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # torch.load raises anything for bytes that are no checkpoint
        raise ConfigError(
            f"cannot load the ImageNet weights {source}: {type(error).__name__} {str(error)[:200]!r}; give the "
            "file by --weights, or train with --no-pretrained"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"expected the state of torchvision's {name} in {source}, got {type(state).__name__}")
    return state
