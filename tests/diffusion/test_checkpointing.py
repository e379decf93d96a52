from contextlib import contextmanager

import pytest
import torch
from torch import nn

from onrw_core.diffusion.checkpointing import CheckpointingOnDemand, outermost, recomputed


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
    with pytest.raises(KeyError, match="number"), recomputed([block]):
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


def test_checkpointing_begins_where_memory_ends_and_draws_the_same():
    calls = []

    def compute(x, generator, *, checkpointing):
        drawn = torch.rand(2, generator=generator)
        calls.append(checkpointing)
        if not checkpointing and len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return x + drawn

    x, expected = torch.ones(2), torch.Generator().manual_seed(5)
    generator, compute_on_demand = torch.Generator().manual_seed(5), CheckpointingOnDemand(compute)
    for _ in range(3):
        assert torch.equal(compute_on_demand(x, generator), x + torch.rand(2, generator=expected))
    assert calls == [False, False, True, True]


def test_memory_that_is_too_small_with_checkpointing_is_an_error():
    def compute(x, generator, *, checkpointing):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        CheckpointingOnDemand(compute)(torch.ones(2), torch.Generator())


class Stream(nn.Module):
    """A block as transformers for sampling are written: it adds to its input in place, after its norm kept it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.linear(self.norm(x)).tanh()
        return x


def streams(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8), Stream(), Stream()).to(dtype).requires_grad_(False)


def test_additions_in_place_are_right():
    network = streams()
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(2, 8).requires_grad_()
    with recomputed(outermost(network, ("Stream",))):
        out = network(x)
        (found,) = torch.autograd.grad(out.square().sum(), x)
        torch.autograd.gradcheck(network, (x,))
    with torch.no_grad():
        assert torch.equal(network(x), out)
    with pytest.raises(RuntimeError, match="inplace operation"):
        torch.autograd.grad(network(x).square().sum(), x)  # what the copies are for
    assert found.abs().sum() > 0


def test_an_input_that_is_changed_from_outside_is_an_error():
    network = streams()
    x = torch.ones(2, 8, dtype=torch.float64, requires_grad=True)
    with recomputed([network[1]]):
        between = network[0](x)
        loss = network[1](between).square().sum()
        between += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_random_numbers_are_the_same_again():
    block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).requires_grad_(False)
    x = torch.ones(4, 8, requires_grad=True)
    with recomputed([block]):
        out = block(x)
        torch.rand(3)
        (gradient,) = torch.autograd.grad(out.sum(), x)
    kept = (out != 0).to(torch.float32) * 2
    torch.testing.assert_close(gradient, kept @ block[0].weight)
