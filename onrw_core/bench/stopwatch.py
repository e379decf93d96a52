"""Time of forward and backward passes by part, without gaps.

At every moment one part is running. A timed call marks its tensor inputs and outputs by identity functions; in the
backward pass the gradient reaches that of the outputs first and that of the inputs last, so the backward pass of the
part runs between them. Recomputation by checkpoints inside the backward pass is counted separately. Recording attention
maps belongs to the UNet, comparing them to the rest.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..attacks import ATTACKS
from ..diffusion.model import AttentionControl, AttentionMaps, Autoencoder, Conditioning, DiffusionModel
from ..extractors.base import Extractor
from ..imaging.geometry import Geometry

__all__ = ["PARTS", "Stopwatch", "TimedAutoencoder", "TimedExtractor", "TimedModel", "clock_of"]

UNET, VAE, EXTRACTOR, ATTACK, OPTIMISER = "UNet", "VAE", "extractor", "attacks", "optimiser"
AGAIN, REST = "recomputation", "rest"
PARTS = (UNET, VAE, EXTRACTOR, ATTACK, OPTIMISER, AGAIN, REST)


def clock_of(cpu_time: bool) -> Callable[[], float]:
    """The clock: wall time, or CPU time of this process."""
    return time.process_time if cpu_time else time.perf_counter


class Stopwatch:
    """Seconds by part.

    Args:
        device: On "cuda", every change of the part waits for the device, which makes the whole slower.
        cpu_time: See `clock_of`.

    Attributes:
        seconds: Part -> seconds so far.
    """

    def __init__(self, device: str = "cpu", cpu_time: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda = device.startswith("cuda")
        self._time = clock_of(cpu_time)
        self._part, self._since = REST, self._time()

    def start(self) -> None:
        """Reset all times; the current part is the rest."""
        self.seconds.clear()
        self.change(REST)
        self.seconds.clear()

    def change(self, part: str) -> str:
        """Make `part` the running part; returns the previous part."""
        if self._cuda:
            torch.cuda.synchronize()
        now = self._time()
        self.seconds[self._part] += now - self._since
        before, self._part, self._since = self._part, part, now
        return before

    def call(self, part: str, function: Callable, x: Tensor, *args: Any) -> Any:
        """``function(x, *args)``, timed in both directions; x is what gradients flow to."""
        backward = torch._C._current_graph_task_id() != -1
        before = self.change(AGAIN if backward else part)
        try:
            if not (torch.is_grad_enabled() and x.requires_grad):
                return function(x, *args)
            result = function(_Mark.apply(x, self, REST), *args)
            return _mapped(result, lambda tensor: _Mark.apply(tensor, self, part))
        finally:
            self.change(before)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context in which the time of attacks and optimisers is measured as well."""
        kinds = dict(ATTACKS)
        for name, kind in kinds.items():
            ATTACKS[name] = replace(kind, function=self._timed(kind.function))
        hooks = [
            register_optimizer_step_pre_hook(lambda *_: self.change(OPTIMISER) and None),
            register_optimizer_step_post_hook(lambda *_: self.change(REST) and None),
        ]
        try:
            yield
        finally:
            ATTACKS.update(kinds)
            for hook in hooks:
                hook.remove()

    def _timed(self, function: Callable) -> Callable:
        return lambda images, *args: self.call(ATTACK, function, images, *args)


class _Mark(torch.autograd.Function):
    """An identity function that changes the running part in the backward pass."""

    @staticmethod
    def forward(ctx, tensor: Tensor, watch: Stopwatch, part: str) -> Tensor:
        ctx.watch, ctx.part = watch, part
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.watch.change(ctx.part)
        return gradient, None, None


def _mapped(value: Any, mark: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it that carries a gradient marked."""
    if isinstance(value, Tensor):
        return mark(value) if value.requires_grad else value
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(v, mark) for v in value)
    if isinstance(value, dict):
        return {k: _mapped(v, mark) for k, v in value.items()}
    if isinstance(value, AttentionMaps):
        marked = _mapped(value.self_attention, mark), _mapped(value.cross_attention, mark)
        return AttentionMaps(*marked, value.sizes)
    if hasattr(value, "images"):  # Attacked
        return replace(value, images=_mapped(value.images, mark))
    return value


class TimedModel(DiffusionModel):
    """A model on a stopwatch."""

    def __init__(self, model: DiffusionModel, watch: Stopwatch) -> None:
        self._model, self._watch = model, watch
        self.name, self.sigmas = model.name, model.sigmas

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        conditionings: Sequence[Conditioning],
        control: AttentionControl | None = None,
    ) -> tuple[list[Tensor], AttentionMaps]:
        return self._watch.call(UNET, self._model.denoise, x, sigma, conditionings, control)


class TimedAutoencoder(Autoencoder):
    """An autoencoder on a stopwatch."""

    def __init__(self, autoencoder: Autoencoder, watch: Stopwatch) -> None:
        self._autoencoder, self._watch = autoencoder, watch
        self.name, self.factor, self.channels = autoencoder.name, autoencoder.factor, autoencoder.channels

    def encode(self, images: Tensor) -> Tensor:
        return self._watch.call(VAE, self._autoencoder.encode, images)

    def decode(self, latents: Tensor) -> Tensor:
        return self._watch.call(VAE, self._autoencoder.decode, latents)

    def decode_checkpointed(self, latents: Tensor) -> Tensor:
        return self._watch.call(VAE, self._autoencoder.decode_checkpointed, latents)


class TimedExtractor(Extractor):
    """An extractor on a stopwatch."""

    def __init__(self, extractor: Extractor, watch: Stopwatch) -> None:
        self._extractor, self._watch = extractor, watch
        self.name, self.num_bits = extractor.name, extractor.num_bits

    def logits(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        return self._watch.call(EXTRACTOR, self._extractor.logits, images, geometry)

    def loss_and_logits(self, images: Tensor, bits: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        return self._watch.call(EXTRACTOR, self._extractor.loss_and_logits, images, bits, geometry)
