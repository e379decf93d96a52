"""The real server: every example workflow to its end, what users do wrong, caching and Cancel."""

import copy
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import websocket
from PIL import Image

ROOT = Path(__file__).parents[2]
API = ROOT / "workflows" / "api"
SLOWEST = 180  # seconds for one workflow


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
    start = time.monotonic()
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", tools.failure(entry)
    assert time.monotonic() - start < SLOWEST
    return {node["_meta"]["title"]: entry["outputs"].get(number, {}) for number, node in prompt.items()}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(np.float64) / 255


def original(server):
    return pixels(server.base / "input" / "example.png")


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
    assert len(ours) == 16
    for node in ours.values():
        assert node["category"] == "ONRW" and node["description"]
        assert all(node["output_tooltips"])
        for kind in ("required", "optional"):
            for name, options in node["input"].get(kind, {}).items():
                assert options[1].get("tooltip"), (node["name"], name)
    listed = server.get("/api/workflow_templates")
    assert {path.stem for path in API.glob("*.json")} <= set(listed["onrw_pack"])


def test_1_watermark_a_photo(server, tools):
    prompt = workflow("1_watermark_a_photo")
    outputs = finished(server, tools, prompt)
    (saved,) = server.images(outputs["Marked photo"])
    marked = pixels(saved)
    assert marked.shape == (768, 768, 3) and decibels(marked, original(server)) >= 40
    report = json.loads(outputs["Quality"]["text"][0])
    reading = from_command(server, saved)
    assert reading["detected"] and reading["text"] == "ONRW" and reading["bits"] == report["bits"]
    assert outputs["What was read"]["text"] == ["ONRW"]


def test_5_extract_and_verify(server, tools):
    outputs = finished(server, tools, workflow("5_extract_and_verify"))
    assert outputs["Message"]["text"] == ["ONRW"]
    report = json.loads(outputs["Report"]["text"][0])
    assert report["match"]["bit_accuracy"] == 1 and abs(abs(report["geometry"]["rotation"]) - 25) < 1
    assert "nothing found" in outputs["Unmarked"]["text"][0]
    (straight,) = server.images(outputs["Set straight"])
    size = Image.open(straight).size
    assert size[0] > 768 and size[1] > 768


def test_6_robustness_audit(server, tools):
    outputs = finished(server, tools, workflow("6_robustness_audit"))
    report = json.loads(outputs["JSON"]["text"][0])
    by_attack = {entry["attack"]: entry for entry in report["attacks"]}
    assert len(by_attack) == 13
    assert by_attack["none"]["bit_accuracy"] == 1 and by_attack["none"]["detected"] == 1
    assert by_attack["jpeg=80"]["bit_accuracy"] >= 0.95 and report["mean_bit_accuracy"] > 0.8
    assert len(server.images(outputs["Chart"])) == 1


def test_same_inputs_are_cached_and_other_seeds_are_not(server, tools):
    prompt = workflow("1_watermark_a_photo")
    number = tools.titled(prompt, "Watermark")
    prompt[number]["inputs"] |= {"size": 128, "iterations": 1}
    for title in ("Read it back", "What was read"):  # a search, after a mark of one iteration
        del prompt[tools.titled(prompt, title)]

    def ran(prompt):
        entry = server.run(prompt)
        messages = dict(entry["status"]["messages"])
        return number not in messages["execution_cached"]["nodes"]

    assert ran(prompt)
    assert not ran(prompt)
    other = copy.deepcopy(prompt)
    other[number]["inputs"]["seed"] += 1
    assert ran(other)
    other[tools.titled(prompt, "Key")]["inputs"]["name"] = "another"
    assert ran(other)


def test_2_four_stages(server, tools):
    outputs = finished(server, tools, workflow("2_four_stages"))
    (saved,) = server.images(outputs["Marked photo"])
    assert decibels(pixels(saved), original(server)) >= 40
    report = json.loads(outputs["Report"]["text"][0])
    assert report["mask"] == "soft" and report["mask_tokens"] == "word" and report["guidance"] > 1
    reading = json.loads(outputs["Reading"]["text"][0])
    assert reading["detected"] and reading["match"]["match"]
    assert (server.base / "output" / outputs["Save the inversion"]["text"][0]).is_file()
    (mask,) = server.images(outputs["Pseudo-mask"])
    assert pixels(mask).std() > 0.01


def test_3_sampler_graph_gives_the_picture_of_constrained_denoise(server, tools):
    prompt = workflow("3_sampler_graph")
    number = {title: tools.titled(prompt, title) for title in ("Optimise the noise", "Embedded model", "Photo")}
    prompt["other"] = {
        "class_type": "ONRW_ConstrainedDenoise",
        "inputs": {
            "model": [number["Embedded model"], 0],
            "vae": [number["Embedded model"], 2],
            "watermark": [number["Optimise the noise"], 0],
            "image": [number["Photo"], 0],
            "composition": "as optimised",
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
    (saved,), (other,) = (server.images(outputs[title]) for title in ("Marked photo", "Denoised"))
    difference = np.abs(pixels(saved) - pixels(other))
    # Both are rounded to 8 bit: values that agree to the last float digits fall on two sides of a level now and then.
    assert (difference > 1e-3).mean() < 1e-3 and difference.max() < 1.5 / 255
    assert decibels(pixels(saved), original(server)) >= 40
    reading = json.loads(outputs["Reading"]["text"][0])
    assert reading["detected"] and reading["match"]["bit_accuracy"] == 1


def test_4_text_to_image_with_a_checkpoint(server, tools):
    prompt = workflow("4_text_to_image")
    prompt[tools.titled(prompt, "Checkpoint")]["inputs"]["ckpt_name"] = "tiny.safetensors"
    prompt[tools.titled(prompt, "Size")]["inputs"] |= {"width": 128, "height": 128}
    prompt[tools.titled(prompt, "Sample")]["inputs"]["steps"] = 3
    prompt[tools.titled(prompt, "Optimise the noise")]["inputs"]["iterations"] = 2
    outputs = finished(server, tools, prompt)
    (plain,), (marked,) = (server.images(outputs[title]) for title in ("Without mark", "Marked picture"))
    assert 40 <= decibels(pixels(marked), pixels(plain)) < 60


def test_stock_checkpoint_with_lora_and_controlnet(server, tools):
    """A photo through the toy SD1 of stock loaders, patched: the message is read, and stock sampling is as before."""
    prompt = workflow("2_four_stages")
    number = {node["_meta"]["title"]: key for key, node in prompt.items()}
    prompt[number["Embedded model"]] = {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "tiny.safetensors"},
        "_meta": {"title": "Embedded model"},
    }
    added = {
        "lora": ("LoraLoaderModelOnly", {"model": [number["Embedded model"], 0], "lora_name": "tiny.safetensors"}),
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
    for title in ("Null-text inversion", "Optimise the noise", "Constrained denoising"):
        prompt[number[title]]["inputs"]["model"] = ["lora", 0]
    inversion = prompt[number["Null-text inversion"]]["inputs"]
    inversion |= {"positive": ["control", 0], "preset": "fast", "steps": 1, "guidance": 2.0}
    for title in ("Optimise the noise", "Constrained denoising"):
        prompt[number[title]]["inputs"]["image"] = [number["Working size"], 0]
    prompt[number["Optimise the noise"]]["inputs"] |= {"preset": "fast", "iterations": 20}
    prompt[number["Message"]]["inputs"]["num_bits"] = "32"

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
        decode = {"samples": [key, 0], "vae": [number["Embedded model"], 2]}
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
    reading = json.loads(outputs["Reading"]["text"][0])
    assert reading["detected"] and reading["match"]["bit_accuracy"] == 1
    first["first"]["inputs"]["seed"] = 4
    finished(server, tools, first)
    first["first"]["inputs"]["seed"] = 3
    (after,) = server.images(finished(server, tools, first)["first saved"])
    assert before != after and np.array_equal(pixels(before), pixels(after))


def test_cancel_stops_within_an_iteration(server, tools):
    prompt = workflow("1_watermark_a_photo")
    prompt[tools.titled(prompt, "Watermark")]["inputs"] |= {"iterations": 10000, "size": 256, "seed": 99}
    prompt_id = server.queue(prompt)["prompt_id"]
    time.sleep(8)
    server.post("/interrupt", {})
    start = time.monotonic()
    entry = server.wait(prompt_id)
    assert time.monotonic() - start < 15
    assert tools.failure(entry)["kind"] == "execution_interrupted"


def test_previews_are_sent_while_a_node_works(server, tools):
    prompt = workflow("1_watermark_a_photo")
    number = tools.titled(prompt, "Watermark")
    prompt[number]["inputs"] |= {"size": 128, "iterations": 3, "seed": 1234}
    address = server.url.replace("http", "ws")
    page = websocket.create_connection(f"{address}/ws?clientId=watcher", timeout=60)
    server.post("/prompt", {"prompt": prompt, "client_id": "watcher"})
    pictures, steps = 0, []
    while True:
        message = page.recv()
        if isinstance(message, bytes):
            pictures += 1
            continue
        message = json.loads(message)
        if message["type"] == "progress" and message["data"]["node"] == number:
            steps.append(message["data"]["value"])
        if message["type"] in ("execution_success", "execution_error"):
            break
    page.close()
    assert message["type"] == "execution_success"
    assert pictures >= 3 and steps == sorted(steps) and len(set(steps)) >= 3


def node_errors(answer):
    assert answer.get("http") == 400, answer
    return json.dumps(answer["node_errors"])


def test_what_users_do_wrong_is_explained(server, tools):
    prompt = workflow("4_text_to_image")
    assert "value_not_in_list" in node_errors(server.queue(prompt))  # no SD1.5 here

    prompt = workflow("1_watermark_a_photo")
    prompt[tools.titled(prompt, "Message")]["inputs"]["value"] = "much too long for a mark " * 4
    assert "bits" in node_errors(server.queue(prompt))

    prompt = workflow("1_watermark_a_photo")
    photo = tools.titled(prompt, "Photo")
    prompt[tools.titled(prompt, "Watermark")]["inputs"]["extractor"] = [photo, 0]
    assert "return_type_mismatch" in node_errors(server.queue(prompt))

    prompt = workflow("1_watermark_a_photo")
    del prompt[tools.titled(prompt, "Watermark")]["inputs"]["vae"]
    assert "required_input_missing" in node_errors(server.queue(prompt))

    prompt = workflow("1_watermark_a_photo")
    inputs = prompt[tools.titled(prompt, "Watermark")]["inputs"]
    inputs |= {"preset": "paper", "positive": ["text", 0]}
    del inputs["clip"]
    text = {"clip": [tools.titled(prompt, "Embedded model"), 1], "text": "a girl"}
    prompt["text"] = {"class_type": "CLIPTextEncode", "inputs": text, "_meta": {"title": "text"}}
    assert "uses guidance; connect an empty prompt" in tools.failure(server.run(prompt))["exception_message"]
