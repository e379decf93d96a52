"""The loop of the noise optimisation on stub extractors with known gradients: losses, schedule, early stopping."""

import math
from dataclasses import replace

import pytest
import torch

from onrw_core.extractors.base import Extractor
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.payload.keys import Key
from onrw_core.pipeline import denoise_watermark
from onrw_core.stages.noise_optimisation import PRESETS, Losses, Objective, Settings, combined_mask, optimise
from onrw_core.stages.progress import result_of

from .test_noise_optimisation import inverted, parts  # noqa: F401  (parts is a fixture)

BITS = torch.tensor([1, 0, 1, 1])
# The published composition in pixel space: the marked image is the original's replay plus delta itself.
PIXELS = Settings(
    start_sigma=0.2, steps=1, space="pixel", composition="mask", mix="none", attention_weight=0.0, image_weight=0.0
)


class Stub(Extractor):
    """Bits as given, whatever the image; a loss that pulls the mean of the image upwards, `pull` times."""

    name, num_bits = "stub", 4

    def __init__(self, right: list[bool], pull: float):
        self.right, self.pull, self.calls = right, pull, 0

    def logits(self, images, geometry=None):
        right = self.right[min(max(self.calls - 1, 0), len(self.right) - 1)]
        signs = BITS.float() * 2 - 1
        return (signs if right else -signs).expand(len(images), -1)

    def loss_and_logits(self, images, bits, geometry=None):
        self.calls += 1
        return -self.pull * images.mean((1, 2, 3)), self.logits(images)


def run(parts, settings, extractor):  # noqa: F811
    model, autoencoder, image, *_ = parts
    states = []
    objective = Objective(model, autoencoder, inverted(parts, settings), image, extractor, BITS, settings)
    return result_of(optimise(objective, generator=torch.Generator().manual_seed(0)), states.append), states


@pytest.mark.parametrize(
    ("right", "stops"),
    [
        ([True], 3),  # from the first iteration on
        ([False, False, True], 5),
        ([True, True, False, True], 6),  # the count begins anew
        ([False], 8),
    ],
)
def test_it_stops_once_the_message_held_for_so_many_iterations_in_a_row(parts, right, stops):  # noqa: F811
    settings = replace(PIXELS, iterations=8, patience=3, attacks=1)
    watermark, states = run(parts, settings, Stub(right, 1.0))
    assert watermark.report["iterations"] == len(states) == stops == len(watermark.report["history"])


def test_one_attack_without_the_message_is_enough_to_go_on(parts):  # noqa: F811
    settings = replace(PIXELS, iterations=4, patience=1, attacks=2)
    _, states = run(parts, settings, Stub([True, False, True, False, True, False, False, True], 1.0))
    assert len(states) == 4 and states[0].bit_accuracy == 0.5


def test_the_learning_rate_is_cosine_annealed_to_a_tenth(parts):  # noqa: F811
    """With the same gradient in each iteration AdamW's steps go with the learning rate alone."""
    total, rate = 6, 0.02
    settings = replace(PIXELS, iterations=total, learning_rate=rate, attacks=1)
    _, states = run(parts, settings, Stub([False], 1.0))
    steps = torch.stack([state.image.mean() for state in states]).diff()
    # The gradient has unit root mean square, and epsilon is 1: each step is half the learning rate.
    expected = [rate / 2 * (0.1 + 0.9 * (1 + math.cos(math.pi * i / total)) / 2) for i in range(total - 1)]
    assert steps.tolist() == pytest.approx(expected, rel=0.1)
    assert steps[-1] < 0.35 * steps[0]


def test_the_last_iterations_add_what_the_decoder_cannot_express(parts):  # noqa: F811
    """They change the decoded image without the model, lower the loss further, and belong to the watermark."""
    model, autoencoder, image, *_ = parts
    extractor, bits = KeyedExtractor(Key(bytes(32)), 32), torch.arange(32) % 2
    settings = Settings(start_sigma=0.2, steps=1, iterations=6, on_image=0.7, attention_weight=0.0, mix="none")
    inversion = inverted(parts, settings)
    objective = Objective(model, autoencoder, inversion, image, extractor, bits, settings)
    calls, states = 0, []
    real = model.denoise

    def counted(*args, **options):
        nonlocal calls
        calls += 1
        return real(*args, **options)

    model.denoise = counted
    try:
        watermark = result_of(optimise(objective, generator=torch.Generator().manual_seed(0)), states.append)
    finally:
        del model.denoise
    assert [(state.iteration, state.total) for state in states] == [(i, 6) for i in range(1, 7)]
    assert calls == 3  # two iterations, and the image that the others begin with
    assert states[5].message_loss < states[2].message_loss
    with_steps, without = (
        denoise_watermark(model, autoencoder, mark, tuple(image.shape[-2:]))
        for mark in (watermark, replace(watermark, residual=None))
    )
    height, width = image.shape[-2:]
    expected = without.decoded + watermark.residual[..., :height, :width]
    assert torch.equal(with_steps.decoded, expected) and watermark.residual.abs().max() > 0


@pytest.mark.parametrize("changes", [{"space": "pixel"}, {"composition": "mask"}, {"on_image": 0.0}, {"iterations": 1}])
def test_all_iterations_through_the_model(parts, changes):  # noqa: F811
    settings = replace(PIXELS, space="noise", composition="residual", quality=90.0, iterations=2, on_image=0.5)
    watermark, states = run(parts, replace(settings, **changes), Stub([False], 1.0))
    assert watermark.residual is None and len(states) == states[-1].total


def test_the_image_loss_brings_the_decoded_image_back(parts):  # noqa: F811
    with_loss = replace(PIXELS, iterations=6, image_weight=20.0, learning_rate=0.05)
    _, states = run(parts, with_loss, Stub([False], 0.0))
    assert states[0].image_loss > 0
    assert states[-1].image_loss < 0.8 * states[0].image_loss
    _, states = run(parts, replace(with_loss, image_weight=0.0), Stub([False], 0.0))
    assert states[-1].image_loss == pytest.approx(states[0].image_loss, rel=1e-3)


def test_residual_composition_has_no_image_loss(parts):  # noqa: F811
    settings = replace(PIXELS, composition="residual", image_weight=20.0, iterations=1, quality=None, target_psnr=40.0)
    _, states = run(parts, settings, Stub([False], 1.0))
    assert states[0].image_loss == 0


def test_the_total_is_weighted():
    losses = Losses(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0), [1.0], torch.zeros(1))
    settings = replace(PIXELS, message_weight=100.0, image_weight=20.0, attention_weight=80.0)
    assert losses.total(settings).item() == 100 * 2 + 20 * 3 + 80 * 5


def test_the_attention_constraint_acts_at_its_weight(parts):  # noqa: F811
    """Its gradient is 80 times that of the unweighted term, beside the message's."""
    model, autoencoder, image, *_ = parts
    settings = Settings(start_sigma=1.0, steps=1, composition="mask", mix="none", attacks=1, image_weight=0.0)
    assert settings.attention_weight == 80
    inversion = inverted(parts, settings)
    delta = 0.3 * torch.randn(inversion.latents[0].shape, generator=torch.Generator().manual_seed(1))
    gradients, attention = {}, {}
    for weight in (1.0, 80.0):
        chosen = replace(settings, attention_weight=weight)
        objective = Objective(model, autoencoder, inversion, image, Stub([False], 0.0), BITS, chosen)
        _, figures, gradients[weight] = objective.differentiated(
            delta.clone().requires_grad_(), torch.Generator().manual_seed(0)
        )
        attention[weight] = figures["attention_loss"]
    assert attention[1.0] == pytest.approx(attention[80.0]) and attention[1.0] > 0
    assert gradients[1.0].abs().max() > 0
    torch.testing.assert_close(gradients[80.0], 80 * gradients[1.0], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].space == "noise"])
def test_presets_run_and_differentiate_the_unet(parts, name):  # noqa: F811
    preset = PRESETS[name]
    # Attacks of regeneration, which run the UNet as well, are left out.
    settings = replace(preset, iterations=1, steps=min(preset.steps, 2), warm_steps=1, mix="all")
    model, autoencoder, image, *_ = parts
    inversion = inverted(parts, settings)
    calls = []
    real = model.denoise

    def counted(x, sigma, conditionings, control=None):
        calls.append((x.requires_grad and torch.is_grad_enabled(), len(conditionings)))
        return real(x, sigma, conditionings, control)

    model.denoise = counted
    try:
        objective = Objective(model, autoencoder, inversion, image, Stub([False], 1.0), BITS, settings)
        result_of(optimise(objective, generator=torch.Generator().manual_seed(0)))
    finally:
        del model.denoise
    differentiated = [conditionings for gradient, conditionings in calls if gradient]
    # Checkpointed steps run once more, in the backward pass.
    assert len(differentiated) == settings.steps * (2 if settings.checkpointing else 1)
    assert set(differentiated) == {1 if settings.guidance == 1 else 2}


def test_presets_are_what_is_published():
    reference, fast, paper = PRESETS["reference"], PRESETS["fast"], PRESETS["paper"]
    assert (reference.start_sigma, reference.steps, reference.iterations, reference.attacks) == (0.041, 1, 100, 1)
    assert (fast.start_sigma, fast.steps, fast.guidance, fast.attention_weight) == (0.2, 1, 1.0, 0.0)
    assert (paper.start_sigma, paper.steps, paper.guidance, paper.iterations) == (1.0, 10, 4.5, 100)
    assert paper.method == "null-text" and paper.mask == "soft"
    for name, preset in PRESETS.items():
        assert preset.space == ("pixel" if name == "quick" else "noise")
        assert (preset.message_weight, preset.image_weight) == (100, 20)
    assert (paper.attention_weight, reference.attention_weight) == (80, 80)


def test_masks_are_multiplied_at_the_size_of_the_image():
    pseudo, user = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[1.0], [0.5]]]])
    product = combined_mask(pseudo, user, (2, 4))
    line = torch.tensor([0, 0.25, 0.75, 1])  # pixels have areas: the outer ones lie outside of the centres of the mask
    assert torch.allclose(product, torch.stack([line, line / 2])[None, None])
    assert torch.equal(combined_mask(None, user, (2, 1)), user) and combined_mask(None, None, (2, 4)) is None
