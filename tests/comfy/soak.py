"""Soak: the first example workflow again and again in one ComfyUI server. Run it with ComfyUI's own interpreter:

    python tests/comfy/soak.py --comfy ~/comfy/ComfyUI --runs 200

Two seeds take turns, so that nothing comes from ComfyUI's cache, and each has to give the same picture every time. In
between, runs of one node and of the four stages are cancelled at random moments, the stages after the inversion get
another model (which they refuse), two prompts are queued at once, the model is used by stock nodes, whose picture
must stay the same as before any marking, and halfway the server is started anew. At the end it says in which nodes
runs were cancelled, and how memory, open files and hooks of the server went after the warm-up, and fails where one of
them grew by more than the limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path.insert(0, str(HERE))

from server import Server, failure  # noqa: E402

LIMIT = 0.02  # growth of memory after the warm-up
WARM_UP = 10  # runs
HANDLES = 2  # open files more than after the warm-up: a connection that is being closed
MARKING = {"size": 128, "preset": "quick"}
STAGES = {  # of the workflow with a node for each
    "ImageScale": {"width": 128, "height": 128},
    "ONRW_NullTextInversion": {"inner_steps": 2},
    "ONRW_OptimizeNoise": {"iterations": 3},
}
OTHER = {  # the embedded model with other weights, by ComfyUI's patches
    "other": {
        "class_type": "ModelMergeSubtract",
        "inputs": {"model1": ["2", 0], "model2": ["2", 0], "multiplier": 0.01},
    }
}
SHOWN = {"PreviewImage", "MaskToImage", "ONRW_SaveInversion", "ONRW_Read"}  # not part of the soak
PROBE = """
import gc
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


@PromptServer.instance.routes.get("/soak/hooks")
async def hooks(request):
    modules = [found for found in gc.get_objects() if isinstance(found, torch.nn.Module)]
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return web.json_response(sum(len(getattr(module, name)) for module in modules for name in names))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfy", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of cancelling")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name in ("custom_nodes", "input", "output", "user", "temp"):
            (base / name).mkdir()
        (base / "custom_nodes" / "onrw_pack").symlink_to(PACK)
        (base / "custom_nodes" / "probe.py").write_text(PROBE)
        shutil.copy(arguments.comfy / "input" / "example.png", base / "input")
        return Soak(arguments.comfy, base, random.Random(arguments.seed)).run(arguments.runs)


class Soak:
    """One soak; `wrong` counts what was not as it has to be."""

    def __init__(self, comfy: Path, base: Path, random: random.Random) -> None:
        self.comfy, self.base, self.random = comfy, base, random
        self.server = Server(comfy, base)
        self.pictures: dict[str, str] = {}
        self.seconds = {"one node": 10.0, "stages": 10.0}
        self.cancelled: Counter[str] = Counter()
        self.wrong = 0

    def run(self, runs: int) -> int:
        self.picture("stock", stock())  # before any marking
        memory, handles, hooks = [], [], []
        for number in range(runs):
            if number == runs // 2:
                self.server.close()
                self.server = Server(self.comfy, self.base)
                memory, handles, hooks = [], [], []  # of one process
            self.seconds["one node"] = self.picture(f"seed {number % 2}", marking(number % 2))
            if number % 10 == 1:
                self.seconds["stages"] = self.picture(
                    f"stages {number // 10 % 2}", stages(number // 10 % 2, swapped=False)
                )
                self.refusal(stages(0, swapped=True))
                self.picture("stock of the other", stock(other=True))
                self.picture("stock", stock())
            if number % 10 in (3, 6):
                self.cancel("one node", marking(2))
                self.cancel("stages", stages(2, swapped=False))
                self.picture("stock", stock())
            if number % 10 == 8:
                answers = [self.server.queue(marking(seed)) for seed in (1, 0)]
                for seed, answer in zip((1, 0), answers, strict=True):
                    self.expect(f"seed {seed}", self.server.wait(answer["prompt_id"]))
            process = psutil.Process(self.server.process.pid)
            memory.append(process.memory_info().rss)
            handles.append(process.num_fds())
            hooks.append(self.server.get("/soak/hooks"))
            line = {"run": number, "mib": memory[-1] >> 20, "handles": handles[-1], "hooks": hooks[-1]}
            print(json.dumps(line), flush=True)
        self.server.close()
        warm = min(WARM_UP, len(memory) // 2)
        late = memory[-max(1, (len(memory) - warm) // 4) :]
        early = memory[warm : warm + len(late)]
        growth = sum(late) / sum(early) - 1
        more = max(handles[warm:]) - handles[warm]
        left = max(hooks[warm:]) - hooks[warm]
        print("cancelled in " + ", ".join(f"{node} {times}" for node, times in self.cancelled.most_common()))
        print(
            f"{runs} runs: {self.wrong} wrong; after the warm-up memory {growth:+.1%}, open files {more:+d}, "
            f"hooks {left:+d}"
        )
        return int(self.wrong > 0 or growth > LIMIT or more > HANDLES or left > 0)

    def picture(self, name: str, prompt: dict) -> float:
        """Run a prompt; its picture has to be what it was the first time. Returns the seconds it took."""
        start = time.monotonic()
        self.expect(name, self.server.run(prompt))
        return time.monotonic() - start

    def expect(self, name: str, entry: dict) -> None:
        if entry["status"]["status_str"] != "success":
            return self.complain(f"{name}: {told(entry)}")
        (saved,) = (found for node in entry["outputs"].values() for found in self.server.images(node))
        digest = hashlib.sha256(pixels(saved)).hexdigest()
        if self.pictures.setdefault(name, digest) != digest:
            self.complain(f"{name}: another picture than the first time")

    def refusal(self, prompt: dict) -> None:
        """Run a prompt whose stages get different models."""
        if "connect the same model" not in (text := told(self.server.run(prompt))):
            self.complain(f"another model is not refused: {text}")

    def cancel(self, kind: str, prompt: dict) -> None:
        """Stop a run at a random moment of it."""
        prompt_id = self.server.queue(prompt)["prompt_id"]
        time.sleep(self.random.uniform(0, self.seconds[kind]))
        self.server.post("/interrupt", {})
        entry = self.server.wait(prompt_id)
        for message, data in entry["status"]["messages"]:
            if message == "execution_error":
                self.complain(f"cancelled: {told(entry)}")
            if message == "execution_interrupted":
                self.cancelled[data["node_type"]] += 1

    def complain(self, text: str) -> None:
        self.wrong += 1
        print(text, file=sys.stderr, flush=True)


def told(entry: dict) -> str:
    """The message of the node that failed."""
    return failure(entry).get("exception_message", "")


def marking(seed: int) -> dict:
    """The workflow, small, and with one picture alone to be saved."""
    prompt = json.loads((PACK / "workflows" / "api" / "Mark a photo.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"] == "ONRW_Embed":
            node["inputs"] |= MARKING | {"seed": seed}
    return prompt


def stages(seed: int, swapped: bool) -> dict:
    """The workflow with a node for each stage, small; `swapped` gives the stages after the inversion another model."""
    prompt = json.loads((PACK / "workflows" / "api" / "Four stages.json").read_text(encoding="utf-8"))
    prompt = {name: node for name, node in prompt.items() if node["class_type"] not in SHOWN}
    for node in prompt.values():
        node["inputs"] |= STAGES.get(node["class_type"], {})
        if node["class_type"] == "ONRW_OptimizeNoise":
            node["inputs"]["seed"] = seed
        if swapped and node["class_type"] in ("ONRW_OptimizeNoise", "ONRW_ConstrainedDenoise"):
            node["inputs"]["model"] = ["other", 0]
    return prompt | (OTHER if swapped else {})


def stock(other: bool = False) -> dict:
    """The embedded model, or the other one, in ComfyUI's own sampler; the prompts between keep it from being cached."""
    prompt = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "a lake"}},
        "2": {"class_type": "ONRW_LoadMini", "inputs": {}},  # so numbered as in the other workflows, for `OTHER`
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["2", 0],
                "positive": ["1", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 7,
                "steps": 3,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["2", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "stock"}},
    }
    if other:
        prompt["5"]["inputs"]["model"] = ["other", 0]
    return prompt | (OTHER if other else {})


def pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


if __name__ == "__main__":
    sys.exit(main())
