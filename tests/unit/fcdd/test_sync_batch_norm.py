from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fcdd import networks
from fcdd.sync_batch_norm import SyncBatchNorm2d, _Normalize, synchronize


@pytest.fixture
def group(tmp_path: Path) -> None:  # type: ignore[misc]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("affine", [True, False])
def test_output_and_gradients_are_those_of_torchs_batch_norm(affine: bool) -> None:
    """Alone in its group; tests/integration/test_training.py has several workers."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, eps=1e-4, affine=affine).double()
    weight, bias = None, None
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        weight, bias = (value.detach().clone().requires_grad_() for value in (norm.weight, norm.bias))
    images, gradient = torch.randn(8, 6, 10, 12).double() + 5, torch.randn(8, 6, 10, 12).double()
    theirs, ours = (images.clone().requires_grad_() for _ in range(2))
    expected = norm(theirs)
    expected.backward(gradient)
    output, mean, variance, count = _Normalize.apply(ours, weight, bias, 1e-4)
    output.backward(gradient)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(variance, images.var((0, 2, 3), correction=0))
    assert float(count) == 8 * 10 * 12
    if affine:
        assert weight is not None
        assert bias is not None
        torch.testing.assert_close(weight.grad, norm.weight.grad)
        torch.testing.assert_close(bias.grad, norm.bias.grad)


def test_a_synchronised_network_keeps_its_weights_and_scores_alone_as_before() -> None:
    torch.manual_seed(0)
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32))
    names, images = list(network.state_dict()), torch.rand(4, 3, 32, 32)
    before = network.eval()(images)
    synchronize(network)
    assert sum(isinstance(module, SyncBatchNorm2d) for module in network.modules()) == 2
    assert list(network.state_dict()) == names
    assert torch.equal(network(images), before)
