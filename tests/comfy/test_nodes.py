"""The nodes in ComfyUI's own process, on the embedded model at the smallest sizes."""

import importlib
import json
import logging
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

SIZE = 128
FAST = {"preset": "fast", "tuning": "custom", "iterations": 4, "attacks": 1, "target_psnr": 42.0, "seed": 1}
CUSTOM = {"strength": "custom", "quality": 70.0}
PLAIN = {"text": "", "strength": "balanced", "quality": 90.0, "preset": "quick", "size": SIZE, "public_label": "none"}


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
def key(nodes, files, core):
    folder = files / "user" / "__onrw_keys"
    folder.mkdir(exist_ok=True)
    importlib.import_module(f"{core.__name__}.payload.keys").Key(bytes(range(32))).save(folder / "test.key")
    return nodes.Key(source="file", name="test", create=False)[0]


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
            "schedule": "custom",
            "steps": 2,
            "start_sigma": 0.2,
            "guidance": 1.0,
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
    settings = dict.fromkeys(("composition", "strength", "pseudo_mask", "attention"), "as optimised") | {
        "quality": 90.0,
        "target_psnr": 0.0,
    }
    return nodes.ConstrainedDenoise(
        model=mini[0], vae=mini[2], watermark=watermark, image=image, **(settings | changes)
    )


def composing(nodes, image, marked, original, **changes):
    settings = {"mode": "residual", "strength": "as optimised", "quality": 90.0, "target_psnr": 0.0, "luma_only": True}
    return nodes.Compose(original=image[:1], decoded_marked=marked, decoded_original=original, **(settings | changes))


def extracted(nodes, image, extractor, message):
    """The text that Read Watermark gives for an image that carries `message`."""
    text, detected, _, match, *_ = nodes.Read(image=image, extractor=extractor, target_fpr=1e-6, message=message)
    return text if detected and match else None


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


def test_null_text_brings_guided_sampling_back(nodes, mini, invert, image, stock):
    strong = {"guidance": 4.5, "start_sigma": 2.0, "steps": 3}
    plain = invert(image[:1], method="ddim", **strong)[0]
    better = invert(image[:1], method="null-text", inner_steps=10, **strong)[0]
    assert plain[0].null_embeddings is None
    assert better[0].null_embeddings.shape[0] == 3 and better[0].null_embeddings.is_inference() is False
    with torch.inference_mode():
        decoded = stock.VAEDecode().decode(mini[2], stock.VAEEncode().encode(mini[2], image[:1])[0])[0]
    far, near = (decibels(sample(nodes, mini, record, "original", stock), decoded) for record in (plain, better))
    assert near > far + 3


def test_marked_image_meets_its_target_and_is_read(nodes, mini, watermark, image, extractor, message, caplog):
    marked, area, latent, residual = denoise(nodes, mini, watermark[0], image[:1])
    assert marked.shape == image[:1].shape and residual.shape == marked.shape
    assert area.shape == (1, SIZE, SIZE) and area.min() == 1
    assert latent["samples"].shape == (1, 16, SIZE // 8, SIZE // 8)
    assert 41.9 <= decibels(marked, image[:1])
    assert extracted(nodes, marked, extractor, message) == "c0ffee"
    large = torch.nn.functional.interpolate(image[:1].movedim(-1, 1), (300, 301), mode="bicubic").clamp(0, 1)
    bigger = denoise(nodes, mini, watermark[0], large.movedim(1, -1), target_psnr=38.0)[0]
    assert bigger.shape == (1, 300, 301, 3)
    assert abs(decibels(bigger, large.movedim(1, -1)) - 38) < 0.1
    assert extracted(nodes, bigger, extractor, message) == "c0ffee"
    assert "cannot be read" not in caplog.text


def test_stages_warn_where_the_watermark_cannot_be_read(
    nodes, mini, inversion, watermark, image, extractor, message, caplog
):
    denoise(nodes, mini, watermark[0], image[:1], target_psnr=60.0)
    assert "Denoise Watermark: the watermark cannot be read from the image; " in caplog.text
    nodes.OptimizeNoise(
        model=mini[0],
        vae=mini[2],
        inversion=inversion[0],
        image=image[:1],
        extractor=extractor,
        message=message,
        **{**FAST, "target_psnr": 60.0},
    )
    assert "Optimize Watermark Noise: the watermark cannot be read from the image; " in caplog.text


def test_sampler_graph_draws_the_same_picture(nodes, mini, watermark, image, stock):
    expected = denoise(nodes, mini, watermark[0], image[:1])[0]
    marked, original = (sample(nodes, mini, watermark[0], branch, stock) for branch in ("marked", "original"))
    composed, _ = composing(nodes, image, marked, original, watermark=watermark[0])
    difference = (composed - expected).abs()
    # Both are rounded to 8 bit: values that agree to the last float digits fall on two sides of a level now and then.
    assert (difference > 1e-3).float().mean() < 1e-3 and difference.max() < 1.5 / 255


def test_strengths_of_the_stages_are_those_of_the_preset(nodes, mini, watermark, image, stock):
    strong = tuple(replace(each, balanced=70.0) for each in watermark[0])
    marked, original = (sample(nodes, mini, strong, branch, stock) for branch in ("marked", "original"))
    for name, score in (("strong", 60.0), ("balanced", 70.0)):
        for made in (
            lambda record, **given: denoise(nodes, mini, record, image[:1], **given)[0],
            lambda record, **given: composing(nodes, image, marked, original, watermark=record, **given)[0],
        ):
            assert torch.equal(made(strong, strength=name), made(strong, strength="custom", quality=score))
            assert not torch.equal(made(strong, strength=name), made(watermark[0], strength=name))


def test_compose_wants_the_watermark_of_the_sampled_noise(nodes, watermark, image):
    small = image[:1, :64, :64]
    with pytest.raises(ValueError, match="watermark: it was optimised for decoded images of"):
        composing(nodes, image, small, small, watermark=watermark[0])


def test_compose_can_be_cancelled(nodes, image):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            composing(nodes, image, image[:1] * 0.9, image[:1])
    finally:
        comfy.model_management.interrupt_current_processing(False)


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


def test_random_ids_of_a_batch(nodes, image, key):
    message, bits = nodes.Message(key=key, kind="random id", value="", num_bits="48", seed=5, images=image)
    assert len(message) == 2 and len(set(bits.splitlines())) == 2


def test_embed_marks_each_image_of_a_batch_with_its_own_seed_and_id(nodes, image, key):
    marked, report = nodes.Embed(image=image, key=key, seed=1, **PLAIN)
    assert marked.shape == image.shape
    lines = [json.loads(line) for line in report.splitlines()]
    assert all(line["readable"] and line["ssimulacra2"] > 89.9 for line in lines)
    assert len({line["message"] for line in lines}) == 2
    alone, other = nodes.Embed(image=image[1:], key=key, seed=2, **PLAIN)
    assert torch.equal(alone[0], marked[1]) and json.loads(other)["message"] == lines[1]["message"]
    seen = {nodes.Read(image=one[None], key=key, target_fpr=1e-6)[0] for one in marked}
    assert seen == {line["message"] for line in lines}


def test_a_clip_has_one_watermark_that_moves_with_the_scene(nodes, image, key):
    frames = torch.stack([image[0].roll(-6 * number, 1)[:, : SIZE - 32] for number in range(3)])
    inputs = {**PLAIN, "image": frames, "key": key, "seed": 0, "frames": "one clip"}
    marked, report = nodes.Embed(**inputs)
    line = json.loads(report)
    assert marked.shape == frames.shape and line["readable"] and line["ssimulacra2"] > 89.9
    before, after = (marked - frames)[:2]
    along = torch.nn.functional.cosine_similarity(before[:, 6:].flatten(), after[:, :-6].flatten(), dim=0)
    assert along > 0.8
    text, detected, log10_p, _, _, readings, straight = nodes.Read(
        image=marked, key=key, target_fpr=1e-6, frames="one clip"
    )
    assert text == line["message"] and detected and len(readings.splitlines()) == 1
    assert straight.shape[0] == 3
    again, report = nodes.Embed(**{**inputs, "image": marked})
    assert torch.equal(again, marked) and json.loads(report)["already_marked"]


def test_an_image_that_is_marked_already_is_left_unchanged(nodes, image, key, caplog):
    marked, _ = nodes.Embed(image=image[:1], key=key, seed=0, **{**PLAIN, "strength": "strong"})
    again, report = nodes.Embed(image=torch.cat([marked, image[1:]]), key=key, seed=0, **PLAIN)
    first, second = map(json.loads, report.splitlines())
    assert torch.equal(again[0], marked[0]) and first["already_marked"] and first["detected"]
    assert not torch.equal(again[1], image[1]) and "already_marked" not in second
    assert "images 0 (from 0): marked already with this key, left unchanged" in caplog.text
    with torch.inference_mode():
        saved = nodes.classes["SaveImage"].execute(
            images=marked, key=key, format="PNG", filename_prefix="again", file_quality=95, note="for Bob", **PLAIN
        )
    (card,), (file,) = saved.ui["onrw"], saved.ui["images"]
    assert card["state"] == "warning" and card["lines"][0] == "Marked already with this key; the image is unchanged."
    assert "The note is not kept" in " ".join(card["lines"]) and file["filename"].startswith("again")
    assert torch.equal(saved.args[0], marked)


def test_embed_with_a_model_of_ones_own(nodes, checkpoint, prompts, image, key, stock):
    with torch.inference_mode():
        prompt = stock.CLIPTextEncode().encode(checkpoint[1], "a cat")[0]
    own = {"model": checkpoint[0], "vae": checkpoint[2]}
    inputs = {**PLAIN, "image": image[:1], "key": key, "seed": 0, "preset": "fast"} | CUSTOM
    marked, report = nodes.Embed(**inputs, **own, prompt=prompt)
    assert marked.shape == image[:1].shape and json.loads(report)["ssimulacra2"] > 69.9
    with pytest.raises(ValueError, match="connect `model`, `vae` and `prompt`"):
        nodes.Embed(**inputs, **own)


def test_strengths_order_the_visible_quality(nodes, image, key):
    found = {}
    for strength in ("subtle", "balanced", "strong"):
        report = nodes.Embed(image=image[:1], key=key, seed=0, **{**PLAIN, "strength": strength})[1]
        found[strength] = json.loads(report)["ssimulacra2"]
    assert found["subtle"] >= 95 and found["balanced"] >= 90 and found["strong"] >= 80
    assert found["subtle"] > found["balanced"] > found["strong"]


def test_audit_of_an_image_alone(nodes, image, key):
    marked, _ = nodes.Embed(image=image[:1], key=key, seed=0, **{**PLAIN, "strength": "strong"})
    _, _, report = nodes.Audit(image=marked, key=key, suite="onrw12", seed=0)
    entries = json.loads(report)["attacks"]
    assert entries[0]["bit_accuracy"] == 1 and len(entries) == 13
    with pytest.raises(ValueError, match="image: it carries no watermark"):
        nodes.Audit(image=image[:1], key=key, suite="onrw12", seed=0)


def test_folders_stay_inside_the_input_folder(nodes, files):
    place = files / "input" / "mine"
    place.mkdir(exist_ok=True)
    for name, colours in (("b.png", "RGBA"), ("a.jpg", "RGB")):
        Image.new(colours, (80, 70)).save(place / name)
    (place / "notes.txt").write_text("")
    images, names = nodes.LoadFolder(folder="mine", pattern="*")
    assert names == ["a", "b"] and [tuple(one.shape) for one in images] == [(1, 70, 80, 3), (1, 70, 80, 4)]
    for folder in ("..", "/", "absent"):
        with pytest.raises(ValueError, match="no folder inside"):
            nodes.LoadFolder(folder=folder, pattern="*")


def test_folders_are_loaded_as_the_command_does_and_the_rest_is_named(nodes, files, caplog):
    place = files / "input" / "all kinds"
    (place / "inside").mkdir(parents=True)
    image = Image.new("RGB", (80, 70))
    for name in ("a.jpg", "b.gif", "c.PNG"):
        image.save(place / name)
    image.save(place / "d", "PNG")
    image.save(place / "e.gif", save_all=True, append_images=[Image.new("RGB", (80, 70), "red")])
    (place / "f.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    (place / "g.txt").write_text("")
    (place / ".h.png").write_bytes((place / "d").read_bytes())
    os.mkfifo(place / "i.png")
    with caplog.at_level(logging.WARNING):
        images, names = nodes.LoadFolder(folder="all kinds", pattern="*")
    assert names == ["a", "b", "c", "d"] and all(tuple(one.shape) == (1, 70, 80, 3) for one in images)
    for words in (
        "left out: e.gif: has 2 frames or pages; save one of them as an image; ",
        "f.heic: is a HEIC image, which cannot be read; export it as JPEG or PNG; ",
        "hidden files: .h.png; ",
        "not images, or of unsupported formats: g.txt; ",
        "pipes, devices and broken links: i.png; ",
        "folders in it, to load one by one: inside",
    ):
        assert words in caplog.text
    caplog.clear()
    assert nodes.LoadFolder(folder="all kinds", pattern="[ac].*")[1] == ["a", "c"] and not caplog.messages
    with pytest.raises(ValueError, match="no image 'f.*' in input/all kinds; .* f.heic: is a HEIC image"):
        nodes.LoadFolder(folder="all kinds", pattern="f.*")


def test_extract_of_an_unmarked_image(nodes, image, extractor, message):
    text, detected, log10_p, match, accuracy, report, straight = nodes.Read(
        image=image, extractor=extractor, target_fpr=1e-6, message=message
    )
    assert not detected and not match
    assert all("nothing found" in line for line in text.splitlines()) and log10_p > -6 and 0 < accuracy < 1
    assert len(report.splitlines()) == 2 and straight.shape == image.shape
    entry = json.loads(report.splitlines()[0])
    assert entry["text"] is None and entry["id"] is None and len(entry["bits"]) == 48


@pytest.fixture
def decoder(nodes, key, files, monkeypatch):
    """A HiDDeN decoder in models/watermark_extractors, and a function that makes it read bits from an image."""
    import folder_paths

    folder, generator, bits = files / "models" / "decoders", torch.Generator().manual_seed(0), 128
    folder.mkdir(exist_ok=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "watermark_extractors", ([str(folder)], {".pth"}))
    state = {
        "layers.0.layers.0.weight": torch.randn(8, 3, 3, 3, generator=generator),
        "layers.0.layers.0.bias": torch.zeros(8),
        "layers.0.layers.1.weight": torch.ones(8),
        "layers.0.layers.1.bias": torch.zeros(8),
        "layers.0.layers.1.running_mean": torch.zeros(8),
        "layers.0.layers.1.running_var": torch.ones(8),
        "linear.weight": torch.randn(bits, 8, generator=generator),
    }

    def load(image, said):
        def reader(bias):
            torch.save({**state, "linear.bias": bias}, folder / "decoder.pth")
            return nodes.LoadExtractor(key=key, extractor="decoder.pth", allow_torchscript=False)[0]

        logits = reader(torch.zeros(bits)).extractor.logits(image.movedim(-1, 1))[0]
        return reader((2.0 * said - 1) - logits)

    return load


def test_a_third_party_decoder_detects_its_message(nodes, image, key, decoder):
    """All 128 bits of a message are right: by chance that happens to one image in 10^16."""
    message = nodes.Message(key=key, kind="hex id", value="c0ffee", num_bits="128", seed=0)[0]
    text, detected, log10_p, match, accuracy, report, straight = nodes.Read(
        image=image[:1], extractor=decoder(image[:1], message[0].bits), target_fpr=1e-6, message=message
    )
    assert detected and text == message[0].value and -17 < log10_p < -16
    assert match and accuracy == 1 and torch.equal(straight, image[:1])
    assert json.loads(report)["id"] == message[0].value and "geometry" not in json.loads(report)


def test_a_third_party_decoder_finds_nothing_in_other_bits(nodes, image, key, decoder):
    message = nodes.Message(key=key, kind="hex id", value="c0ffee", num_bits="128", seed=0)[0]
    text, detected, log10_p, match, accuracy, *_ = nodes.Read(
        image=image[:1], extractor=decoder(image[:1], 1 - message[0].bits), target_fpr=1e-6, message=message
    )
    assert not detected and "nothing found" in text and log10_p == 0 and not match and accuracy == 0


def test_a_message_of_another_size_is_refused(nodes, mini, image, message, decoder, inversion):
    inputs = {"model": mini[0], "vae": mini[2], "inversion": inversion[0], "image": image[:1], **FAST}
    with pytest.raises(ValueError, match="it has 48 bits .* reads 128; set num_bits .* to 128"):
        nodes.OptimizeNoise(extractor=decoder(image[:1], torch.zeros(128)), message=message, **inputs)


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
    opaque = replace(
        record.positive, opaque=[[record.positive.embeddings, {"control": object()}]], missing=("control",)
    )
    for part, name in (("positive", "positive"), ("null", "negative")):
        replace(record, **{part: opaque}).save(tmp_path / "kept.safetensors")
        loaded = type(record).load(tmp_path / "kept.safetensors")
        with pytest.raises(ValueError, match=f"{name}: .*control"):
            nodes.Guider(model=mini[0], record=(loaded,), branch="original")
        again = {name: [[record.positive.embeddings, {}]]}
        nodes.Guider(model=mini[0], record=(loaded,), branch="original", **again)


def test_keys_are_files_and_never_overwritten(nodes, files, monkeypatch):
    first = nodes.Key(source="file", name="mine", create=True)[0]
    assert nodes.Key(source="file", name="mine", create=True)[0].fingerprint == first.fingerprint
    assert (files / "user" / "__onrw_keys" / "mine.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="absent.*; switch `create` on"):
        nodes.Key(source="file", name="absent", create=False)
    (files / "user" / "__onrw_keys" / "bad.key").write_text("onrw-key-1:00")
    with pytest.raises(ValueError) as caught:
        nodes.Key(source="file", name="bad", create=True)
    assert "onrw key" not in str(caught.value)
    assert nodes.classes["Key"].validate_inputs(name="../escape") is not True
    monkeypatch.setenv("ONRW_KEY", first.text())
    source = nodes.classes["Key"].define_schema().inputs[0].options[1]
    assert nodes.Key(source=source, name="", create=False)[0].fingerprint == first.fingerprint
    assert nodes.classes["Key"].fingerprint_inputs(source, "", False) == first.fingerprint


def test_messages_that_do_not_fit_are_refused_before_the_run(nodes):
    check = nodes.classes["Message"].validate_inputs
    assert check(value="ONRW") is True and check(value="0123456789abcdef01") is True
    assert "too long" in check(value="x" * 100)
    with pytest.raises(ValueError, match="hexadecimal"):
        nodes.Message(kind="hex id", value="xyz", num_bits="auto", seed=0)
    for name in ("SaveImage", "Embed"):
        assert nodes.classes[name].validate_inputs(text="Ann 5") is True
        assert "too long" in nodes.classes[name].validate_inputs(text="x" * 100)
    secret = "0123456789abcdef" * 4 + "01234567"
    for key in (secret, f"onrw-key-1:{secret}"):
        answers = check(value=key), *(nodes.classes[name].validate_inputs(text=key) for name in ("SaveImage", "Embed"))
        assert all("hidden" in answer and secret[:16] not in answer for answer in answers)


def test_third_party_decoders_get_the_attacks_that_they_can_stand(pack, extractor, decoder, image):
    settings = importlib.import_module(f"{pack.__name__}.nodes.inputs").marking_settings
    keyed, other = extractor.extractor, decoder(image[:1], torch.zeros(128)).extractor
    assert settings("fast", keyed, mix="all").mix == "all" and settings("fast", other, mix="all").mix == "upright"
    assert settings("fast", other, mix="values").mix == "values" and not settings("fast", other).visibility
    three = settings("fast", other, tuning="custom", iterations=3)
    assert three.iterations == 3 and settings("fast", other).iterations > 3


def test_the_default_strength_is_that_of_the_preset(pack, extractor):
    settings, keyed = importlib.import_module(f"{pack.__name__}.nodes.inputs").marking_settings, extractor.extractor
    assert (settings("fast", keyed).quality, settings("endure", keyed).quality) == (90, 70)
    for strength, score in {"subtle": 75, "balanced": 70, "strong": 60}.items():
        assert settings("endure", keyed, strength=strength).quality == score
        assert settings("fast", keyed, strength=strength).quality == score + 20
    assert settings("endure", keyed, strength="custom", quality=90.0).quality == 90
    assert settings("endure", keyed).mix == "regeneration" and settings("endure", keyed, mix="none").mix == "none"


def test_attacks(nodes, image):
    turned = nodes.Attack(image=image, attack="rotation", default_strength=False, strength=90.0, seed=0)[0]
    assert turned.shape == image.shape
    noisy = [
        nodes.Attack(image=image, attack="noise", default_strength=True, strength=0.0, seed=seed)[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    with pytest.raises(ValueError, match="out of range"):
        nodes.Attack(image=image, attack="jpeg", default_strength=False, strength=500.0, seed=0)


def test_wrong_partners_are_errors_that_say_so(
    nodes, mini, checkpoint, watermark, image, inversion, extractor, message
):
    with pytest.raises(ValueError, match="model: the inversion was made with"):
        denoise(nodes, (checkpoint[0], None, checkpoint[2]), watermark[0], image[:1])
    with pytest.raises(ValueError, match="another shape"):
        denoise(nodes, mini, watermark[0], image[:1, : SIZE // 2])
    with pytest.raises(ValueError, match="inversion: there are 3 for 2 images"):
        nodes.OptimizeNoise(
            model=mini[0],
            vae=mini[2],
            inversion=inversion[0] * 3,
            image=image,
            extractor=extractor,
            message=message,
            **FAST,
        )


@pytest.fixture(scope="module")
def save(nodes, key):
    """ONRW_SaveImage of images, as a function that returns the node's whole output."""

    def run(images, **changes):
        inputs = {"format": "PNG", "filename_prefix": "save", "file_quality": 95, "note": "", **PLAIN, **changes}
        with torch.inference_mode():
            return nodes.classes["SaveImage"].execute(images=images, key=key, **inputs)

    return run


def test_files_of_a_batch_get_names_that_are_free(nodes, save, image, files, monkeypatch):
    """ComfyUI finds the counter of the name with %batch_num% in it, which no file has."""
    marked, _ = nodes.Embed(image=image, seed=0, **PLAIN)
    place = files / "output" / "b"
    names = []
    for _ in range(2):
        names += [one["filename"] for one in save(marked, filename_prefix="b/im_%batch_num%").ui["images"]]
    assert names == ["im_0_00001_.png", "im_1_00002_.png", "im_0_00002_.png", "im_1_00003_.png"]
    module = importlib.import_module(nodes.classes["SaveImage"].__module__)
    write = module.files.write

    def late(path, *others, **options):
        if path.name == "im_0_00003_.png":
            path.write_text("another program's")
        write(path, *others, **options)

    monkeypatch.setattr(module.files, "write", late)
    saved = [one["filename"] for one in save(marked, filename_prefix="b/im_%batch_num%").ui["images"]]
    assert saved == ["im_0_00004_.png", "im_1_00005_.png"]
    assert (place / "im_0_00003_.png").read_text() == "another program's"
    for prefix in ("x" * 300, "a/" + "x" * 300 + "/b", "../b", "a\0b"):
        with pytest.raises(ValueError, match="^filename_prefix: ") as caught:
            save(image, filename_prefix=prefix)
        assert str(files) not in str(caught.value)


def test_a_workflow_that_jpeg_cannot_hold_is_named_on_the_node(nodes, save, image, files, caplog):
    node = nodes.classes["SaveImage"]
    hidden, node.hidden = node.hidden, type("Hidden", (), {"prompt": {"1": "x" * 70000}, "extra_pnginfo": None})
    try:
        for kind, dropped in (("JPEG", True), ("WebP", False)):
            caplog.clear()
            (card,) = save(image[:1], format=kind, filename_prefix="long").ui["onrw"]
            assert ("longer than the 64 KB that JPEG holds; choose PNG or WebP" in card["lines"][-1]) == dropped
            assert (card["state"] == "warning" or not dropped) and ("64 KB" in caplog.text) == dropped
            assert "of the input, which are lost" not in caplog.text
    finally:
        node.hidden = hidden


def test_a_batch_is_checked_before_the_work(nodes, save, image, key, monkeypatch):
    module = importlib.import_module(nodes.classes["Embed"].__module__.replace("embed", "marking"))
    monkeypatch.setattr(module.Marker, "mark", None)
    clear = torch.cat([image, torch.ones_like(image[..., :1])], -1)
    clear[1, ..., 3] = 0
    broken = image.clone()
    broken[1, 0, 0, 0] = torch.nan
    masks = torch.stack([torch.ones(SIZE, SIZE), torch.zeros(SIZE, SIZE)])
    for reason, inputs in (
        (r"^image 1 \(from 0\): is transparent everywhere", {"image": clear}),
        (r"^image 1 \(from 0\): has NaN", {"image": broken}),
        (r"^mask 1 \(from 0\): is empty", {"image": image, "mask": masks}),
        (r"^mask 1 \(from 0\): covers transparent pixels", {"image": half(image), "mask": left_of_second()}),
    ):
        with pytest.raises(ValueError, match=reason):
            nodes.Embed(key=key, seed=0, **PLAIN, **inputs)
    with pytest.raises(ValueError, match=r"^image 1 \(from 0\): is transparent everywhere"):
        save(clear)
    with pytest.raises(ValueError, match=r"^images 1 \(from 0\): has NaN"):
        save(broken)
    with pytest.raises(ValueError, match=r"^image 1 \(from 0\)\.jpg: JPEG cannot hold the transparency"):
        save(half(image), format="JPEG")


def half(image):
    """The images, of which the second is transparent in its left half."""
    alpha = torch.ones_like(image[..., :1])
    alpha[1, :, : SIZE // 2] = 0
    return torch.cat([image, alpha], -1)


def left_of_second():
    """A mask for each image, for the second the left half."""
    mask = torch.ones(2, SIZE, SIZE)
    mask[1, :, SIZE // 2 :] = 0
    return mask


def test_frames_of_a_clip_have_their_own_masks(nodes, image, key):
    frames = torch.stack([image[0]] * 3)
    masks = torch.ones(3, SIZE, SIZE)
    masks[1], masks[2, :, : SIZE // 2] = 0, 0
    inputs = {**PLAIN, "key": key, "seed": 0, "frames": "one clip"}
    alpha = torch.cat([frames, masks[..., None]], -1)
    for given in ({"image": frames, "mask": masks}, {"image": alpha}):
        marked = nodes.Embed(**inputs, **given)[0][..., :3]
        changed = ((marked * 255).round() != (frames * 255).round()).any(-1)
        assert changed[0].any() and not changed[1].any()
        assert changed[2, :, SIZE // 2 :].any() and not changed[2, :, : SIZE // 2].any()
    with pytest.raises(ValueError, match="^image: no frame has an area"):
        nodes.Embed(**inputs, image=frames, mask=torch.zeros(3, SIZE, SIZE))


def test_what_a_link_brings_is_checked_by_name(nodes, image, key, files, monkeypatch):
    """ComfyUI checks values of widgets alone."""
    embed = {**PLAIN, "image": image, "key": key, "seed": 0}
    attack = {"image": image, "attack": "jpeg", "default_strength": True, "strength": 50.0, "seed": 0}
    transparent = torch.cat([image, torch.full_like(image[..., :1], torch.nan)], -1)
    for name, inputs, reason in (
        ("Embed", embed | {"preset": "nope"}, "preset: 'nope' is none of the choices; choose from fast, quick, endure"),
        ("Embed", embed | {"size": "abc"}, "size: is a str; give a whole number"),
        ("Embed", embed | {"size": 4096}, "size: is 4096"),
        ("Embed", embed | {"seed": 1.5}, "seed: is 1.5; give a whole number"),
        ("Embed", embed | {"quality": torch.nan}, "quality: is nan; give a number from 30 to 98"),
        ("Embed", embed | {"text": 5}, "text: is a int; connect a text"),
        ("Embed", embed | {"image": None}, "image: is None"),
        ("Embed", embed | {"image": "a.png"}, "image: is a str; connect an IMAGE"),
        ("Embed", embed | {"image": image.to_sparse()}, "image: is a sparse"),
        ("Embed", embed | {"mask": torch.zeros(0)}, r"mask: has shape \(0,\)"),
        ("Attack", attack | {"image": transparent}, r"image 0 \(from 0\): has NaN"),
        ("Attack", attack | {"default_strength": "no"}, "default_strength: is a str; connect a BOOLEAN"),
        ("Detect", {"image": transparent}, r"image 0 \(from 0\): has NaN"),
        ("LoadFolder", {"folder": "", "pattern": ""}, "pattern: '' matches no name"),
        ("LoadFolder", {"folder": "a\0b", "pattern": "*"}, "folder: .* is no folder"),
        ("LoadFolder", {"folder": "n" * 300, "pattern": "*"}, "folder: .* is no folder"),
        ("LoadInversion", {"file": "n" * 300 + ".safetensors"}, "file: .* is no inversion"),
        ("LoadInversion", {"file": "a\0.safetensors"}, "file: .* is no inversion"),
        ("Key", {"source": "file", "name": "n" * 300, "create": True}, "name: has 300 characters"),
        ("Key", {"source": "nowhere", "name": "a", "create": True}, "source: 'nowhere' is none of the choices"),
        ("EncodePrompt", {"clip": None, "text": "", "word": ""}, "clip: is None, because the connected node has none"),
    ):
        with pytest.raises(ValueError, match=f"^{reason}") as caught:
            getattr(nodes, name)(**inputs)
        assert str(files) not in str(caught.value)
    whole = nodes.Attack(**attack | {"seed": 3.0})[0]
    assert torch.equal(whole, nodes.Attack(**attack | {"seed": 3})[0])
