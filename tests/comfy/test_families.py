"""Model families in ComfyUI: one of each mechanism, in every column of the table that `onrw bench families` makes."""

import importlib
from types import SimpleNamespace

import pytest
import torch

REPRESENTATIVES = {
    "SD1.5": "UNet, eps",
    "SD2 (v)": "UNet, v",
    "Flux": "flow, double and single streams, distilled",
    "Lumina2": "flow, NextDiT",
    "Qwen-Image": "flow, latents with a frame axis",
}
COLUMNS = [
    "round_trip",
    "null_text",
    "sampler",
    "gradient",
    "constraint",
    "pseudo_mask",
    "injection",
    "record",
    "batch",
]
PRESETS = {"Flux": "paper", "Qwen-Image": "fast"}


@pytest.fixture(scope="module")
def families(comfy):
    from .conftest import HERE, load

    return load("onrw_families", HERE / "families.py")


@pytest.fixture(scope="module")
def cells(comfy):
    from .conftest import HERE, load

    return load("onrw_family_cells", HERE / "family_cells.py")


@pytest.fixture(scope="module", params=REPRESENTATIVES)
def case(request, families, cells, pack):
    return cells.Case(request.param, families, pack.__name__)


@pytest.mark.parametrize("column", COLUMNS)
def test_column_of_the_table(case, cells, column):
    assert getattr(cells, column)(case)


@pytest.mark.parametrize("column", ["constraint", "pseudo_mask", "injection"])
def test_a_network_whose_attention_cannot_be_read(column, families, cells, pack):
    found = getattr(cells, column)(cells.Case("PixArt", families, pack.__name__))
    assert found in ("features, 2", "none, says so", "refused")


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name, families, cells, pack):
    assert cells.preset(PRESETS[name])(cells.Case(name, families, pack.__name__))


@pytest.mark.parametrize("name", ["SD1.5", "Flux"])
def test_gradients_of_8_bit_weights(name, families, cells, pack):
    case = cells.Case(name, families, pack.__name__)
    case.families = SimpleNamespace(model=lambda name, dtype: families.model(name, torch.float8_e4m3fn))
    assert next(case.families.model(name, None).model.diffusion_model.parameters()).dtype == torch.float8_e4m3fn
    assert cells.gradient(case)


def test_every_family_of_the_table_is_in_its_layouts(families, pack):
    module = importlib.import_module(f"{pack.__name__}.nodes.adapter.families")
    for name in families.available():
        model = families.model(name).model
        assert module.factor_of(model.latent_format) == families.FAMILIES[name].factor, name
        family = module.family_of(model)
        assert family.maps == ("features" if name == "PixArt" else "attention"), name
        assert family.distilled == (name in ("Flux", "Schnell", "Flux2")), name


def test_an_unknown_network_has_gradients_and_no_maps(families, cells, pack, adapter, core, caplog):
    case = cells.Case("Lumina2", families, pack.__name__)
    network = case.model.model.diffusion_model
    network.__class__ = type("Novelty", (type(network).__mro__[-2],), dict(type(network).__dict__))
    assert adapter.family_of(case.model.model).maps == "none"
    assert cells.round_trip(case)
    stages = core.stages.constrained_denoising

    def work(model, _):
        record = case.inverted(model, steps=2)
        x = record.latents[0].clone().requires_grad_()
        (x0,), _ = model.denoise(x, record.sigmas[0], [case.prompt])
        assert torch.autograd.grad(x0.sum(), x)[0].abs().sum() > 0
        return stages.replay_original(model, record, stages.Constraint(attention=True, mask="soft"))

    replayed = case.run(work)
    assert not replayed.reference and replayed.mask is None
    assert "there is no pseudo-mask" in caplog.text and "there is no self-attention constraint" in caplog.text


def test_a_batch_that_became_a_video_is_refused(families, adapter):
    model = families.model("Wan")
    with pytest.raises(ValueError, match="latent: it is a video of 2 latent frames"):
        adapter.from_latent(model.model, torch.zeros(1, 16, 2, 8, 8))


def test_images_through_a_video_vae(families, cells, pack, stock):
    case = cells.Case("Qwen-Image", families, pack.__name__)
    images = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        alone = [stock.VAEEncode().encode(case.vae, image)[0]["samples"] for image in images.split(1)]
        expected = torch.cat([case.adapter.from_latent(case.model.model, latent) for latent in alone])

    def work(network, autoencoder):
        latents = autoencoder.encode(images.movedim(-1, 1)).detach()
        start = latents.clone().requires_grad_()
        gradients = [
            torch.autograd.grad(decode(start).square().sum(), start)[0]
            for decode in (autoencoder.decode, autoencoder.decode_checkpointed)
        ]
        assert torch.equal(*gradients)
        return latents

    torch.testing.assert_close(case.run(work, case.vae), expected.clone(), rtol=1e-4, atol=1e-4)


def test_options_of_both_prompts_come_back_from_a_file(families, cells, pack, adapter, tmp_path):
    """The sizes of SDXL's prompts, also where only the negative prompt has any."""
    case = cells.Case("SDXL", families, pack.__name__)
    case.positive[0][1] = {"pooled_output": case.positive[0][1]["pooled_output"]}
    case.prompt = adapter.from_comfy(case.positive, adapter.POSITIVE)
    assert cells.record(case) == "identical"
    inversion = importlib.import_module(f"{pack.__name__}.onrw_core.stages.inversion_record").Inversion
    case.null = adapter.from_comfy([[case.negative[0][0], {**case.negative[0][1], "control": object()}]], "negative")
    assert case.null.missing == ("control",) and "width" in case.null.options
    made = inversion(torch.zeros(2, 1, 4, 8, 8), torch.tensor([1.0, 0.0]), None, case.prompt, case.null)
    made.save(tmp_path / "record.safetensors")
    loaded = inversion.load(tmp_path / "record.safetensors")
    with pytest.raises(ValueError, match="negative: this inversion was made with control"):
        adapter.prepared(loaded)
    assert adapter.prepared(loaded, negative=case.negative).null.role == "negative"


@pytest.mark.parametrize("name", ["SD1.5", "Flux", "Qwen-Image"])
def test_the_path_of_a_sampler_stands_for_the_inversion(name, families, cells, pack, stock):
    """KSampler's LATENT, with its noise and sigmas: the record reconstructs it without an error of inversion."""
    samplers = importlib.import_module("comfy_extras.nodes_custom_sampler")
    node = importlib.import_module(f"{pack.__name__}.nodes.inversion").NullTextInversionNode
    case = cells.Case(name, families, pack.__name__)

    def execute(kind, *arguments):
        found = getattr(samplers, kind)
        if hasattr(found, "execute"):
            return found.execute(*arguments).args[0]
        return getattr(found(), found.FUNCTION)(*arguments)[0]

    def invert(noise):
        settings = {"preset": "fast", "schedule": "custom", "steps": 1, "start_sigma": 0.5, "guidance": 3.0}
        settings |= {
            "method": "as preset",
            "inner_steps": 3,
            "convention": "source",
            "noise": noise,
            "sampled_sigmas": sigmas,
        }
        model = {"model": case.model, "positive": case.positive, "negative": case.negative}
        with torch.inference_mode():
            return node.execute(**model, latent=latent, **settings).args

    empty = {"samples": torch.zeros_like(case.adapter.to_latent(case.model.model, case.latent)).repeat_interleave(2, 0)}
    with torch.inference_mode():
        noise = execute("RandomNoise", 7)
        sigmas = execute("BasicScheduler", case.model, "simple", 8, 1.0)
        latent = stock.common_ksampler(case.model, 7, 8, 3.0, "euler", "simple", case.positive, case.negative, empty)[0]
    (first, second), _, levels, _ = invert(noise)
    assert 1 <= first.steps < 8 and torch.equal(levels, sigmas[-1 - first.steps :]) and first.start_sigma <= 0.5
    for index, record in enumerate((first, second)):
        expected = case.adapter.from_latent(case.model.model, latent["samples"][index : index + 1].clone())
        found = case.run(lambda network, _, record=record: case.replayed(network, record))
        assert cells.rms(found - expected) < 1e-5 * cells.rms(expected)
    assert not torch.equal(first.latents, second.latents)
    with pytest.raises(ValueError, match="gives another latent"):
        invert(execute("RandomNoise", 8))
