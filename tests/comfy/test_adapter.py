"""The adapter in ComfyUI's own process: models and prompts prepared by ComfyUI, differentiated by the core."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint as recompute

SHAPE = (1, 4, 16, 16)
SIGMA = torch.tensor(1.0)
GUIDANCE = 4.5


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


def test_gradients_maps_and_an_untouched_model(case, adapter, core, sampled):
    from_core = core.diffusion.model
    model, positive, negative = case
    before = sampled(model, positive, negative)
    keys, options = set(model.model.state_dict()), repr(model.model_options)
    prompt, null = adapter.from_comfy(positive, adapter.POSITIVE), adapter.from_comfy(negative, adapter.NEGATIVE)
    everything = from_core.AttentionControl(lambda kind, tokens: True)
    averaged = from_core.AttentionControl(lambda kind, tokens: True, mean=True)

    def work(network, autoencoder):
        assert autoencoder is None
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
        plain, _ = network.guided(x, SIGMA, prompt, null, GUIDANCE)
        probed, maps = network.guided(x, SIGMA, prompt, null, GUIDANCE, everything)
        assert torch.equal(plain, probed)
        for kept in (maps.self_attention, maps.cross_attention):
            assert set(kept) == set(maps.sizes)
            for layer, probabilities in kept.items():
                assert probabilities.shape[2] == maps.sizes[layer][0] * maps.sizes[layer][1]
                torch.testing.assert_close(probabilities.sum(-1), torch.ones(()).expand(probabilities.shape[:3]))
        assert next(iter(maps.cross_attention.values())).shape[-1] == prompt.embeddings.shape[1]

        (gradient,) = torch.autograd.grad(plain.square().sum(), x)
        assert gradient.abs().sum() > 0

        def call(x):
            return network.guided(x, SIGMA, prompt, null, GUIDANCE, everything)

        again, _ = recompute(call, x, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x)[0], gradient, rtol=1e-5, atol=1e-6)

        def with_maps(context):
            with context:
                out, maps = network.guided(x, SIGMA, prompt, null, GUIDANCE, averaged)
            assert {m.shape[1] for m in maps.self_attention.values()} == {1}
            loss = out.square().sum() + sum(m.square().sum() for m in maps.self_attention.values())
            recorded.extend(map(weakref.ref, maps.self_attention.values()))
            return torch.autograd.grad(loss, x)[0]

        recorded = []
        found, wanted = with_maps(network.recomputing()), with_maps(nullcontext())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        gc.collect()
        assert recorded and all(kept() is None for kept in recorded)  # nothing keeps maps and graph
        assert not any("forward" in module.__dict__ for module in network.network.modules())

        (x0, x0_null), _ = network.denoise(x, SIGMA, [prompt, null])
        torch.testing.assert_close(x0_null + GUIDANCE * (x0 - x0_null), plain, rtol=1e-4, atol=1e-4)

        embeddings = null.embeddings.clone().requires_grad_()
        other, _ = network.guided(x, SIGMA, prompt, null.with_embeddings(embeddings), GUIDANCE)
        torch.testing.assert_close(other, plain)
        assert torch.autograd.grad(other.square().sum(), embeddings)[0].abs().sum() > 0
        moved, _ = network.guided(x, SIGMA, prompt, null.with_embeddings(embeddings + 1), GUIDANCE)
        assert not torch.allclose(moved, plain)

        own, _ = network.guided(x, SIGMA, prompt, null, GUIDANCE, from_core.AttentionControl(lambda *_: False, maps))
        torch.testing.assert_close(own, plain, rtol=1e-2, atol=1e-2)
        return network.name

    with torch.inference_mode():
        assert adapter.run(model, None, prompt, null, SHAPE, work).startswith("TinySD1-")
    assert torch.equal(sampled(model, positive, negative), before)
    assert set(model.model.state_dict()) == keys and repr(model.model_options) == options


def test_a_lora_and_a_controlnet_change_the_prediction(checkpoint, with_lora, prompts, with_control, adapter):
    prompt, null = (adapter.from_comfy(p, role) for p, role in zip(prompts, ("positive", "negative"), strict=True))
    controlled = adapter.from_comfy(with_control[0], adapter.POSITIVE)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def predict(model, prompt):
        return adapter.run(
            model, None, prompt, null, SHAPE, lambda network, _: network.denoise(x, SIGMA, [prompt])[0][0]
        )

    plain = predict(checkpoint[0], prompt)
    assert not torch.allclose(predict(with_lora, prompt), plain, atol=1e-3)
    assert not torch.allclose(predict(checkpoint[0], controlled), plain, atol=1e-3)
    assert torch.equal(predict(checkpoint[0], prompt), plain)
    assert controlled.opaque is not None and prompt.opaque is None


def test_autoencoder_without_clamp_equals_vae_decode_inside(checkpoint, prompts, adapter, stock):
    model, _, vae = checkpoint
    prompt = adapter.from_comfy(prompts[0], adapter.POSITIVE)
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

    decoded = adapter.run(model, vae, prompt, None, SHAPE, work)
    torch.testing.assert_close(decoded.clamp(0, 1), expected.clone())
    assert decoded.min() < 0 or decoded.max() > 1


def test_foreign_noise_and_vaes_are_refused(checkpoint, prompts, adapter):
    from comfy.model_sampling import IMG_TO_IMG, ModelSamplingDiscrete

    class Foreign(ModelSamplingDiscrete, IMG_TO_IMG):
        pass

    prompt = adapter.from_comfy(prompts[0], adapter.POSITIVE)
    model = checkpoint[0].clone()
    model.add_object_patch("model_sampling", Foreign())
    with pytest.raises(ValueError, match="IMG_TO_IMG.*is not supported"):
        adapter.run(model, None, prompt, None, SHAPE, lambda network, _: None)
    with torch.inference_mode():
        mini = adapter.mini.load()
    with pytest.raises(ValueError, match="channels"):
        adapter.run(checkpoint[0], mini[2], prompt, None, SHAPE, lambda network, _: None)


def test_empty_conditioning_is_refused(adapter):
    with pytest.raises(ValueError, match="positive: the conditioning is empty"):
        adapter.from_comfy([], adapter.POSITIVE)


def test_weights_keep_their_storage_and_attributes(adapter):
    with torch.inference_mode():
        layer = torch.nn.Linear(4, 4)
    layer.weight._model_dtype = torch.float16
    weight = layer.weight
    adapter.normalise(layer)
    assert layer.weight is not weight and layer.weight.data_ptr() == weight.data_ptr()
    assert not layer.weight.is_inference() and not layer.weight.requires_grad
    assert layer.weight._model_dtype == torch.float16


def test_dynamic_and_quantised_weights_are_left_alone(adapter, comfy):
    class Packed(torch.Tensor):
        """A tensor that is more than its values, as those of quantised checkpoints."""

    with torch.inference_mode():
        dynamic = torch.nn.Linear(4, 4)
        quantised = torch.nn.Linear(4, 4)
        quantised.weight = torch.nn.Parameter(torch.zeros(4, 4).as_subclass(Packed), requires_grad=False)
    dynamic._v = None
    kept = dynamic.weight, quantised.weight
    adapter.normalise(torch.nn.Sequential(dynamic, quantised))
    assert dynamic.weight is kept[0] and quantised.weight is kept[1]
    assert not dynamic.weight.requires_grad


def test_copies_on_other_cards_are_left_out(checkpoint, prompts, adapter):
    model = checkpoint[0].clone()
    model.set_additional_models("multigpu", [model.clone()])
    prompt = adapter.from_comfy(prompts[0], adapter.POSITIVE)
    used = adapter.run(model, None, prompt, None, SHAPE, lambda network, _: network.guider.model_patcher)
    assert not used.get_additional_models_with_key("multigpu")
    assert len(model.get_additional_models_with_key("multigpu")) == 1


def test_quantised_layers_are_differentiated_as_what_they_stand_for(adapter, comfy):
    quantised = pytest.importorskip("comfy.quant_ops", reason="this ComfyUI has no quantised weights")
    with torch.inference_mode():
        packed = quantised.QuantizedTensor.from_float(torch.randn(32, 32), "TensorCoreFP8E4M3Layout")
        layer = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(32, 32, False, "cpu", torch.float32)
        kind = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        layer.load_state_dict({"weight": packed._qdata, "weight_scale": packed._params.scale, "comfy_quant": kind})
    weight = layer.weight
    adapter.normalise(layer)
    assert layer.weight is weight and isinstance(weight, quantised.QuantizedTensor)
    x = torch.randn(4, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        layer(x)
    with adapter.fresh_weights(layer, torch.device("cpu")):
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(gradient, weight.dequantize().clone().sum(0).expand(4, 32))
