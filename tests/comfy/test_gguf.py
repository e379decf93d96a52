"""MODELs of the node pack ComfyUI-GGUF, whose layers dequantise their weights in each call: a toy UNet and a toy MMDiT.

Files in GGUF format are made of the toy checkpoints. They are compared with stock MODELs of the same, dequantised
weights.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from .conftest import load
from .test_nodes import FAST, extractor, key, message, nodes  # noqa: F401  (fixtures)

PACK = "ComfyUI-GGUF"
PREFIX = "model.diffusion_model."
BLOCK = 32  # values of a block of Q8_0 and Q4_0
SIDE = 128
KINDS = ("F32", "F16", "Q8_0", "Q4_0")
NETWORKS = {"UNet": ("tiny", "sd1", 4), "MMDiT": ("tiny-flow", "sd3", 16)}
"""Name -> checkpoint, architecture in the file, channels of the latents."""
SETTINGS = {"preset": "fast", "schedule": "custom", "steps": 2, "start_sigma": 0.5, "guidance": 3.0}
SETTINGS |= {"method": "fixed-point", "inner_steps": 5, "convention": "source"}


@pytest.fixture(scope="module")
def loader(comfy, comfy_root):
    """The pack's loader of networks."""
    named = os.environ.get("COMFYUI_GGUF")
    place = Path(named).expanduser() if named else comfy_root / "custom_nodes" / PACK
    if not (place / "nodes.py").is_file():
        pytest.skip(f"no ComfyUI-GGUF in {place}: clone github.com/city96/{PACK}, and name its folder in COMFYUI_GGUF")
    return load("onrw_gguf_pack", place).NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]()


def write(path, architecture, weights, kind):
    """Write a GGUF file as the pack's converter does, matrices in `kind`; returns the weights that are read from it."""
    import gguf

    writer, read = gguf.GGUFWriter(str(path), architecture), {}
    types = gguf.GGMLQuantizationType
    for name, weight in weights.items():
        values = weight.float().numpy()
        quantised = values.ndim == 2 and values.shape[1] % BLOCK == 0
        chosen = types.F32 if values.ndim == 1 or kind == "F32" else types[kind] if quantised else types.F16
        stored = gguf.quants.quantize(values, chosen)
        writer.add_tensor(name, stored, raw_dtype=chosen)
        values = np.array(gguf.quants.dequantize(stored, chosen), np.float32)
        read[name] = torch.from_numpy(values).view(weight.shape)
        if chosen == types[kind] and kind.startswith("Q"):
            read[name] = read[name].half().float()  # the pack dequantises in half precision
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def cases(networks, kinds):
    given = [(network, kind) for network in networks for kind in kinds]
    return pytest.mark.parametrize("case", given, ids="-".join, indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request, loader, comfy, files, stock):
    """MODELs of the GGUF file, of its dequantised weights and of the original, prompts, VAE, channels and kind."""
    import comfy.sd
    import folder_paths

    name, kind = request.param
    checkpoint, architecture, channels = NETWORKS[name]
    folder = files / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    stored = load_file(files / "models" / "checkpoints" / f"{checkpoint}.safetensors")
    weights = {path.removeprefix(PREFIX): value for path, value in stored.items() if path.startswith(PREFIX)}
    file = folder / f"{name}-{kind}.gguf"
    read = write(file, architecture, weights, kind)
    with torch.inference_mode():  # as the server does
        original, clip, vae = stock.CheckpointLoaderSimple().load_checkpoint(f"{checkpoint}.safetensors")[:3]
        prompts = [stock.CLIPTextEncode().encode(clip, text)[0] for text in ("a cat", "")]
        model = loader.load_unet(file.name)[0]
        plain = comfy.sd.load_diffusion_model_state_dict(read, model_options={"dtype": torch.float32})
    packed = any(hasattr(p, "tensor_type") and p.tensor_type.name == kind for p in model.model.parameters())
    assert packed and type(model).__name__ == "GGUFModelPatcher"
    return model, plain, original, prompts, vae, channels, kind


def gradients(adapter, model, prompts, channels):
    """A guided prediction, and its gradients plain and by blocks; the name of the model."""
    prompt = adapter.from_comfy(prompts[0], adapter.POSITIVE)
    null = adapter.from_comfy(prompts[1], adapter.NEGATIVE)
    shape = (1, channels, 16, 16)

    def work(network, _):
        def derivative():
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
            y = network.guided(x, torch.tensor(1.0), prompt, null, 3.0)[0]
            return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

        out, plain = derivative()
        with network.recomputing():
            assert torch.equal(derivative()[1], plain)
        return out, plain, network.name

    with torch.inference_mode():
        return adapter.run(model, None, prompt, null, shape, work)


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def sampled(stock, model, prompts, channels):
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, channels, 16, 16)}
        return stock.common_ksampler(model, 3, 2, 4.5, "euler", "normal", *prompts, latent)[0]["samples"].clone()


@cases(NETWORKS, KINDS)
def test_gradients_are_those_of_the_dequantised_weights(case, adapter, stock):
    model, plain, original, prompts, _, channels, kind = case
    before = sampled(stock, model, prompts, channels)
    out, gradient, name = gradients(adapter, model, prompts, channels)
    expected_out, expected, expected_name = gradients(adapter, plain, prompts, channels)
    assert distance(out, expected_out) < 1e-6 and distance(gradient, expected) < 1e-5
    assert torch.equal(sampled(stock, model, prompts, channels), before)
    of_original = gradients(adapter, original, prompts, channels)[1]
    if kind.startswith("Q"):
        assert name != expected_name  # it is another model than the one that it was made of
        assert 1e-4 < distance(gradient, of_original) < (0.05 if kind == "Q8_0" else 0.8)
    else:
        assert name == expected_name and distance(gradient, of_original) < 1e-3


@cases(["UNet"], ["F16", "Q8_0"])
def test_lora(case, adapter, stock):
    """A LoRA, which the pack adds to quantised weights after dequantising them, and merges into others in float16."""
    model, plain, _, prompts, _, channels, kind = case
    with torch.inference_mode():
        loras = [
            stock.LoraLoaderModelOnly().load_lora_model_only(m, "tiny.safetensors", 1.0)[0] for m in (model, plain)
        ]
    before = sampled(stock, loras[0], prompts, channels)
    (_, gradient, name), (_, expected, _) = (gradients(adapter, m, prompts, channels) for m in loras)
    assert distance(gradient, expected) < (1e-5 if kind == "Q8_0" else 2e-3)
    _, without, bare = gradients(adapter, model, prompts, channels)
    assert distance(gradient, without) > 1e-2 and name.startswith(f"{bare}+")
    assert torch.equal(sampled(stock, loras[0], prompts, channels), before)


@cases(NETWORKS, ["F16", "Q8_0"])
def test_the_stages(case, nodes, key, extractor, message, stock):  # noqa: F811
    """Inversion, two iterations of optimisation and constrained denoising give the image of the dequantised weights."""
    model, plain, _, prompts, vae, channels, _ = case
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(3))
    image = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1).movedim(1, -1)
    with torch.inference_mode():
        latent = stock.VAEEncode().encode(vae, image)[0]

    def marked(network):
        inversion = nodes.NullTextInversion(
            model=network, positive=prompts[0], negative=prompts[1], latent=latent, **SETTINGS
        )
        optimised = nodes.OptimizeNoise(
            model=network,
            vae=vae,
            inversion=inversion[0],
            image=image,
            extractor=extractor,
            message=message,
            **{**FAST, "iterations": 2},
        )
        kept = dict.fromkeys(("composition", "strength", "pseudo_mask", "attention"), "as optimised")
        drawn = nodes.ConstrainedDenoise(
            model=network, vae=vae, watermark=optimised[0], image=image, quality=90.0, target_psnr=0.0, **kept
        )
        assert optimised[0][0].delta.abs().max() > 0
        return inversion[0][0].latents, drawn[0], drawn[2]["samples"]

    before = sampled(stock, model, prompts, channels)
    found, expected = marked(model), marked(plain)
    assert torch.equal(sampled(stock, model, prompts, channels), before)
    assert not torch.equal(found[1], image)
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) < 1e-4
