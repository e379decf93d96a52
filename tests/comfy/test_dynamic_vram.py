"""Gradients where ComfyUI hands out weights call by call (DynamicVRAM: its default on NVIDIA cards).

The cards' part of it is emulated in main memory; what decides which weights a layer gets is ComfyUI's own code. Three
modes: pages that stay resident, filled by whichever node ran first; pages that are given away between forward and
backward pass; and no page at all, so that all layers share one buffer.
"""

import contextlib
import importlib

import numpy as np
import pytest
import torch
from torch import nn

SHAPE = (1, 4, 16, 16)
SIGMA = torch.tensor(1.0)
MODES = ("resident", "evicted", "shared")
SMALLEST = 16 * 1024  # bytes; smaller layers are always on the card


class Elsewhere(nn.Parameter):
    """A weight that is not on the device of the computation."""

    device = property(lambda self: torch.device("meta"))


class Stream:
    """A stream of the card, on which everything happens at once."""

    __enter__ = __exit__ = wait_stream = lambda self, *args: None


class SharedBuffer:
    """The cast buffer of a stream, which each layer overwrites."""

    def __init__(self):
        self.bytes = np.zeros(1 << 24, np.uint8)

    def size(self):
        return len(self.bytes)

    def get(self, size, offset):
        return self.bytes[offset : offset + size]


class Pages:
    """Memory of the card for weights."""

    def __init__(self):
        self.memory, self.generation = [], 1

    def give_away(self):
        """To another model, which writes into them; the generation tells ComfyUI to fill them again."""
        for page in self.memory:
            page[:] = 77
        self.generation += 1


@contextlib.contextmanager
def dynamic(networks, mode):
    """Within it, the layers of loaded networks get their weights as under DynamicVRAM; yields the resident pages."""
    import comfy.memory_management
    import comfy.model_management as management
    import comfy.ops
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    buffer, pages = SharedBuffer(), Pages()
    cast = comfy.ops.cast_bias_weight

    def on_a_card(*args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(management, "is_device_cpu", lambda device: False)
            return cast(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.ops, "cast_bias_weight", on_a_card)
        patch.setattr(comfy_aimdo.model_vbar, "vbar_fault", lambda page: None if mode == "shared" else pages.generation)
        patch.setattr(comfy_aimdo.model_vbar, "vbar_signature_compare", lambda a, b: a is not None and a == b)
        patch.setattr(comfy_aimdo.model_vbar, "vbar_unpin", lambda page: None)
        patch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda memory, device: torch.as_tensor(memory))
        patch.setattr(management, "get_offload_stream", lambda device: Stream() if mode == "shared" else None)
        patch.setattr(management, "get_aimdo_cast_buffer", lambda stream, device: buffer)
        patch.setattr(management, "sync_stream", lambda device, stream: None)
        patch.setattr(management, "current_stream", lambda device: None)
        patch.setattr(comfy.pinned_memory, "get_pin", lambda *args, **kwargs: None)
        patch.setattr(comfy.pinned_memory, "pin_memory", lambda *args, **kwargs: None)
        before = []
        for name, layer in [item for network in networks for item in network.named_modules()]:
            own = list(layer._parameters.values())
            weights = [layer._parameters.get(key) for key in ("weight", "bias")]
            size = comfy.memory_management.vram_aligned_size(weights)
            if not hasattr(layer, "comfy_cast_weights") or size < SMALLEST or len(own) > 2:
                continue
            before.append((layer, dict(layer._parameters), layer.comfy_cast_weights))
            for key, weight in zip(("weight", "bias"), weights, strict=True):
                if weight is not None:
                    layer._parameters[key] = Elsewhere(weight, requires_grad=False)
                    layer._parameters[key]._model_dtype = weight.dtype
            pages.memory.append(np.zeros(size, np.uint8))
            layer._v, layer._v_signature = pages.memory[-1], None
            layer.seed_key, layer.comfy_cast_weights = name, True
        assert before
        try:
            yield pages
        finally:
            for layer, parameters, casting in before:
                layer._parameters.update(parameters)
                layer.comfy_cast_weights = casting
                for attribute in ("_v", "_v_signature", "_v_weight", "_v_bias", "seed_key"):
                    layer.__dict__.pop(attribute, None)


@pytest.fixture(scope="module")
def gradient(checkpoint, prompts, with_control, adapter, stock):
    """Computes the gradients of a decoded step with a ControlNet, at once and by blocks; and the networks of it."""
    pytest.importorskip("comfy_aimdo", reason="this ComfyUI has no DynamicVRAM")
    model, _, vae = checkpoint
    prompt, null = (
        adapter.from_comfy(with_control[0], adapter.POSITIVE),
        adapter.from_comfy(prompts[1], adapter.NEGATIVE),
    )

    def compute(between=lambda: None):
        def work(network, autoencoder):
            def loss(x):
                return autoencoder.decode(network.guided(x, SIGMA, prompt, null, 4.5)[0]).square().sum()

            found = []
            for around in (contextlib.nullcontext, network.recomputing):
                x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
                with around():
                    value = loss(x)
                between()
                found.append(torch.autograd.grad(value, x)[0])
            return torch.stack(found)

        with torch.inference_mode():
            return adapter.run(model, vae, prompt, null, SHAPE, work)

    networks = [model.model.diffusion_model, vae.first_stage_model, with_control[0][0][1]["control"].control_model]
    return compute, networks


@pytest.mark.parametrize("mode", MODES)
def test_gradients_and_stock_sampling_stay_as_they_are(mode, gradient, checkpoint, prompts, sampled):
    compute, networks = gradient
    expected, image = compute(), sampled(checkpoint[0], *prompts)
    with dynamic(networks, mode) as pages:
        before = sampled(checkpoint[0], *prompts)  # first, so that pages are filled in inference mode
        found = compute(*[pages.give_away] * (mode == "evicted"))
        assert all(getattr(parameter, "_model_dtype", None) for parameter in elsewhere(networks))
        after = sampled(checkpoint[0], *prompts)
    assert (found - expected).norm() == 0
    assert torch.equal(before, image) and torch.equal(after, image)
    assert not any(
        layer.weight_function for n in networks for layer in n.modules() if hasattr(layer, "weight_function")
    )


@pytest.mark.parametrize("mode", MODES)
def test_without_copies_they_are_wrong(mode, gradient, checkpoint, prompts, sampled, adapter, monkeypatch):
    """That the emulation shows what it is there for."""
    compute, networks = gradient
    expected = compute()
    run = importlib.import_module(f"{adapter.__name__}.run")
    monkeypatch.setattr(run, "fresh_weights", lambda module, device: contextlib.nullcontext())
    with dynamic(networks, mode) as pages:
        sampled(checkpoint[0], *prompts)
        try:
            found = compute(*[pages.give_away] * (mode == "evicted"))
        except (RuntimeError, ValueError) as error:
            assert mode != "shared" and "Inference tensors" in str(error)
        else:
            assert mode == "shared" and (found - expected).norm() / expected.norm() > 0.1


def elsewhere(networks):
    found = [p for network in networks for p in network.parameters() if isinstance(p, Elsewhere)]
    assert found
    return found
