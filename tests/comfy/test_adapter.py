"""The adapter in ComfyUI's own process: models and prompts prepared by ComfyUI, differentiated by the core."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint as recompute

SHAPE = (1, 4, 16, 16)
SIGMA = torch.tensor(1.0)
GUIDANCE = 4.5


def sampled(stock, model, positive, negative):
    """A stock KSampler, as users run it."""
    with torch.inference_mode():
        latent = {"samples": torch.zeros(SHAPE)}
        return stock.common_ksampler(model, 3, 2, GUIDANCE, "euler", "normal", positive, negative, latent)[0]["samples"]


@pytest.fixture(scope="module")
def prompts(checkpoint, stock):
    with torch.inference_mode():
        encode = stock.CLIPTextEncode().encode
        return encode(checkpoint[1], "a cat")[0], encode(checkpoint[1], "")[0]


@pytest.fixture(scope="module")
def with_lora(checkpoint, stock):
    with torch.inference_mode():
        return stock.LoraLoaderModelOnly().load_lora_model_only(checkpoint[0], "tiny.safetensors", 1.0)[0]


@pytest.fixture(scope="module")
def with_control(prompts, stock):
    with torch.inference_mode():
        net = stock.ControlNetLoader().load_controlnet("tiny.safetensors")[0]
        image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
        return stock.ControlNetApplyAdvanced().apply_controlnet(*prompts, net, image, 1.0, 0.0, 1.0)


@pytest.fixture(scope="module", params=["plain", "lora", "controlnet", "areas", "float16", "bfloat16"])
def case(request, checkpoint, prompts, stock, files):
    """(MODEL, positive, negative) in many kinds."""
    model, (positive, negative) = checkpoint[0], prompts
    if request.param == "lora":
        model = request.getfixturevalue("with_lora")
    elif request.param == "controlnet":
        positive, negative = request.getfixturevalue("with_control")
    elif request.param == "areas":
        with torch.inference_mode():
            area = stock.ConditioningSetArea().append(positive, 64, 64, 0, 0, 1.0)[0]
            positive = stock.ConditioningCombine().combine(area, positive)[0]
    elif request.param != "plain":
        import comfy.sd

        with torch.inference_mode():
            path = str(files / "models" / "checkpoints" / "tiny.safetensors")
            options = {"dtype": getattr(torch, request.param)}
            model = comfy.sd.load_diffusion_model(path, model_options=options)
        assert next(model.model.diffusion_model.parameters()).dtype == options["dtype"]
    return model, positive, negative


def test_gradients_maps_and_an_untouched_model(case, adapter, core, stock):
    from_core = core.model
    model, positive, negative = case
    before = sampled(stock, model, positive, negative)
    keys, options = set(model.model.state_dict()), repr(model.model_options)
    said, null = adapter.from_comfy(positive, adapter.POSITIVE), adapter.from_comfy(negative, adapter.NEGATIVE)
    everything = from_core.AttentionControl(lambda kind, tokens: True)
    averaged = from_core.AttentionControl(lambda kind, tokens: True, mean=True)

    def work(network, autoencoder):
        assert autoencoder is None
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
        plain, _ = network.guided(x, SIGMA, said, null, GUIDANCE)
        probed, maps = network.guided(x, SIGMA, said, null, GUIDANCE, everything)
        assert torch.equal(plain, probed)
        for kept in (maps.self_attention, maps.cross_attention):
            assert set(kept) == set(maps.sizes)
            for layer, probabilities in kept.items():
                assert probabilities.shape[2] == maps.sizes[layer][0] * maps.sizes[layer][1]
                torch.testing.assert_close(probabilities.sum(-1), torch.ones(()).expand(probabilities.shape[:3]))
        assert next(iter(maps.cross_attention.values())).shape[-1] == said.embeddings.shape[1]

        (gradient,) = torch.autograd.grad(plain.square().sum(), x)
        assert gradient.abs().sum() > 0

        def call(x):
            return network.guided(x, SIGMA, said, null, GUIDANCE, everything)

        again, _ = recompute(call, x, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x)[0], gradient, rtol=1e-5, atol=1e-6)

        def with_maps(context):
            with context:
                out, maps = network.guided(x, SIGMA, said, null, GUIDANCE, averaged)
            assert {m.shape[1] for m in maps.self_attention.values()} == {1}
            loss = out.square().sum() + sum(m.square().sum() for m in maps.self_attention.values())
            return torch.autograd.grad(loss, x)[0]

        found, wanted = with_maps(network.recomputing()), with_maps(nullcontext())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert not any("forward" in module.__dict__ for module in network.unet.modules())

        (x0, x0_null), _ = network.denoise(x, SIGMA, [said, null])
        torch.testing.assert_close(x0_null + GUIDANCE * (x0 - x0_null), plain, rtol=1e-4, atol=1e-4)

        embeddings = null.embeddings.clone().requires_grad_()
        other, _ = network.guided(x, SIGMA, said, null.with_embeddings(embeddings), GUIDANCE)
        torch.testing.assert_close(other, plain)
        assert torch.autograd.grad(other.square().sum(), embeddings)[0].abs().sum() > 0
        moved, _ = network.guided(x, SIGMA, said, null.with_embeddings(embeddings + 1), GUIDANCE)
        assert not torch.allclose(moved, plain)

        own, _ = network.guided(x, SIGMA, said, null, GUIDANCE, from_core.AttentionControl(lambda *_: False, maps))
        torch.testing.assert_close(own, plain, rtol=1e-2, atol=1e-2)
        return network.name

    with torch.inference_mode():
        assert adapter.run(model, None, said, null, SHAPE, work).startswith("TinySD1-")
    assert torch.equal(sampled(stock, model, positive, negative), before)
    assert set(model.model.state_dict()) == keys and repr(model.model_options) == options


def test_a_lora_and_a_controlnet_change_the_prediction(checkpoint, with_lora, prompts, with_control, adapter):
    said, null = (adapter.from_comfy(p, role) for p, role in zip(prompts, ("positive", "negative"), strict=True))
    controlled = adapter.from_comfy(with_control[0], adapter.POSITIVE)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def predict(model, prompt):
        return adapter.run(
            model, None, prompt, null, SHAPE, lambda network, _: network.denoise(x, SIGMA, [prompt])[0][0]
        )

    plain = predict(checkpoint[0], said)
    assert not torch.allclose(predict(with_lora, said), plain, atol=1e-3)
    assert not torch.allclose(predict(checkpoint[0], controlled), plain, atol=1e-3)
    assert torch.equal(predict(checkpoint[0], said), plain)
    assert controlled.opaque is not None and said.opaque is None


def test_autoencoder_without_clamp_equals_vae_decode_inside(checkpoint, prompts, adapter, stock):
    model, _, vae = checkpoint
    said = adapter.from_comfy(prompts[0], adapter.POSITIVE)
    with torch.inference_mode():
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        expected = stock.VAEDecode().decode(vae, {"samples": model.model.process_latent_out(z)})[0].movedim(-1, 1)
        image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
        latent = model.model.process_latent_in(stock.VAEEncode().encode(vae, image)[0]["samples"])

    def work(network, autoencoder):
        decoded = autoencoder.decode(z.clone())
        torch.testing.assert_close(autoencoder.encode(image.movedim(-1, 1)), latent, rtol=1e-4, atol=1e-4)
        own, recomputing = (
            torch.autograd.grad(decode(start := z.clone().requires_grad_()).square().sum(), start)[0]
            for decode in (autoencoder.decode, autoencoder.decode_checkpointed)
        )
        torch.testing.assert_close(recomputing, own)
        autoencoder.clamped = True
        torch.testing.assert_close(autoencoder.decode(z.clone()), expected.clone())
        return decoded

    decoded = adapter.run(model, vae, said, None, SHAPE, work)
    torch.testing.assert_close(decoded.clamp(0, 1), expected.clone())
    assert decoded.min() < 0 or decoded.max() > 1


def test_a_patch_that_cannot_be_differentiated_is_named(checkpoint, prompts, adapter):
    model = checkpoint[0].clone()

    def spoil(h, options):
        square = h * h
        h += 1  # the product above keeps h for its backward pass
        return h + square

    model.model_options["transformer_options"].setdefault("patches", {})["input_block_patch"] = [spoil]
    said = adapter.from_comfy(prompts[0], adapter.POSITIVE)

    def work(network, _):
        x = torch.zeros(SHAPE, requires_grad=True)
        network.denoise(x, SIGMA, [said])[0][0].sum().backward()

    with pytest.raises(ValueError, match="spoil"):
        adapter.run(model, None, said, None, SHAPE, work)


def test_flow_models_and_foreign_vaes_are_refused(checkpoint, prompts, adapter):
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow

    class Flow(ModelSamplingDiscreteFlow, CONST):
        pass

    said = adapter.from_comfy(prompts[0], adapter.POSITIVE)
    model = checkpoint[0].clone()
    model.add_object_patch("model_sampling", Flow())
    with pytest.raises(ValueError, match="flow models"):
        adapter.run(model, None, said, None, SHAPE, lambda network, _: None)
    with torch.inference_mode():
        mini = adapter.mini.load()
    with pytest.raises(ValueError, match="channels"):
        adapter.run(checkpoint[0], mini[2], said, None, SHAPE, lambda network, _: None)


def test_empty_conditioning_is_refused(adapter):
    with pytest.raises(ValueError, match="positive: the conditioning is empty"):
        adapter.from_comfy([], adapter.POSITIVE)
