"""`onrw bench memory`: GPU memory that marking needs, computed without a GPU.

Stable Diffusion's networks are built as shapes without contents (torch's fake tensors), the original branch and one
iteration forward and backward run on them, and every storage counts from the operation that makes it to the one after
which nothing holds it. Composition, attacks and extractor work on one image and are left out, as are the CUDA
context, workspaces of kernels, and what the allocator wastes: leave half a GiB to a GiB for them.

With --measure, images are marked instead, and the main memory of that is measured (`main_memory`).
"""

from __future__ import annotations

import argparse
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..diffusion.model import Conditioning
from ..diffusion.ode import schedule
from ..stages.constrained_denoising import marked_branch, original_branch
from ..stages.inversion_record import Inversion
from ..stages.noise_optimisation import PRESETS, Settings
from .cache import publish
from .shapes import DTYPES, SHAPES, TOKENS, noise_schedule, random_networks

__all__ = ["Footprint", "add_arguments", "footprint", "run"]

SIZES = {"sd15-random": 512, "sdxl-random": 1024}  # pixels that the networks were made for
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench memory`."""
    add = parser.add_argument
    add("--model", nargs="+", choices=tuple(SHAPES), default=list(SHAPES), help="whose shapes (default: all)")
    add(
        "--size", type=int, help="pixels of the sides; by default 512 for SD 1.5 and 1024 for SDXL, as embed to measure"
    )
    add("--preset", nargs="+", choices=tuple(PRESETS), default=["fast", "paper"])
    add("--steps", type=int, nargs="+", help="denoising steps, instead of the preset's")
    add("--checkpointing", action="store_true", help="recompute activations with every preset")
    add("--dtype", choices=tuple(DTYPES), default="fp16", help="of the weights")
    add(
        "--measure",
        type=_sides,
        nargs="+",
        metavar="WIDTHxHEIGHT",
        help="instead, mark images of these sizes by the embedded model, and measure main memory",
    )
    add("--iterations", type=int, default=2, help="of each measured marking")
    add("--json", type=Path, help="report file")


def _sides(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write e.g. 6000x4000")
    return int(width), int(height)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON; 0 on success."""
    if args.measure:
        return _measure(args.measure, args.size, args.iterations, args.json)
    rows = []
    print(
        f"{'model':<14}{'pixels':>7}{'preset':>10}{'steps':>7}{'weights':>9}{'original':>10}{'iteration':>11}{'main':>8}"
    )
    for model in args.model:
        for preset in args.preset:
            for steps in args.steps or [PRESETS[preset].steps]:
                settings = PRESETS[preset].with_(steps=steps, checkpointing=args.checkpointing or None)
                size = args.size or SIZES[model]
                needed = footprint(model, size, settings, DTYPES[args.dtype])
                rows.append({"model": model, "size": size, "preset": preset, "steps": steps, **needed})
                figures = f"{needed['weights']:>9.2f}{needed['original']:>10.2f}{needed['iteration']:>11.2f}"
                print(f"{model:<14}{size:>7}{preset:>10}{steps:>7}{figures}{needed['main_memory']:>8.2f}", flush=True)
    print("GiB: weights; most at a time, weights included, in the original branch and in an iteration; main memory")
    if args.json:
        publish(args.json, {"dtype": args.dtype, "checkpointing": args.checkpointing, "rows": rows})
    return 0


def _measure(sizes: list[tuple[int, int]], size: int | None, iterations: int, report: Path | None) -> int:
    from .main_memory import measured

    rows = []
    print(f"{'width':>7}{'height':>8}{'working':>9}{'GB':>7}{'CPU s':>7}")
    for width, height in sizes:
        rows.append(row := measured(width, height, size, iterations))
        print(f"{width:>7}{height:>8}{row['size']:>9}{row['gigabytes']:>7.2f}{row['cpu_seconds']:>7.0f}", flush=True)
    if report:
        publish(report, {"rows": rows})
    return 0


class Footprint(TorchDispatchMode):
    """Bytes of all storages made in the context, now and at most.

    Attributes:
        bytes: Now.
        peak: At most; may be set back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.count(value)
        return out


def footprint(name: str, size: int, settings: Settings, dtype: torch.dtype = torch.float16) -> dict[str, float]:
    """GiB that the model's part of marking needs.

    Args:
        name: Key of `SHAPES`.
        size: Pixels of both sides, a multiple of 64.
        settings: Steps, guidance, constraint and checkpointing matter.
        dtype: Of the weights.

    Returns:
        ``weights``; ``original`` and ``iteration``, the peaks of the original branch and of one iteration forward and
        backward, weights included; ``main_memory``, the maps of every step that are kept outside of GPU memory.
    """
    from ..diffusion.backends.diffusers import DiffusersAutoencoder, DiffusersModel

    class Shapes(DiffusersModel):
        def timestep(self, sigma: Tensor | float) -> int:
            return 0  # which one does not matter, and there are no values to find it with

    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        unet, vae = random_networks(name, dtype)
    alphas = noise_schedule()
    model, autoencoder = Shapes(unet, alphas, name=name), DiffusersAutoencoder(vae, name=name)
    sigmas = schedule(model.sigmas, settings.steps, settings.start_sigma)
    side = size // autoencoder.factor
    with fake, Footprint() as memory:
        for network in (unet, vae):
            for parameter in network.parameters():
                memory.count(parameter)
        weights = memory.bytes
        positive, null = (
            Conditioning(torch.zeros(1, TOKENS, unet.config.cross_attention_dim), content=(1, 2)) for _ in range(2)
        )
        latents = torch.zeros(len(sigmas), 1, autoencoder.channels, side, side)
        inversion = Inversion(latents, sigmas, None, positive, null, settings.guidance, settings.method, name)
        original = original_branch(model, autoencoder, inversion, settings.constraint)
        kept = [*original.reference, *original.inject]
        main = sum(m.nbytes for maps in kept for m in maps.self_attention.values())
        before, memory.peak = memory.peak, memory.bytes
        delta = torch.zeros_like(latents[0], requires_grad=True)
        _, decoded, attention_loss = marked_branch(
            model, autoencoder, inversion, delta, original, checkpointing=settings.checkpointing
        )
        (decoded.square().mean() + attention_loss).backward()
    return {
        "weights": weights / GIB,
        "original": (before - main) / GIB,
        "iteration": (memory.peak - main) / GIB,
        "main_memory": main / GIB,
    }
