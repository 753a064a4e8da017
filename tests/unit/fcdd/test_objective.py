import math

import pytest
import torch

from fcdd import networks, objective


def test_map_of_hand_computed_outputs() -> None:
    output = torch.tensor([[0.0, math.sqrt(3)], [-math.sqrt(8), math.sqrt(15)]]).view(1, 1, 2, 2)
    assert objective.anomaly_map(output).flatten().tolist() == pytest.approx([0, 1, 2, 3], abs=1e-6)
    assert objective.image_score(objective.anomaly_map(output)).item() == pytest.approx(1.5)


def test_nominal_loss_is_the_score_and_anomalous_loss_falls_with_evidence() -> None:
    maps = torch.tensor([0.5, 0.5, 3.0]).view(3, 1, 1, 1)
    nominal, faint, strong = objective.image_loss(maps, torch.tensor([0, 1, 1])).tolist()
    assert nominal == pytest.approx(0.5)
    assert faint == pytest.approx(-math.log(1 - math.exp(-0.5)), rel=1e-6)
    assert strong < faint


def test_label_is_respected_when_all_labels_are_anomalous() -> None:
    maps = torch.full((4, 1, 2, 2), 0.1)
    assert objective.image_loss(maps, torch.ones(4)).mean() > 2


@pytest.mark.parametrize("labels", [torch.zeros(9), torch.ones(9)])
@pytest.mark.parametrize("autocast", [False, True])
def test_loss_and_gradient_are_finite_for_every_output(labels: torch.Tensor, autocast: bool) -> None:
    output = torch.tensor([-1e3, -1, -1e-3, -1e-8, 0, 1e-8, 1e-3, 1, 1e3]).view(9, 1, 1, 1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = objective.image_loss(objective.anomaly_map(output), labels)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize("mask", [torch.zeros(9, 1, 2, 2), torch.ones(9, 1, 2, 2), torch.eye(2).expand(9, 1, 2, 2)])
@pytest.mark.parametrize("autocast", [False, True])
def test_pixel_loss_and_gradient_are_finite_for_every_output(mask: torch.Tensor, autocast: bool) -> None:
    values = torch.tensor([-1e3, -1, -1e-3, -1e-8, 0, 1e-8, 1e-3, 1, 1e3]).view(9, 1, 1, 1)
    output = values.expand(9, 1, 2, 2).clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = objective.pixel_loss(objective.anomaly_map(output), mask, lambda m: m)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


def test_wrong_labels_and_masks_are_refused_and_not_taken_for_anomalous() -> None:
    maps = torch.full((2, 1, 2, 2), 0.3)
    with pytest.raises(ValueError, match=r"labels of 0 .* got \[-1, 1\]"):
        objective.image_loss(maps, torch.tensor([-1, 1]))
    with pytest.raises(ValueError, match=r"masks of 0 .* got \[255"):
        objective.pixel_loss(maps, torch.full((2, 1, 2, 2), 255), lambda m: m)
    with pytest.raises(ValueError, match=r"masks of shape \(2, 1, 2, 2\), got \(2, 1, 1, 1\)"):
        objective.pixel_loss(maps, torch.ones(2, 1, 1, 1), lambda m: m)


def test_the_loss_does_not_look_at_the_modules_mode() -> None:
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32)).eval()
    images, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 1])
    losses = objective.image_loss(objective.anomaly_map(network(images)), labels)
    assert losses.shape == (3,)
    assert losses.requires_grad


def test_pixel_loss_divides_both_parts_by_all_pixels() -> None:
    maps = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    mask = torch.tensor([[0, 0], [1, 1]]).view(1, 1, 2, 2)
    loss = objective.pixel_loss(maps, mask, lambda m: m).item()
    assert loss == pytest.approx((1 + 2) / 4 - math.log(1 - math.exp(-(3 + 4) / 4)), rel=1e-6)


def test_pixel_loss_of_an_empty_mask_is_the_nominal_part_alone() -> None:
    maps = torch.full((1, 1, 2, 2), 0.3)
    assert objective.pixel_loss(maps, torch.zeros(1, 1, 2, 2), lambda m: m).item() == pytest.approx(0.3)


@pytest.mark.filterwarnings("ignore:Input #0 requires gradient")  # float32 is what we test
def test_gradients_agree_with_finite_differences() -> None:
    output = torch.tensor([0.3, -1.2, 2.0, 0.9]).view(2, 1, 1, 2).requires_grad_()
    labels = torch.tensor([0, 1])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return objective.image_loss(objective.anomaly_map(x), labels)

    # The objective computes in float32 by design, so the differences are coarse.
    assert torch.autograd.gradcheck(loss, (output,), eps=1e-2, atol=1e-2, rtol=1e-2)
