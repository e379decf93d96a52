"""The columns of the table of model families: what is tried on each, each a function that returns its cell or fails.

A cell is what was measured, or why the family does without. The tests run all columns on one family of each mechanism,
`family_table.py` on every family.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy_extras.nodes_custom_sampler as samplers
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

GUIDANCE = 3.0
SIGMA = 1.0  # of the core: level .5 of a flow model
STEPS = 20
DIFFERENCE = 0.2  # of the finite differences, along unit vectors
SIDES = {"PixArt": 40}  # ComfyUI's network divides by zero below 33
PIXELS = {"PixArt": 320, "Flux2": 256, "HunyuanImage": 512}


def rms(t: Tensor) -> float:
    return t.detach().float().square().mean().sqrt().item()


@dataclass
class Case:
    """A family's tiny model with VAE and prompts, and the pack's modules."""

    name: str
    families: Any
    pack: str

    def __post_init__(self) -> None:
        self.model = self.families.model(self.name)
        self.vae = self.families.vae(self.name)
        self.positive, self.negative = (self.families.conditioning(self.name, seed) for seed in (1, 2))
        self.adapter = self.module("nodes.adapter")
        self.latent = self.families.latent(self.name, SIDES.get(self.name, 16))
        self.prompt = self.adapter.from_comfy(self.positive, self.adapter.POSITIVE)
        self.null = self.adapter.from_comfy(self.negative, self.adapter.NEGATIVE)

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{self.pack}.{name}")

    def run(self, work: Callable[..., Any], vae: Any = None, model: Any = None) -> Any:
        return self.adapter.run(model or self.model, vae, self.prompt, self.null, tuple(self.latent.shape), work)

    def inverted(self, network: Any, **options: Any) -> Any:
        inversion = self.module("onrw_core.stages.inversion")
        options = {"steps": STEPS, "start_sigma": SIGMA, **options}
        states = inversion.invert(network, self.latent, self.prompt, self.null, **options)
        return self.module("onrw_core.stages.progress").result_of(states)

    def replayed(self, network: Any, record: Any, **options: Any) -> Tensor:
        replay = self.module("onrw_core.stages.inversion").replay
        with torch.no_grad():
            return self.module("onrw_core.stages.progress").result_of(replay(network, record, **options))


def round_trip(case: Case) -> str:
    """Inversion and back, plain and fixed-point, without guidance."""

    def work(network, _):
        found = []
        for method in ("ddim", "fixed-point"):
            record = case.inverted(network, method=method)
            found.append(rms(case.replayed(network, record) - case.latent) / rms(case.latent))
        return found

    plain, fixed = case.run(work)
    assert plain < 0.2 and fixed <= 1e-4, (plain, fixed)
    return f"{plain:.0e} / {fixed:.0e}"


def null_text(case: Case) -> str:
    """The share of the error that guidance adds which null-text inversion takes away."""

    def work(network, _):
        options = {"steps": 4, "guidance": 7.5}
        try:
            tuned = case.inverted(network, method="null-text", inner_steps=24, **options)
        except ValueError as error:
            return str(error)
        plain = case.inverted(network, **options)
        back = [case.replayed(network, *each) for each in ((tuned,), (plain,))]
        back.append(case.replayed(network, plain, guidance=1.0))
        with_null, drift, floor = (rms(x - case.latent) for x in back)
        return (drift - with_null) / (drift - floor)

    found = case.run(work)
    if case.adapter.family_of(case.model.model).distilled:
        assert "no unconditional branch" in found
        return "refused"
    assert found > 0.2, found
    return f"{min(found, 1.0):.0%}"


def sampler(case: Case) -> str:
    """The guider path, and a stock CFGGuider, against the core's replay, with the stock sampler euler."""
    guider_of = case.module("nodes.adapter.guider")

    def work(network, _):
        record = case.inverted(network, guidance=GUIDANCE, steps=6)
        return record, case.replayed(network, record)

    record, expected = case.run(work)
    assert rms(expected - record.latents[-1]) > 1e-3 * rms(expected)  # guidance moves it: the paths are told apart
    with torch.inference_mode():
        noise, sigmas, samples = guider_of.start_of(case.model, record.latents[0], record.sigmas)
        stock = comfy.samplers.CFGGuider(case.model)
        stock.set_conds(case.positive, case.negative)
        stock.set_cfg(GUIDANCE)
        worst = 0.0
        for guider in (guider_of.InversionGuider(case.model, [record]), stock):
            node = samplers.SamplerCustomAdvanced
            arguments = noise, guider, comfy.samplers.sampler_object("euler"), sigmas, {"samples": samples.clone()}
            out = node.execute(*arguments).args if hasattr(node, "execute") else node().sample(*arguments)
            found = case.adapter.from_latent(case.model.model, out[0]["samples"])
            worst = max(worst, rms(found - expected) / rms(expected))
    assert worst <= 1e-5, worst
    return f"{worst:.0e}"


def gradient(case: Case) -> str:
    """Gradient against finite differences in double precision; the same with recomputation, of blocks and of all."""
    weights, start, *along = (
        torch.randn(case.latent.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(5)
    )
    along = [vector / vector.norm() for vector in along]

    def work(network, _):
        def value(x):
            return (network.guided(x, torch.tensor(SIGMA), case.prompt, case.null, GUIDANCE)[0] * weights).sum()

        def by_blocks(x):
            with network.recomputing():
                return value(x)

        def derivative(function):
            x = start.clone().requires_grad_()
            return torch.autograd.grad(function(x), x)[0]

        plain = derivative(value)
        for way in (by_blocks, lambda x: checkpoint(by_blocks, x, use_reentrant=False)):
            assert torch.equal(derivative(way), plain)
        with torch.no_grad():
            moved = [value(start + DIFFERENCE * u) - value(start - DIFFERENCE * u) for u in along]
        return torch.stack([(plain * u).sum() for u in along]), torch.stack(moved) / (2 * DIFFERENCE)

    found, expected = case.run(work, model=case.families.model(case.name, torch.float64))
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < 1e-3, error
    return f"{error:.0e}"


def constraint(case: Case) -> str:
    """The constraint's maps are recorded without changing a bit, follow the image, and carry gradients."""
    attention = case.module("onrw_core.diffusion.attention")
    models = case.module("onrw_core.diffusion.model")

    def work(network, _):
        rule = attention.record_rule(tuple(case.latent.shape[-2:]), network.factor)
        control = models.AttentionControl(rule, mean=True)
        x, sigma = case.latent.clone().requires_grad_(), torch.tensor(SIGMA)
        plain, _ = network.guided(x, sigma, case.prompt, case.null, GUIDANCE)
        same, maps = network.guided(x, sigma, case.prompt, case.null, GUIDANCE, control)
        assert torch.equal(plain, same) and maps.self_attention
        _, other = network.guided(x.detach().flip(-1), sigma, case.prompt, case.null, GUIDANCE, control)
        for found in maps.self_attention.values():
            torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))

        def loss(recompute):
            with network.recomputing() if recompute else contextlib.nullcontext():
                _, maps = network.guided(x, sigma, case.prompt, case.null, GUIDANCE, control)
            recorded.extend(map(weakref.ref, maps.self_attention.values()))
            return torch.autograd.grad(attention.self_attention_loss(maps, other), x)[0]

        recorded = []
        assert loss(False).abs().sum() > 0 and torch.equal(loss(True), loss(False))
        gc.collect()
        assert all(kept() is None for kept in recorded)  # nothing keeps maps and graph
        return network.maps, len(maps.self_attention)

    kind, layers = case.run(work)
    return f"{kind}, {layers}"


def pseudo_mask(case: Case) -> str:
    """Each word's own cross-attention makes the mask."""
    stages = case.module("onrw_core.stages.constrained_denoising")

    def work(network, _):
        record = case.inverted(network, steps=2)

        def mask(word):
            named = replace(record, positive=replace(record.positive, word=word))
            return stages.replay_original(network, named, stages.Constraint(mask="soft")).mask

        return mask((1,)), mask((5,)), network.maps

    with _logged() as messages:
        first, second, kind = case.run(work)
    if kind != "attention":
        assert first is None and any("no pseudo-mask" in message for message in messages)
        return "none, says so"
    for found in (first, second):
        assert found.shape[-2:] == case.latent.shape[-2:] and found.min() >= 0 and found.max() <= 1
    assert first.std() > 0 and (first - second).abs().mean() > 1e-3
    return "yes"


def injection(case: Case) -> str:
    """The original's own attention changes nothing, and holds changed noise nearer to the original."""
    stages = case.module("onrw_core.stages.constrained_denoising")

    def work(network, _):
        record = case.inverted(network, steps=2)
        try:
            held = stages.replay_original(network, record, stages.Constraint(inject=True))
        except ValueError as error:
            return str(error)
        delta = torch.randn(case.latent.shape, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            own, _ = stages.denoise(network, record, record.latents[0], held)
            moved, _ = stages.denoise(network, record, stages.perturbed(record, delta), held)
            free = case.replayed(network, record, x=stages.perturbed(record, delta))
        assert rms(moved - free) > 1e-6 * rms(free)
        return rms(own - held.latent) / rms(held.latent)

    found = case.run(work)
    if isinstance(found, str):
        assert "none can be injected" in found
        return "refused"
    assert found < 1e-4, found
    return f"{found:.0e}"


def record(case: Case) -> str:
    """A record through a file replays to the identical latent, with either prompt's own options."""
    inversion = case.module("onrw_core.stages.inversion_record").Inversion
    made = case.run(lambda network, _: case.inverted(network, steps=2, guidance=GUIDANCE))
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "record.safetensors")
        loaded = case.adapter.prepared(inversion.load(Path(folder) / "record.safetensors"))

    def replayed(some):
        return case.adapter.run(
            case.model,
            None,
            some.positive,
            some.null,
            tuple(case.latent.shape),
            lambda network, _: case.replayed(network, some),
        )

    assert torch.equal(replayed(made), replayed(loaded))
    return "identical"


def batch(case: Case) -> str:
    """The nodes take a batch as images: the second image's inversion is what it is alone."""
    node = case.module("nodes.inversion").NullTextInversionNode
    pair = torch.cat([case.latent, case.latent.flip(-1)])
    schedule = {"preset": "fast", "schedule": "custom", "steps": 2, "start_sigma": 0.2, "guidance": 1.0}

    def inverted(latents):
        samples = {"samples": case.adapter.to_latent(case.model.model, latents)}
        model = {"model": case.model, "positive": case.positive, "negative": case.negative}
        arguments = {"method": "as preset", "inner_steps": 3, "convention": "source", **schedule}
        with torch.inference_mode():
            return node.execute(**model, latent=samples, **arguments).args[0]

    both, alone = inverted(pair), inverted(pair[1:])
    assert len(both) == 2 and torch.equal(both[1].latents, alone[0].latents)
    assert not torch.equal(both[0].latents, both[1].latents)
    return "2"


def preset(name: str) -> Callable[[Case], str]:
    """Embedding with a preset: inversion, two iterations, constrained denoising, composition."""

    def cell(case: Case) -> str:
        embed = case.module("onrw_core.pipeline").embed
        settings = case.module("onrw_core.stages.noise_optimisation").PRESETS[name]
        key = case.module("onrw_core.payload.keys").Key(bytes(range(32)))
        reader = case.module("onrw_core.extractors.keyed.extractor").KeyedExtractor(key)
        side = PIXELS.get(case.name, 128)
        coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(3))
        image = torch.nn.functional.interpolate(coarse, side, mode="bicubic")[0].clamp(0, 1)
        bits = torch.arange(48) % 2
        short = settings.with_(iterations=2, attacks=1, steps=min(settings.steps, 2), warm_steps=2)

        def work(network, autoencoder):
            return embed(
                image,
                network,
                autoencoder,
                reader,
                bits,
                positive=case.prompt,
                null=case.null,
                settings=short,
                generator=torch.Generator().manual_seed(1),
                size=side,
            )

        marked = case.run(work, case.vae)
        (watermark,) = marked.watermarks
        assert watermark.delta.abs().max() > 0 and not torch.equal(marked.image, image)
        distilled = case.adapter.family_of(case.model.model).distilled
        assert watermark.inversion.method == ("fixed-point" if distilled else settings.method)
        assert watermark.inversion.guidance == (1.0 if distilled else settings.guidance)
        return watermark.inversion.method

    return cell


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            messages.append(entry.getMessage())

    handler, root = Handler(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield messages
    finally:
        root.removeHandler(handler)


COLUMNS: dict[str, Callable[[Case], str]] = {
    "round trip, plain / fixed-point": round_trip,
    "null-text": null_text,
    "stock sampler": sampler,
    "gradient": gradient,
    "constraint": constraint,
    "pseudo-mask": pseudo_mask,
    "injection": injection,
    "record": record,
    "batch": batch,
    "fast": preset("fast"),
    "paper": preset("paper"),
}
