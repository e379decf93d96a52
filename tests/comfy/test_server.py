"""The real server: every example workflow to its end, what users do wrong, caching and Cancel."""

import copy
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
API = ROOT / "workflows" / "api"
REMEDY = "choose the strength strong, a shorter text, or a larger mask"
EMBED = "Embed Watermark (Sign Image)"
OPTIMISE = "Optimize Watermark Noise"
TABLE = [line for line in (ROOT / "docs" / "nodes.md").read_text("utf-8").splitlines() if line.startswith("| `ONRW_")]
SIZE = 512  # working size of marking in these tests, pixels: a text is not read from smaller ones
SMALL = {"size": 256, "strength": "strong", "text": ""}  # an id is, at this strength, and its search ends at once
SIDE = 256  # of small images, pixels
ENDS = ("execution_success", "execution_error", "execution_interrupted")
SLOWEST = 180  # seconds of the processor for one workflow


def workflow(name):
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tools():
    spec = importlib.util.spec_from_file_location("onrw_server_tools", Path(__file__).parent / "server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finished(server, tools, prompt):
    """Outputs by node title, of a prompt that ran to its end."""
    start = server.cpu_seconds
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", tools.failure(entry)
    assert server.cpu_seconds - start < SLOWEST
    return {node["_meta"]["title"]: entry["outputs"].get(number, {}) for number, node in prompt.items()}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(np.float64) / 255


def original(server, name="monument.jpg"):
    return pixels(server.base / "input" / f"onrw_{name}")


def reduced(name, **changes):
    """A workflow at small size, with quick marking in its plain nodes."""
    prompt = workflow(name)
    for node in prompt.values():
        if node["class_type"] in ("ONRW_SaveImage", "ONRW_Embed"):
            node["inputs"] |= {"size": SIZE, "preset": "quick", **changes}
        elif node["class_type"] == "CheckpointLoaderSimple":
            flow = any(other["class_type"] == "EmptySD3LatentImage" for other in prompt.values())
            node["inputs"]["ckpt_name"] = "tiny-flow.safetensors" if flow else "tiny.safetensors"
        elif node["class_type"].startswith("Empty"):
            node["inputs"] |= {"width": 128, "height": 128}
        elif node["class_type"] in ("KSampler", "BasicScheduler"):
            node["inputs"]["steps"] = 3
    return prompt


def small(server, name, **changes):
    """A workflow on small images, with ids in them."""
    prompt = reduced(name, **SMALL, **changes)
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = shrunk(server, node["inputs"]["image"])
    return prompt


def shrunk(server, name):
    """A small copy of an input image; how LoadImage names it."""
    folder = server.base / "input" / "small"
    folder.mkdir(exist_ok=True)
    copy = folder / Path(name).with_suffix(".png").name
    image = Image.open(server.base / "input" / name).convert("RGB")
    image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(copy)
    return f"{folder.name}/{copy.name}"


def decibels(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


def from_command(server, path):
    """What `onrw extract` reads from a file."""
    key = server.base / "user" / "__onrw_keys" / "default.key"
    command = [sys.executable, "-m", "onrw_core", "extract", str(path), "--key", str(key), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_pack_is_loaded(server):
    lines = [line for line in server.log.splitlines() if "onrw_pack" in line]
    assert lines and not any("FAILED" in line for line in lines)
    info = server.get("/object_info")
    ours = {name: node for name, node in info.items() if name.startswith("ONRW_")}
    assert len(ours) == len(TABLE)
    for node in ours.values():
        assert node["category"] in ("ONRW", "ONRW/stages") and node["description"]
        assert all(node["output_tooltips"])
        for kind in ("required", "optional"):
            for name, options in node["input"].get(kind, {}).items():
                assert options[1].get("tooltip"), (node["name"], name)
    if any("search_aliases" in node for node in info.values()):  # 0.10.0 and later
        assert all(node["search_aliases"] for node in ours.values())
        assert ours["ONRW_Embed"]["input"]["required"]["size"][1]["advanced"] is True
    listed = server.get("/api/workflow_templates")
    assert {path.stem for path in API.glob("*.json")} <= set(listed["onrw_pack"])


def test_save_with_one_node(server, tools):
    outputs = finished(server, tools, reduced("Save with one node"))["Save Image (Invisible Watermark)"]
    (saved,) = server.images(outputs)
    assert decibels(pixels(saved), original(server)) > 30
    (card,) = outputs["onrw"]
    assert card["state"] == "found" and card["title"] == "Ann 5" and "user/__onrw_keys" in card["lines"][-1]
    reading = from_command(server, saved)
    assert reading["detected"] and reading["text"] == "Ann 5"
    embedded = Image.open(saved).info
    assert json.loads(embedded["prompt"])["2"]["class_type"] == "ONRW_SaveImage"


@pytest.mark.parametrize(("format", "suffix"), [("JPEG", ".jpg"), ("WebP", ".webp")])
def test_save_image_keeps_the_workflow_in_every_format(server, tools, format, suffix):
    prompt = small(server, "Save with one node", format=format)
    data = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": {"nodes": [1]}}}}
    entry = server.wait(server.post("/prompt", data)["prompt_id"])
    (saved,) = server.images(entry["outputs"]["2"])
    (card,) = entry["outputs"]["2"]["onrw"]
    assert saved.suffix == suffix and from_command(server, saved)["id"] == card["title"].removeprefix("id ")
    exif = Image.open(saved).getexif()
    assert exif[0x0110].startswith("prompt:{") and exif[0x010F] == 'workflow:{"nodes": [1]}'


def test_mark_a_photo(server, tools):
    outputs = finished(server, tools, reduced("Mark a photo"))
    (saved,) = server.images(outputs["Marked photo"])
    assert decibels(pixels(saved), original(server, "portrait.jpg")) > 30
    (card,) = outputs["Embed Watermark (Sign Image)"]["onrw"]
    views = [server.images({"images": [card[name]]})[0] for name in ("before", "after", "difference")]
    assert all(pixels(view).shape == (512, 512, 3) for view in views)
    assert np.array_equal(pixels(views[1]), pixels(saved))
    assert outputs["Read Watermark (Verify Provenance)"]["text"] == ["Ann 5"]


def test_read_and_verify(server, tools):
    outputs = finished(server, tools, reduced("Read and verify"))
    (card,) = outputs["Read the received image"]["onrw"]
    assert card["title"] == "Ann 5" and card["state"] == "found"
    assert card["lines"][0].startswith("Only 1 in 10^") and "urned by " in card["lines"][1]
    (nothing,) = outputs["Read the unmarked image"]["onrw"]
    assert nothing["state"] == "nothing" and nothing["title"] == "Nothing found"
    (straight,) = server.images(outputs["Set straight"])
    assert min(Image.open(straight).size) > 768


def test_audit_a_watermark(server, tools):
    prompt = reduced("Audit a watermark", strength="strong")
    prompt["report"] = {
        "class_type": "PreviewAny",
        "inputs": {"source": [tools.titled(prompt, "Audit Watermark (Robustness)"), 2]},
        "_meta": {"title": "JSON"},
    }
    outputs = finished(server, tools, prompt)
    report = json.loads(outputs["JSON"]["text"][0])
    by_attack = {entry["attack"]: entry for entry in report["attacks"]}
    assert len(by_attack) == 13
    assert by_attack["none"]["bit_accuracy"] >= 0.95 and by_attack["none"]["detected"] == 1
    assert by_attack["jpeg=80"]["bit_accuracy"] >= 0.9 and report["mean_bit_accuracy"] > 0.7
    assert len(server.images(outputs["Chart"])) == 1


def test_folder_of_images(server, tools):
    prompt = small(server, "Folder of images")
    for name in ("onrw_drawing.png", "onrw_monument.jpg", "onrw_portrait.jpg"):
        shrunk(server, name)
    prompt[tools.titled(prompt, "Load Folder (Images to Watermark)")]["inputs"] |= {"folder": "small"}
    outputs = finished(server, tools, prompt)
    saved = server.images(outputs["Save Image (Invisible Watermark)"])
    cards = outputs["Save Image (Invisible Watermark)"]["onrw"]
    assert len(saved) == 3 and len({card["title"] for card in cards}) == 3
    seen = outputs["Read Watermark (Verify Provenance)"]["onrw"]
    assert [card["title"] for card in seen] == [card["title"] for card in cards]
    assert all("Registry: samples, " in card["lines"][-1] for card in seen)
    # The same image has the same id, whatever node it comes from.
    prompt = small(server, "Save with one node")
    prompt[tools.titled(prompt, "Load Image")]["inputs"]["image"] = "small/onrw_drawing.png"
    again = finished(server, tools, prompt)["Save Image (Invisible Watermark)"]
    assert again["onrw"][0]["title"] == cards[0]["title"]


def test_video_frames(server, tools):
    prompt = reduced("Video frames", **SMALL)
    frames = {"image": [tools.titled(prompt, "Get Video Components"), 0], "batch_index": 0, "length": 2}
    prompt["few"] = {"class_type": "ImageFromBatch", "inputs": frames, "_meta": {"title": "Few"}}
    scaled = {"image": ["few", 0], "upscale_method": "lanczos", "width": SIDE, "height": SIDE, "crop": "center"}
    prompt["scaled"] = {"class_type": "ImageScale", "inputs": scaled, "_meta": {"title": "Scaled"}}
    prompt[tools.titled(prompt, EMBED)]["inputs"]["image"] = ["scaled", 0]
    outputs = finished(server, tools, prompt)
    assert [card["state"] for card in outputs["Read Watermark (Verify Provenance)"]["onrw"]] == ["found"]  # of the clip
    assert outputs["Save Video"]["images"][0]["filename"].endswith(".mp4")


@pytest.mark.parametrize("name", ["Text to image - SD 1.5", "Text to image - SDXL", "Text to image - Flux"])
def test_text_to_image_with_a_checkpoint(server, tools, name):
    outputs = finished(server, tools, reduced(name, size=128, strength="custom", quality=70.0))
    assert len(server.images(outputs["Marked image"])) == 1
    # What a random model draws is noise, of which a small image holds no watermark: the nodes run.
    assert outputs["Embed Watermark (Sign Image)"]["onrw"] and outputs["Read Watermark (Verify Provenance)"]["onrw"]


@pytest.mark.parametrize("kind", ["SD 1.5", "Flux"])
def test_the_latent_of_a_sampler_is_marked_by_stages(server, tools, kind):
    """The flow model is a toy, whose noise holds no watermark; for the UNet the embedded model draws, and is read."""
    prompt = reduced(f"Text to image by stages - {kind}")
    number = {node["_meta"]["title"]: key for key, node in prompt.items()}
    inverted, optimised = (prompt[number[title]]["inputs"] for title in ("Null-Text Inversion", OPTIMISE))
    if kind == "SD 1.5":
        prompt[number["Checkpoint"]] |= {"class_type": "ONRW_LoadMini", "inputs": {}}
        prompt[number["Size"]]["inputs"] |= {"width": SIDE, "height": SIDE}
        prompt[number["Guider"]]["inputs"]["cfg"] = inverted["guidance"] = 1.0
        optimised["strength"] = "strong"
    else:
        optimised |= {"tuning": "custom", "iterations": 2, "attacks": 1}
    added = {
        "Report": ("PreviewAny", {"source": [number[OPTIMISE], 3]}),
        "Retraced": ("PreviewImage", {"images": [number["Null-Text Inversion"], 3]}),
    }
    for title, (kind_of_node, inputs) in added.items():
        prompt[title] = {"class_type": kind_of_node, "inputs": inputs, "_meta": {"title": title}}
    outputs = finished(server, tools, prompt)
    (marked,), (unmarked,), (retraced,) = (
        server.images(outputs[title]) for title in ("Marked image", "Unmarked image", "Retraced")
    )
    # The sampler's own last step is replayed: what it drew comes back, up to the rounding to 8 bits.
    report = json.loads(outputs["Report"]["text"][0])
    assert report["steps"] == 1 and report["start_sigma"] > inverted["start_sigma"]
    assert pixels(unmarked).std() > 0.02 and np.abs(pixels(retraced) - pixels(unmarked)).max() < 1.5 / 255
    assert 25 < decibels(pixels(marked), pixels(unmarked)) < 60
    (card,) = outputs["Read Watermark (Verify Provenance)"]["onrw"]
    assert kind == "Flux" or card["state"] == "found" and "It is the expected message" in " ".join(card["lines"])


def test_any_model_with_the_embedded_one(server, tools):
    outputs = finished(server, tools, reduced("Any model - embedded watermark", size=128, text="Ann 5"))
    assert len(server.images(outputs["Save Image (Invisible Watermark)"])) == 1


def test_same_inputs_are_cached_and_other_seeds_are_not(server, tools):
    prompt = small(server, "Mark a photo")
    number = tools.titled(prompt, EMBED)
    del prompt[tools.titled(prompt, "Read Watermark (Verify Provenance)")]

    def ran(prompt):
        entry = server.run(prompt)
        messages = dict(entry["status"]["messages"])
        return number not in messages["execution_cached"]["nodes"]

    assert ran(prompt)
    assert not ran(prompt)
    other = copy.deepcopy(prompt)
    other[number]["inputs"]["seed"] += 1
    assert ran(other)
    key = {"source": "file", "name": "another", "create": True}
    other["key"] = {"class_type": "ONRW_Key", "inputs": key, "_meta": {"title": "Key"}}
    other[number]["inputs"]["key"] = ["key", 0]
    assert ran(other)


def test_four_stages(server, tools):
    prompt = workflow("Four stages")
    source = [tools.titled(prompt, "Optimize Watermark Noise"), 3]
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": source}, "_meta": {"title": "Report"}}
    outputs = finished(server, tools, prompt)
    (saved,) = server.images(outputs["Marked image"])
    assert decibels(pixels(saved), original(server, "portrait.jpg")) > 30
    report = json.loads(outputs["Report"]["text"][0])
    assert report["mask"] == "soft" and report["mask_tokens"] == "word" and report["guidance"] > 1
    (card,) = outputs["Read Watermark (Verify Provenance)"]["onrw"]
    assert card["state"] == "found" and "It is the expected message" in " ".join(card["lines"])
    assert (server.base / "output" / outputs["Save Inversion"]["text"][0]).is_file()
    (mask,) = server.images(outputs["Pseudo-mask"])
    assert pixels(mask).std() > 0.01


def test_sampler_graph_gives_the_picture_of_denoise_watermark(server, tools):
    prompt = workflow("Sampler graph")
    number = {title: tools.titled(prompt, title) for title in ("Optimize Watermark Noise", "Load Embedded Model")}
    prompt["other"] = {
        "class_type": "ONRW_ConstrainedDenoise",
        "inputs": {
            "model": [number["Load Embedded Model"], 0],
            "vae": [number["Load Embedded Model"], 2],
            "watermark": [number["Optimize Watermark Noise"], 0],
            "image": [tools.titled(prompt, "Load Image"), 0],
            "composition": "as optimised",
            "strength": "as optimised",
            "quality": 90.0,
            "target_psnr": 0.0,
            "pseudo_mask": "as optimised",
            "attention": "as optimised",
        },
        "_meta": {"title": "Other way"},
    }
    prompt["saved"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["other", 0], "filename_prefix": "onrw/other"},
        "_meta": {"title": "Denoised"},
    }
    outputs = finished(server, tools, prompt)
    (saved,), (other,) = (server.images(outputs[title]) for title in ("Marked image", "Denoised"))
    difference = np.abs(pixels(saved) - pixels(other))
    # Both are rounded to 8 bit: values that agree to the last float digits fall on two sides of a level now and then.
    assert (difference > 1e-3).mean() < 1e-3 and difference.max() < 1.5 / 255
    assert decibels(pixels(saved), original(server)) > 30
    (card,) = outputs["Read Watermark (Verify Provenance)"]["onrw"]
    share = re.search(r"\((\d+)% of its bits\)", " ".join(card["lines"]))
    assert card["state"] == "found" and share is not None and int(share[1]) >= 90


def test_stock_checkpoint_with_lora_and_controlnet(server, tools):
    """A photo through the toy SD1 of stock loaders, patched: the message is read, and stock sampling is as before."""
    prompt = workflow("Four stages")
    number = {node["_meta"]["title"]: key for key, node in prompt.items()}
    for key in [key for key, node in prompt.items() if node["class_type"] == "ONRW_LoadMini"]:
        prompt[key] = {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "tiny.safetensors"},
            "_meta": {"title": f"Checkpoint {key}"},
        }
    added = {
        "lora": ("LoraLoaderModelOnly", {"model": [number["Load Embedded Model"], 0], "lora_name": "tiny.safetensors"}),
        "net": ("ControlNetLoader", {"control_net_name": "tiny.safetensors"}),
        "control": (
            "ControlNetApplyAdvanced",
            {
                "positive": [number["Prompt"], 0],
                "negative": [number["Empty prompt"], 0],
                "control_net": ["net", 0],
                "image": [number["Working size"], 0],
                "strength": 0.8,
                "start_percent": 0.0,
                "end_percent": 1.0,
            },
        ),
    }
    for key, (kind, inputs) in added.items():
        prompt[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": key}}
    prompt["lora"]["inputs"]["strength_model"] = 1.0
    for title in ("Null-Text Inversion", "Optimize Watermark Noise", "Denoise Watermark"):
        prompt[number[title]]["inputs"]["model"] = ["lora", 0]
    inversion = prompt[number["Null-Text Inversion"]]["inputs"]
    inversion |= {"positive": ["control", 0], "preset": "fast", "steps": 1, "start_sigma": 0.2, "guidance": 2.0}
    for title in ("Optimize Watermark Noise", "Denoise Watermark"):
        prompt[number[title]]["inputs"]["image"] = [number["Working size"], 0]
    prompt[number["Optimize Watermark Noise"]]["inputs"] |= {
        "preset": "fast",
        "iterations": 20,
        "attention_weight": 0.0,
    }
    prompt[number["Watermark Message"]]["inputs"]["num_bits"] = "32"

    def stock(name, key):
        """A KSampler in the same graph: before our nodes (nothing of theirs is input) and after them."""
        prompt[key] = {
            "class_type": "KSampler",
            "inputs": {
                "model": ["lora", 0],
                "seed": 3,
                "steps": 2,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "positive": ["control", 0],
                "negative": ["control", 1],
                "latent_image": [number["Encode"], 0],
                "denoise": 1.0,
            },
            "_meta": {"title": key},
        }
        decode = {"samples": [key, 0], "vae": [number["Load Embedded Model"], 2]}
        prompt[f"{key} decoded"] = {"class_type": "VAEDecode", "inputs": decode, "_meta": {"title": f"{key} decoded"}}
        save = {"images": [f"{key} decoded", 0], "filename_prefix": f"onrw/{name}"}
        prompt[f"{key} saved"] = {"class_type": "SaveImage", "inputs": save, "_meta": {"title": f"{key} saved"}}

    only = copy.deepcopy(prompt)
    stock("before", "first")
    first = {key: node for key, node in prompt.items() if key not in only or not node["class_type"].startswith("ONRW")}
    first = {key: node for key, node in first.items() if "images" not in node["inputs"] or key == "first saved"}
    first = {key: node for key, node in first.items() if node["class_type"] not in ("PreviewAny", "MaskToImage")}
    first[number["Prompt"]] = prompt[number["Prompt"]]
    (before,) = server.images(finished(server, tools, first)["first saved"])
    outputs = finished(server, tools, only)
    (card,) = outputs["Read Watermark (Verify Provenance)"]["onrw"]
    share = re.search(r"\((\d+)% of its bits\)", " ".join(card["lines"]))
    assert card["state"] == "found" and share is not None and int(share[1]) >= 90
    first["first"]["inputs"]["seed"] = 4
    finished(server, tools, first)
    first["first"]["inputs"]["seed"] = 3
    (after,) = server.images(finished(server, tools, first)["first saved"])
    assert before != after and np.array_equal(pixels(before), pixels(after))


def messages(server, prompt):
    """What the page is sent while a prompt runs: messages, and previews as bytes; the last says how it ended."""
    import websocket  # in ComfyUI's interpreter alone

    page = websocket.create_connection(f"{server.url.replace('http', 'ws')}/ws?clientId=watcher", timeout=120)
    server.post("/prompt", {"prompt": prompt, "client_id": "watcher"})
    try:
        while True:
            message = page.recv()
            yield message if isinstance(message, bytes) else (message := json.loads(message))
            if not isinstance(message, bytes) and message["type"] in ENDS:
                return
    finally:
        page.close()


def step(message, number):
    """The value of a message of progress of a node, else None."""
    ours = not isinstance(message, bytes) and message["type"] == "progress" and message["data"]["node"] == number
    return message["data"]["value"] if ours else None


def test_cancel_stops_within_an_iteration(server, tools):
    prompt = workflow("Mark a photo")
    number = tools.titled(prompt, EMBED)
    prompt[number]["inputs"] |= {"size": 768, "seed": 99}
    before, after = 0, None
    for message in messages(server, prompt):
        if step(message, number) is None:
            continue
        if after is None:
            before += 1
            if before == 3:
                server.post("/interrupt", {})
                after = 0
        else:
            after += 1
    assert message["type"] == "execution_interrupted"
    assert after is not None and after <= 1


def test_previews_are_sent_while_a_node_works(server, tools):
    prompt = small(server, "Mark a photo", seed=1234)
    number = tools.titled(prompt, EMBED)
    received = list(messages(server, prompt))
    steps = [value for message in received if (value := step(message, number)) is not None]
    assert received[-1]["type"] == "execution_success"
    assert sum(isinstance(message, bytes) for message in received) >= 3
    assert steps == sorted(steps) and len(set(steps)) >= 3


def test_a_mark_that_cannot_be_read_is_shown_on_the_node(server, tools):
    prompt = reduced("Mark a photo", size=128, seed=77, strength="custom", quality=98.0, text="Ann 5 long")
    del prompt[tools.titled(prompt, "Read Watermark (Verify Provenance)")]
    prompt[tools.titled(prompt, "Load Image")]["inputs"]["image"] = "onrw_drawing.png"
    logged = len(server.log)
    (card,) = finished(server, tools, prompt)[EMBED]["onrw"]
    assert card["state"] == "warning" and card["lines"][0] == f"It cannot be read back; {REMEDY}."
    assert card["lines"][1].startswith("Weak: ") and "% of the bits" in card["lines"][1]
    assert server.log[logged:].count(f"{EMBED}: the watermark cannot be read") == 1
    assert server.log[logged:].count(f"{EMBED}: little room for a watermark; in a trial") == 1


def node_errors(answer):
    assert answer.get("http") == 400, answer
    return json.dumps(answer["node_errors"])


def test_what_users_do_wrong_is_explained(server, tools):
    prompt = workflow("Text to image - SD 1.5")
    assert "value_not_in_list" in node_errors(server.queue(prompt))  # no SD1.5 here

    prompt = workflow("Mark a photo")
    prompt[tools.titled(prompt, EMBED)]["inputs"]["text"] = "a name of many words " * 4
    before = len(server.log)
    assert "bits" in node_errors(server.queue(prompt))
    assert server.log[before:].count("too long") == 1

    prompt = workflow("Mark a photo")
    photo = tools.titled(prompt, "Load Image")
    prompt[tools.titled(prompt, EMBED)]["inputs"]["extractor"] = [photo, 0]
    assert "return_type_mismatch" in node_errors(server.queue(prompt))

    prompt = workflow("Mark a photo")
    del prompt[tools.titled(prompt, EMBED)]["inputs"]["image"]
    assert "required_input_missing" in node_errors(server.queue(prompt))

    prompt = reduced("Text to image - SD 1.5")
    del prompt[tools.titled(prompt, EMBED)]["inputs"]["vae"]
    assert "connect `model`, `vae` and `prompt`" in tools.failure(server.run(prompt))["exception_message"]
