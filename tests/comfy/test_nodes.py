"""The nodes in ComfyUI's own process, on the embedded model at the smallest sizes."""

import importlib
import json
from dataclasses import replace

import pytest
import torch

SIZE = 128
NOTHING = {"message_weight": -1.0, "image_weight": -1.0, "attention_weight": -1.0, "attacks": 1}
FAST = {"preset": "fast", "iterations": 4, "target_psnr": 42.0, "seed": 1, **NOTHING}


@pytest.fixture(scope="module")
def nodes(pack):
    """Node id -> execute, as a function that returns the tuple of outputs."""
    package = importlib.import_module(f"{pack.__name__}.nodes")
    classes = {node.define_schema().node_id.removeprefix("ONRW_"): node for node in package.NODES}

    class Nodes:
        def __getattr__(self, name):
            def execute(**inputs):
                with torch.inference_mode():  # as the server does
                    return classes[name].execute(**inputs).args

            return execute

    found = Nodes()
    found.classes = classes
    return found


@pytest.fixture(scope="module")
def mini(nodes):
    return nodes.LoadMini()


@pytest.fixture(scope="module")
def key(nodes, files):
    return nodes.Key(source="file", name="test", create=True)[0]


@pytest.fixture(scope="module")
def extractor(nodes, key):
    return nodes.LoadExtractor(key=key, extractor="keyed", allow_torchscript=False)[0]


@pytest.fixture(scope="module")
def message(nodes, key):
    return nodes.Message(key=key, kind="hex id", value="c0ffee", num_bits="auto", seed=0)[0]


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 3, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic", align_corners=True)
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1).movedim(1, -1)


@pytest.fixture(scope="module")
def prompts(nodes, mini, stock):
    with torch.inference_mode():
        return nodes.EncodePrompt(clip=mini[1], text="a red house", word="house")[0], stock.CLIPTextEncode().encode(
            mini[1], ""
        )[0]


@pytest.fixture(scope="module")
def invert(nodes, mini, prompts, stock):
    def run(image, **changes):
        with torch.inference_mode():
            latent = stock.VAEEncode().encode(mini[2], image)[0]
        settings = {
            "preset": "fast",
            "steps": 2,
            "start_sigma": 0.0,
            "guidance": 0.0,
            "method": "as preset",
            "inner_steps": 3,
            "convention": "source",
        }
        return nodes.NullTextInversion(
            model=mini[0], positive=prompts[0], negative=prompts[1], latent=latent, **{**settings, **changes}
        )

    return run


@pytest.fixture(scope="module")
def inversion(invert, image):
    return invert(image[:1])


@pytest.fixture(scope="module")
def watermark(nodes, mini, inversion, image, extractor, message):
    return nodes.OptimizeNoise(
        model=mini[0],
        vae=mini[2],
        inversion=inversion[0],
        image=image[:1],
        extractor=extractor,
        message=message,
        **FAST,
    )


def denoise(nodes, mini, watermark, image, **changes):
    settings = dict.fromkeys(("composition", "pseudo_mask", "attention"), "as optimised") | {"target_psnr": 0.0}
    return nodes.ConstrainedDenoise(
        model=mini[0], vae=mini[2], watermark=watermark, image=image, **(settings | changes)
    )


def decibels(a, b):
    return -10 * (a - b).square().mean().log10().item()


def sample(nodes, mini, record, branch, stock):
    """What SamplerCustomAdvanced with euler and VAEDecode make of ONRW_Guider."""
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustomAdvanced

    guider, noise, sigmas, latent = nodes.Guider(model=mini[0], record=record, branch=branch)
    with torch.inference_mode():
        euler = KSamplerSelect().get_sampler("euler")[0]
        drawn = SamplerCustomAdvanced().sample(noise, guider, euler, sigmas, latent)[0]
        return stock.VAEDecode().decode(mini[2], drawn)[0]


def test_inversion_is_retraced(nodes, mini, inversion, image, stock):
    records, noise, sigmas, preview = inversion
    assert len(records) == 1 and noise["samples"].shape == (1, 16, SIZE // 8, SIZE // 8)
    assert preview.shape == (1, SIZE, SIZE, 3) and torch.equal(sigmas, records[0].sigmas)
    with torch.inference_mode():
        plain = stock.VAEDecode().decode(mini[2], stock.VAEEncode().encode(mini[2], image[:1])[0])[0]
    assert decibels(sample(nodes, mini, records, "original", stock), plain) > 28


def test_null_text_brings_guided_sampling_back(invert, image):
    strong = {"guidance": 4.5, "start_sigma": 2.0, "steps": 3}
    (plain,) = invert(image[:1], method="ddim", **strong)[0]
    (better,) = invert(image[:1], method="null-text", inner_steps=10, **strong)[0]
    assert plain.null_embeddings is None
    assert better.null_embeddings.shape[0] == 3 and better.null_embeddings.is_inference() is False


def test_marked_image_meets_its_target_and_keeps_its_size(nodes, mini, watermark, image):
    marked, area, latent, residual = denoise(nodes, mini, watermark[0], image[:1])
    assert marked.shape == image[:1].shape and residual.shape == marked.shape
    assert area.shape == (1, SIZE, SIZE) and area.min() == 1
    assert latent["samples"].shape == (1, 16, SIZE // 8, SIZE // 8)
    assert 41.9 <= decibels(marked, image[:1])
    large = torch.nn.functional.interpolate(image[:1].movedim(-1, 1), (300, 301), mode="bicubic").clamp(0, 1)
    bigger = denoise(nodes, mini, watermark[0], large.movedim(1, -1), target_psnr=38.0)[0]
    assert bigger.shape == (1, 300, 301, 3)
    assert abs(decibels(bigger, large.movedim(1, -1)) - 38) < 0.1


def test_sampler_graph_draws_the_same_picture(nodes, mini, watermark, image, stock):
    expected = denoise(nodes, mini, watermark[0], image[:1])[0]
    marked, original = (sample(nodes, mini, watermark[0], branch, stock) for branch in ("marked", "original"))
    composed, _ = nodes.Compose(
        original=image[:1],
        decoded_marked=marked,
        decoded_original=original,
        mode="residual",
        target_psnr=42.0,
        luma_only=True,
    )
    difference = (composed - expected).abs()
    # Both are rounded to 8 bit: values that agree to the last float digits fall on two sides of a level now and then.
    assert (difference > 1e-3).float().mean() < 1e-3 and difference.max() < 1.5 / 255


def test_sampler_graph_with_injected_attention_and_null_embeddings(
    nodes, mini, invert, image, extractor, message, stock
):

    (record,), *_ = invert(image[:1], method="null-text", guidance=3.0, start_sigma=1.0)
    made = nodes.OptimizeNoise(
        model=mini[0],
        vae=mini[2],
        inversion=(record,),
        image=image[:1],
        extractor=extractor,
        message=message,
        **{**FAST, "iterations": 2},
    )[0][0]
    made = (replace(made, settings=replace(made.settings, inject=True)),)
    with torch.inference_mode():
        latent = denoise(nodes, mini, made, image[:1])[2]
        expected = stock.VAEDecode().decode(mini[2], latent)[0]
    drawn = sample(nodes, mini, made, "marked", stock)
    assert (drawn - expected).abs().max() <= 1e-3
    (plain,) = (replace(one, settings=replace(one.settings, inject=False)) for one in made)
    assert not torch.equal(sample(nodes, mini, (plain,), "marked", stock), drawn)


def test_mask_limits_the_area(nodes, mini, inversion, image, extractor, message):
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, :, : SIZE // 2] = 1
    made = nodes.OptimizeNoise(
        model=mini[0],
        vae=mini[2],
        inversion=inversion[0],
        image=image[:1],
        extractor=extractor,
        message=message,
        mask=mask,
        **FAST,
    )[0]
    marked, area, *_ = denoise(nodes, mini, made, image[:1])
    levels = (image[:1] * 255).round() / 255
    assert torch.equal((marked * 255).round()[:, :, SIZE // 2 + 8 :], (levels * 255).round()[:, :, SIZE // 2 + 8 :])
    assert not torch.equal(marked[:, :, : SIZE // 2], image[:1, :, : SIZE // 2])
    assert area[:, :, : SIZE // 2 - 8].min() > 0.9 and area[:, :, SIZE // 2 + 8 :].max() < 0.1


def test_batches_have_a_seed_and_an_id_each(nodes, mini, image, key, extractor):
    message, bits = nodes.Message(key=key, kind="random id", value="", num_bits="48", seed=5, images=image)
    assert len(message) == 2 and len(set(bits.splitlines())) == 2
    inputs = {
        "model": mini[0],
        "vae": mini[2],
        "clip": mini[1],
        "prompt": "",
        "size": SIZE,
        "extractor": extractor,
        "message": message,
        **FAST,
    }
    marked, report = nodes.Watermark(image=image, **inputs)
    assert marked.shape == image.shape
    lines = [json.loads(line) for line in report.splitlines()]
    assert [line["bits"] for line in lines] == bits.splitlines()
    assert all(line["psnr"] > 41.9 for line in lines)
    alone, _ = nodes.Watermark(image=image[1:], **{**inputs, "message": message[1:], "seed": FAST["seed"] + 1})
    assert torch.equal(alone[0], marked[1])


def test_extract_of_an_unmarked_image(nodes, image, extractor, message):
    text, detected, log10_p, match, accuracy, report, straight = nodes.Extract(
        image=image, extractor=extractor, target_fpr=1e-6, message=message
    )
    assert not detected and not match
    assert all("nothing found" in line for line in text.splitlines()) and log10_p > -6 and 0 < accuracy < 1
    assert len(report.splitlines()) == 2 and straight.shape == image.shape
    entry = json.loads(report.splitlines()[0])
    assert entry["text"] is None and entry["id"] is None and len(entry["bits"]) == 48


def test_report_names_the_tokens_of_the_mask(nodes, watermark):
    report = json.loads(watermark[3])
    assert report["mask_tokens"] is None and report["iterations"] <= FAST["iterations"]
    assert watermark[2].shape[0] == 1 and watermark[2].shape[-1] == 3


def test_prompt_spans(nodes, mini, checkpoint):
    for clip in (mini[1], checkpoint[1]):
        conditioning = nodes.EncodePrompt(clip=clip, text="a (red:1.2) fire truck, a fire", word="fire truck")[0]
        options = conditioning[0][1]
        assert set(options["onrw_word"]) < set(options["onrw_content"])
        assert 0 not in options["onrw_content"]
        entries = [e for chunk in next(iter(clip.tokenize("a (red:1.2) fire truck, a fire").values())) for e in chunk]
        chosen = {entries[i][0] for i in options["onrw_word"]}
        assert len(chosen) == 2
        with pytest.raises(ValueError, match="horse"):
            nodes.EncodePrompt(clip=clip, text="a cat", word="horse")


def test_saved_inversions_load_again(nodes, inversion, files, monkeypatch):
    saver = nodes.classes["SaveInversion"]
    assert saver.define_schema().is_output_node
    nodes.SaveInversion(inversion=inversion[0], filename_prefix="onrw/kept")
    (option,) = [o for o in nodes.classes["LoadInversion"].define_schema().inputs[0].options if "kept" in o]
    assert option.endswith("[output]")
    (loaded,) = nodes.LoadInversion(file=option)[0]
    assert torch.equal(loaded.latents, inversion[0][0].latents)
    assert loaded.positive.word == inversion[0][0].positive.word
    assert nodes.classes["LoadInversion"].validate_inputs(file="missing.safetensors") is not True


def test_a_controlnet_has_to_be_connected_again(nodes, mini, inversion, image, extractor, message, tmp_path):

    record = inversion[0][0]
    replace(record, requires_positive=True).save(tmp_path / "kept.safetensors")
    loaded = type(record).load(tmp_path / "kept.safetensors")
    with pytest.raises(ValueError, match="positive: .*ControlNet"):
        nodes.Guider(model=mini[0], record=(loaded,), branch="original")
    nodes.Guider(model=mini[0], record=(loaded,), branch="original", positive=[[record.positive.embeddings, {}]])


def test_keys_are_files_and_never_overwritten(nodes, files, monkeypatch):
    first = nodes.Key(source="file", name="mine", create=True)[0]
    assert nodes.Key(source="file", name="mine", create=True)[0].fingerprint == first.fingerprint
    assert (files / "user" / "__onrw_keys" / "mine.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="onrw key new|no such|No such"):
        nodes.Key(source="file", name="absent", create=False)
    assert nodes.classes["Key"].validate_inputs(name="../escape") is not True
    monkeypatch.setenv("ONRW_KEY", first.text())
    source = nodes.classes["Key"].define_schema().inputs[0].options[1]
    assert nodes.Key(source=source, name="", create=False)[0].fingerprint == first.fingerprint
    assert nodes.classes["Key"].fingerprint_inputs(source, "", False) == first.fingerprint


def test_messages_that_do_not_fit_are_refused_before_the_run(nodes):
    check = nodes.classes["Message"].validate_inputs
    assert check(kind="text", value="ONRW", num_bits="auto") is True
    assert "bits" in check(kind="text", value="x" * 100, num_bits="auto")
    assert "hexadecimal" in check(kind="hex id", value="xyz", num_bits="auto")


def test_decoders_of_others_get_the_attacks_that_they_can_stand(pack, extractor):
    settings = importlib.import_module(f"{pack.__name__}.nodes.optimise").marking_settings
    theirs = replace(extractor, source="rivagan")
    assert settings("fast", extractor, mix="all").mix == "all" and settings("fast", theirs, mix="all").mix == "upright"
    assert settings("fast", theirs, mix="values").mix == "values" and not settings("fast", theirs).visibility
    assert settings("fast", theirs, iterations=3).iterations == 3 and settings("fast", theirs).iterations > 3


def test_attacks(nodes, image):
    turned = nodes.Attack(image=image, attack="rotation", default_strength=False, strength=90.0, seed=0)[0]
    assert turned.shape == image.shape
    noisy = [
        nodes.Attack(image=image, attack="noise", default_strength=True, strength=0.0, seed=seed)[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    check = nodes.classes["Attack"].validate_inputs
    assert check(attack="jpeg", default_strength=False, strength=50.0) is True
    assert "out of range" in check(attack="jpeg", default_strength=False, strength=500.0)


def test_wrong_partners_are_errors_that_say_so(
    nodes, mini, checkpoint, watermark, image, inversion, extractor, message
):
    with pytest.raises(ValueError, match="model: the inversion was made with"):
        denoise(nodes, (checkpoint[0], None, checkpoint[2]), watermark[0], image[:1])
    with pytest.raises(ValueError, match="another shape"):
        denoise(nodes, mini, watermark[0], image[:1, : SIZE // 2])
    with pytest.raises(ValueError, match="inversion: 3 of them for 2 images"):
        nodes.OptimizeNoise(
            model=mini[0],
            vae=mini[2],
            inversion=inversion[0] * 3,
            image=image,
            extractor=extractor,
            message=message,
            **FAST,
        )
    with pytest.raises(ValueError, match="positive: connect"):
        nodes.Watermark(
            model=mini[0], vae=mini[2], image=image, extractor=extractor, message=message, prompt="", size=SIZE, **FAST
        )
