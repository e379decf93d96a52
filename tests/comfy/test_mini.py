"""The embedded model with ComfyUI's stock nodes."""

import importlib

import pytest
import torch


@pytest.fixture(scope="module")
def mini(adapter):
    with torch.inference_mode():
        return adapter.mini.load()


@pytest.fixture(scope="module")
def library(core):
    return importlib.import_module(f"{core.__name__}.mini").load_mini()


def test_same_prediction_as_the_library(mini, library, stock):
    with torch.inference_mode():
        conditioning = stock.CLIPTextEncode().encode(mini[1], "a cat on a hill")[0][0][0]
    expected = library.encode("a cat on a hill").embeddings
    torch.testing.assert_close(conditioning.clone(), expected)
    x = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(0)) * 3
    for sigma in library.model.sigmas[[5, 400, 900]]:
        with torch.no_grad():
            ours = library.model.denoise(x, sigma, [library.encode("a cat on a hill")])[0][0]
            theirs = mini[0].model.apply_model(x, sigma[None], c_crossattn=expected)
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_same_sigmas_as_the_library(mini, library):
    torch.testing.assert_close(
        mini[0].get_model_object("model_sampling").sigmas, library.model.sigmas, rtol=1e-4, atol=1e-5
    )


def test_prompt_weights(mini, stock):
    def encode(text):
        with torch.inference_mode():
            return stock.CLIPTextEncode().encode(mini[1], text)[0][0][0].clone()

    plain, heavy, none = encode("a cat"), encode("a (cat:1.5)"), encode("a (cat:1.0)")
    empty = encode("")
    torch.testing.assert_close(none, plain)
    cats = [i for i, (_, weight) in enumerate(mini[1].tokenize("a (cat:1.5)")["mini"][0]) if weight == 1.5]
    assert cats and cats[0] == 2
    torch.testing.assert_close(heavy[:, cats], empty[:, cats] + 1.5 * (plain - empty)[:, cats])
    others = [i for i in range(plain.shape[1]) if i not in cats]
    torch.testing.assert_close(heavy[:, others], plain[:, others])


def test_text_to_image_and_back(mini, stock):
    model, clip, vae = mini
    with torch.inference_mode():
        prompt, empty = (stock.CLIPTextEncode().encode(clip, text)[0] for text in ("a hill", ""))
        latent = stock.EmptyLatentImage().generate(128, 128)[0]
        drawn = stock.common_ksampler(model, 1, 3, 3.0, "euler", "normal", prompt, empty, latent)[0]
        image = stock.VAEDecode().decode(vae, drawn)[0]
        assert image.shape == (1, 128, 128, 3) and 0 <= image.min() and image.max() <= 1
        again = stock.VAEDecode().decode(vae, stock.VAEEncode().encode(vae, image)[0])[0]
        assert (again - image).square().mean().sqrt() < 0.1
        odd = stock.VAEEncode().encode(vae, torch.rand(2, 75, 131, 3))[0]["samples"]
        assert odd.shape == (2, 16, 9, 16)


def test_latent_preview_has_the_colours_of_the_picture(mini, stock):
    model, _, vae = mini
    ramp = torch.linspace(0, 1, 64)[:, None].expand(64, 64)
    image = torch.stack([ramp, ramp.T, 1 - ramp], -1)[None]
    with torch.inference_mode():
        latent = model.model.process_latent_in(stock.VAEEncode().encode(vae, image)[0]["samples"])
    form = model.model.latent_format
    shown = latent[0].movedim(0, -1) @ torch.tensor(form.latent_rgb_factors) + torch.tensor(
        form.latent_rgb_factors_bias
    )
    small = torch.nn.functional.avg_pool2d(image.movedim(-1, 1), 8)[0].movedim(0, -1)
    assert (shown / 2 + 0.5 - small).abs().mean() < 0.08
