from contextlib import contextmanager

import pytest
import torch
from torch import nn

from onrw_core.recompute import outermost, recomputed


class Block(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.linear, self.inner = nn.Linear(8, 8), inner or nn.Identity()
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor, options: dict) -> torch.Tensor:
        self.seen.append(options["number"])
        return self.inner(self.linear(x).tanh().exp()) * options["number"]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), nn.Sequential(nn.Linear(8, 8)), Block(nn.Sequential(nn.Linear(8, 8)))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        options = {}
        for number, layer in enumerate(self.layers, 1):
            options["number"] = number  # the same dictionary for all, as in ComfyUI
            x = layer(x, options) if isinstance(layer, Block) else layer(x)
        return x


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def gradient(network: nn.Module) -> tuple[torch.Tensor, int]:
    """Of the output's square in the input, and how many numbers the graph holds."""
    x, held = torch.linspace(-1, 1, 32).reshape(4, 8).requires_grad_(), 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        held += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = network(x).square().sum()
    loss.backward()
    return x.grad, held


def test_outermost_blocks_alone(network):
    assert list(outermost(network, ("Block",))) == [network.layers[0], network.layers[2]]
    assert list(outermost(network, ("Sequential", "Block"))) == list(network.layers)
    assert not list(outermost(network, ("Attention",)))


def test_the_same_gradient_from_less_memory(network):
    plain, held = gradient(network)
    blocks = list(outermost(network, ("Block",)))
    with recomputed(blocks):
        again, less = gradient(network)
    assert torch.equal(again, plain) and less < held
    assert [block.seen for block in blocks] == [[1, 1, 1], [3, 3, 3]]  # plainly, first and again, with its own options
    assert all("forward" not in block.__dict__ for block in blocks)


def test_without_gradients_nothing_is_computed_twice(network):
    with torch.no_grad(), recomputed(network.layers[:1]):
        network(torch.zeros(1, 8))
    assert network.layers[0].seen == [1]


def test_what_others_put_in_place_of_forward_comes_back(network):
    block = network.layers[0]
    theirs = block.forward = block.forward
    with pytest.raises(KeyError), recomputed([block]):
        block(torch.zeros(1, 8), {})
    assert block.__dict__["forward"] is theirs


def test_a_context_around_the_call_is_there_again(network):
    block, scale = network.layers[0], [1.0]
    block.inner = type("Scaled", (nn.Module,), {"forward": lambda _, x: x * scale[0]})()

    @contextmanager
    def doubled():
        scale[0] = 2.0
        yield
        scale[0] = 1.0

    x = torch.ones(1, 8, requires_grad=True)
    with doubled():
        (plain,) = torch.autograd.grad(block(x, {"number": 1}).sum(), x)
    with doubled(), recomputed([block], doubled):
        out = block(x, {"number": 1}).sum()
    assert scale == [1.0]
    torch.testing.assert_close(torch.autograd.grad(out, x)[0], plain)
