"""Optimisation, constrained denoising and marking as a whole, on a small random model with all parts of a real one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from onrw_core.attacks import training_mix
from onrw_core.diffusion.model import Conditioning
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.imaging.metrics import psnr
from onrw_core.mini import MiniAutoencoder, MiniModel
from onrw_core.mini.autoencoder import PatchAutoencoder, principal_patches
from onrw_core.mini.unet import UNet, UNetConfig
from onrw_core.payload.keys import Key
from onrw_core.pipeline import denoise_watermark, embed
from onrw_core.stages import noise_optimisation as optimise_module
from onrw_core.stages.composition import Composer, CompositionOptions, compose
from onrw_core.stages.constrained_denoising import Constraint, denoise, marked_branch, original_branch, perturbed
from onrw_core.stages.inversion import invert
from onrw_core.stages.noise_optimisation import PRESETS, Objective, Settings, optimise
from onrw_core.stages.progress import result_of
from onrw_core.stages.warm_start import warm_start

SETTINGS = Settings(start_sigma=0.2, steps=2, iterations=8, attention_weight=0.0, quality=None, target_psnr=42.0)


@pytest.fixture(scope="module")
def parts():
    """Model, autoencoder (a linear code of the picture's own patches), picture, prompts."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig(channels=16, width=32, multiples=(1, 1, 1), head_channels=32, context=16))
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    autoencoder = PatchAutoencoder(stem=8, encoder=8, decoder=8, head=8)
    image = scene(192, 256)
    autoencoder.initialise_linear(*principal_patches(image, 16))
    generator = torch.Generator().manual_seed(2)
    positive = Conditioning(torch.randn(1, 6, 16, generator=generator), content=(1, 2, 3, 4))
    null = Conditioning(torch.randn(1, 6, 16, generator=generator), content=())
    model = MiniModel(unet.eval().requires_grad_(False))
    return model, MiniAutoencoder(autoencoder.eval().requires_grad_(False)), image, positive, null


def scene(height: int, width: int) -> torch.Tensor:
    """Something like a photo: coarse shapes with finer texture on them, (1, 3, height, width)."""
    generator = torch.Generator().manual_seed(1)
    image = torch.full((1, 3, height, width), 0.5)
    for cells, strength in ((4, 0.25), (16, 0.12), (64, 0.06)):
        noise = torch.randn(1, 3, cells, cells, generator=generator) * strength
        image = image + torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")
    return (image.clamp(0.02, 0.98) * 255).round() / 255


def inverted(parts, settings):
    model, autoencoder, image, positive, null = parts
    return result_of(
        invert(
            model,
            autoencoder.encode(image),
            positive,
            null,
            steps=settings.steps,
            start_sigma=settings.start_sigma,
            guidance=settings.guidance,
        )
    )


def optimised(parts, settings, extractor, bits, seed=0, **options):
    """The watermark and the last state."""
    model, autoencoder, image, *_ = parts
    inversion = inverted(parts, settings)
    states = []
    generator = torch.Generator().manual_seed(seed)
    objective = Objective(model, autoencoder, inversion, image, extractor, bits, settings, **options)
    return result_of(optimise(objective, generator=generator), states.append), states[-1]


def composed(parts, watermark):
    """Where the change was allowed, and the marked image."""
    model, autoencoder, image, *_ = parts
    denoised = denoise_watermark(model, autoencoder, watermark, tuple(image.shape[-2:]))
    options = watermark.settings.composing
    return denoised.mask, compose(image, denoised.decoded, denoised.decoded_original, options, mask=denoised.mask)


@pytest.fixture(scope="module")
def extractor():
    return KeyedExtractor(Key(bytes(range(32))), 32)


@pytest.fixture(scope="module")
def bits():
    return torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("space", ["noise", "latent", "pixel"])
def test_the_message_gets_into_the_picture_at_the_target(parts, extractor, bits, space):
    watermark, state = optimised(parts, replace(SETTINGS, space=space, quality=None, target_psnr=38.0), extractor, bits)
    read = extractor.logits(state.image) > 0
    assert (read[0] == bits.bool()).float().mean() >= 0.97
    assert (extractor.logits(parts[2]) > 0).float().sub(bits).abs().mean() > 0.2  # it was not there before
    assert state.psnr == pytest.approx(38, abs=0.2)
    assert watermark.report["iterations"] == state.iteration <= SETTINGS.iterations


def test_same_seed_same_watermark(parts, extractor, bits):
    settings = replace(SETTINGS, iterations=2)
    first, second = (optimised(parts, settings, extractor, bits)[0].delta for _ in range(2))
    other = optimised(parts, settings, extractor, bits, seed=1)[0].delta
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_only_the_latent_gets_a_gradient(parts, extractor, bits):
    optimised(parts, replace(SETTINGS, iterations=1), extractor, bits)
    model, autoencoder, *_ = parts
    assert all(p.grad is None for module in (model.unet, autoencoder.module) for p in module.parameters())


def test_checkpointing_changes_memory_not_the_result(parts, extractor, bits):
    settings = replace(SETTINGS, iterations=2, attention_weight=80.0)
    plain, state = optimised(parts, settings, extractor, bits)
    recomputed, _ = optimised(parts, replace(settings, checkpointing=True), extractor, bits)
    assert torch.allclose(plain.delta, recomputed.delta, atol=1e-5)
    assert state.attention_loss > 0


def test_out_of_memory_makes_it_recompute(parts, extractor, bits, monkeypatch, caplog):
    settings = replace(SETTINGS, iterations=2, attention_weight=80.0)
    expected, _ = optimised(parts, replace(settings, checkpointing=True), extractor, bits)
    real = optimise_module.marked_branch

    def small_card(*args, checkpointing, **kwargs):
        if not checkpointing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(*args, checkpointing=checkpointing, **kwargs)

    monkeypatch.setattr(optimise_module, "marked_branch", small_card)
    found, _ = optimised(parts, settings, extractor, bits)
    assert torch.equal(found.delta, expected.delta)  # the attacks are drawn as if nothing had been
    assert caplog.text.count("memory") == 1

    monkeypatch.setattr(optimise_module, "marked_branch", lambda *args, **kwargs: small_card(checkpointing=False))
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        optimised(parts, settings, extractor, bits)


def test_attention_constraint_holds_the_layout(parts, extractor, bits):
    """With the constraint, the marked branch's self-attention stays nearer to the original's."""
    settings = replace(SETTINGS, start_sigma=2.0, iterations=8, composition="mask", image_weight=0.0)
    _, light = optimised(parts, replace(settings, attention_weight=1e-6), extractor, bits)
    _, heavy = optimised(parts, replace(settings, attention_weight=1e7), extractor, bits)
    assert heavy.attention_loss < 0.8 * light.attention_loss


def test_injection_replaces_self_attention(parts):
    model, autoencoder, *_ = parts
    inversion = inverted(parts, replace(SETTINGS, start_sigma=2.0))
    delta = torch.randn(inversion.latents[0].shape, generator=torch.Generator().manual_seed(4)) * 0.5
    free = original_branch(model, autoencoder, inversion, Constraint())
    held = original_branch(model, autoencoder, inversion, Constraint(inject=True))
    assert torch.equal(free.latent, held.latent) and len(held.inject) == inversion.steps
    x = perturbed(inversion, delta)
    without, _ = denoise(model, inversion, x, free)
    injected, _ = denoise(model, inversion, x, held)
    assert not torch.allclose(without, injected)
    unchanged, _ = denoise(model, inversion, inversion.latents[0], held)
    assert torch.allclose(unchanged, held.latent, atol=1e-4)


def test_no_change_of_the_noise_gives_the_original_branch(parts):
    model, autoencoder, *_ = parts
    inversion = inverted(parts, SETTINGS)
    original = original_branch(model, autoencoder, inversion, Constraint())
    latent, decoded, _ = marked_branch(model, autoencoder, inversion, torch.zeros_like(inversion.latents[0]), original)
    assert torch.equal(latent, original.latent) and torch.equal(decoded, original.decoded)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_pseudo_mask_confines_the_change(parts, extractor, bits, kind):
    model, autoencoder, image, *_ = parts
    settings = replace(SETTINGS, mask=kind, iterations=2)
    watermark, _ = optimised(parts, settings, extractor, bits)
    mask, composition = composed(parts, watermark)
    assert mask.min() < 0.5 < mask.max()
    residual = composition.residual.abs().mean(1, keepdim=True)
    assert residual[mask < 0.05].mean() < 0.2 * residual[mask > 0.5].mean()
    mask = original_branch(model, autoencoder, watermark.inversion, Constraint(mask=kind)).mask
    assert (set(mask.unique().tolist()) == {0.0, 1.0}) is (kind == "hard")


def test_users_mask_keeps_the_rest_untouched(parts, extractor, bits):
    model, autoencoder, image, *_ = parts
    mask = torch.zeros(1, 1, *image.shape[-2:])
    mask[..., :128] = 1
    watermark, _ = optimised(parts, replace(SETTINGS, iterations=2), extractor, bits, mask=mask)
    _, result = composed(parts, watermark)
    assert torch.equal(result.image[..., 140:], image[..., 140:])
    assert result.psnr == pytest.approx(42, abs=0.05) and result.psnr_image > 44


def test_mask_composition_is_the_papers(parts, extractor, bits):
    """Decoded picture inside: the autoencoder's error limits PSNR, and the image loss brings it closer."""
    _, state = optimised(parts, replace(SETTINGS, composition="mask", iterations=2), extractor, bits)
    assert state.image_loss > 0 and state.psnr < 40


@pytest.mark.parametrize("shape", [(192, 256), (150, 333), (301, 200)])
def test_any_size_is_marked_at_its_own(parts, extractor, bits, shape):
    model, autoencoder, _, positive, null = parts
    image = scene(*shape)[0]
    states, inversions = [], []
    marked = embed(
        image,
        model,
        autoencoder,
        extractor,
        bits,
        positive=positive,
        null=null,
        settings=replace(SETTINGS, iterations=2),
        generator=torch.Generator().manual_seed(0),
        size=128,
        on_inversion=inversions.append,
        on_state=states.append,
    )
    assert [(state.stage, state.step) for state in inversions] == [("invert", 1), ("invert", 2)]
    assert marked.image.shape == image.shape
    assert torch.equal((marked.image * 255).round() / 255, marked.image)
    assert marked.psnr == marked.psnr_image == pytest.approx(psnr(marked.image[None], image[None]))
    assert marked.psnr == pytest.approx(42, abs=0.05)
    assert [state.iteration for state in states] == [1, 2] and marked.watermarks[0].report["iterations"] == 2
    inversion = marked.watermarks[0].inversion
    assert inversion.model == model.name


def test_bad_arguments_say_what_is_wrong(parts, extractor, bits):
    with pytest.raises(ValueError, match="16 bits.*reads 32"):
        optimised(parts, SETTINGS, extractor, bits[:16])
    with pytest.raises(ValueError, match="encode the image"):
        model, autoencoder, image, positive, null = parts
        small = (model, autoencoder, image[..., :128, :128], positive, null)
        inversion = inverted(small, SETTINGS)
        Objective(model, autoencoder, inversion, image, extractor, bits, SETTINGS)
    for change, message in (
        ({"steps": 0}, "steps: is 0"),
        ({"space": "paint"}, "paint"),
        ({"start_sigma": 0}, "sigma"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SETTINGS, **change)
    assert replace(SETTINGS, label=None).label is None
    with pytest.raises(ValueError, match="label: is 'mine'; choose one of none, .* or None for no public layer"):
        replace(SETTINGS, label="mine")
    with pytest.raises(ValueError, match="none, soft or hard"):
        Constraint(mask="round")


def test_presets_run_the_unet():
    assert set(PRESETS) == {"reference", "fast", "endure", "quick", "paper"}
    assert all(preset.steps >= 1 for preset in PRESETS.values())
    assert {name for name, preset in PRESETS.items() if preset.space != "noise"} == {"quick"}
    assert PRESETS["paper"].method == "null-text" and PRESETS["paper"].guidance == 4.5


def test_a_warm_start_carries_the_message_before_the_first_step(parts, extractor, bits):
    """It is shaped like the latent, with the working picture smaller than what the latent decodes to."""
    _, autoencoder, image, *_ = parts
    decoded, working = autoencoder.decode(autoencoder.encode(image)), image[..., :150, :200]
    composer = Composer(working, CompositionOptions(target_psnr=38.0, luma_only=True))
    generator = torch.Generator().manual_seed(0)
    delta = warm_start(autoencoder, decoded, composer, extractor, bits, training_mix(), generator)
    latent = autoencoder.encode(decoded)
    assert delta.shape == latent.shape and delta.square().mean().sqrt() == pytest.approx(0.15, rel=1e-3)
    before = decoded[..., :150, :200]
    marked = composer(autoencoder.decode(latent + delta)[..., :150, :200], before)
    assert ((extractor.logits(marked)[0] > 0) == bits.bool()).float().mean() >= 0.9
