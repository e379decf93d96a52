"""Soak: the first example workflow again and again in one ComfyUI server. Run it with ComfyUI's own interpreter:

    python tests/comfy/soak.py --comfy ~/comfy/ComfyUI --runs 200

Two seeds take turns, so that nothing comes from ComfyUI's cache, and each has to give the same picture every time. In
between, runs are cancelled at random moments of each node of `AIMS` in turn, the stages after the inversion get
another model (which they refuse), two prompts are queued at once, the model is used by stock nodes, whose picture
must stay the same as before any marking, and halfway the server is started anew. At the end it says how often runs
ended in which node that was to be cancelled, and how memory, open files and hooks of the server went after the
warm-up, and fails where a node was not cancelled in each round, or one of them grew by more than the limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil
from PIL import Image

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
SAMPLES = PACK / "onrw_core" / "samples"
sys.path.insert(0, str(HERE))

from server import Server, failure  # noqa: E402

LIMIT = 0.02  # growth of memory after the warm-up
WARM_UP = 10  # runs
HANDLES = 2  # open files more than after the warm-up: a connection that is being closed
ROUNDS = (3, 6)  # the runs of ten after which each node is cancelled
TRIES = 5  # to cancel a run within a node: a late cancel ends it in the next one
SIDE = 256  # pixels of the photos, which are larger than what is worked on
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


@PromptServer.instance.routes.get("/soak/node")
async def node(request):
    return web.json_response(PromptServer.instance.last_node_id)
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
        for path in SAMPLES.glob("*.jpg"):  # the pack does not replace what is there
            with Image.open(path) as photo:
                photo.resize((SIDE, SIDE)).save(base / "input" / f"onrw_{path.name}")
        return Soak(arguments.comfy, base, random.Random(arguments.seed)).run(arguments.runs)


class Soak:
    """One soak; `wrong` counts what was not as it has to be."""

    def __init__(self, comfy: Path, base: Path, random: random.Random) -> None:
        self.comfy, self.base, self.random = comfy, base, random
        self.server = Server(comfy, base)
        self.pictures: dict[str, str] = {}
        self.seconds: dict[str, float] = defaultdict(float)  # of the nodes, in a run that is not cancelled
        self.cancelled: Counter[tuple[str, str]] = Counter()  # (node that was to be cancelled, where the run ended)
        self.wrong = 0

    def run(self, runs: int) -> int:
        self.picture("stock", stock())  # before any marking
        for workflow in dict.fromkeys(AIMS.values()):
            self.measure(workflow(2))
        memory, handles, hooks, rounds = [], [], [], 0
        for number in range(runs):
            if number == runs // 2:
                self.server.close()
                self.server = Server(self.comfy, self.base)
                memory, handles, hooks = [], [], []  # of one process
            self.picture(f"seed {number % 2}", marking(number % 2))
            if number % 10 == 1:
                self.picture(f"stages {number // 10 % 2}", stages(number // 10 % 2))
                self.refusal(stages(0, swapped=True))
                self.picture("stock of the other", stock(other=True))
                self.picture("stock", stock())
            if number % 10 in ROUNDS:
                rounds += 1
                for node, workflow in AIMS.items():
                    any(self.cancel(node, workflow(100 + TRIES * number + attempt)) for attempt in range(TRIES))
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
        for node in AIMS:
            ends = {end: times for (aim, end), times in self.cancelled.items() if aim == node}
            print(f"{node} cancelled: {ends.get(node, 0)} of {sum(ends.values())} runs ended there, all: {ends}")
            if ends.get(node, 0) < rounds:
                self.complain(f"{node}: was not cancelled in each of {rounds} rounds")
        print(
            f"{runs} runs: {self.wrong} wrong; after the warm-up memory {growth:+.1%}, open files {more:+d}, "
            f"hooks {left:+d}"
        )
        return int(self.wrong > 0 or growth > LIMIT or more > HANDLES or left > 0)

    def picture(self, name: str, prompt: dict) -> None:
        """Run a prompt; its picture has to be what it was the first time."""
        self.expect(name, self.server.run(prompt))

    def measure(self, prompt: dict) -> None:
        """Run a prompt, and note how long each node takes."""
        prompt_id, before = self.server.queue(prompt)["prompt_id"], time.monotonic()
        while not self.server.get(f"/history/{prompt_id}"):
            node, now = self.executing(prompt), time.monotonic()
            self.seconds[node] += now - before
            before = now
            time.sleep(0.01)

    def executing(self, prompt: dict) -> str:
        """The kind of the node that the server is at, in a prompt that it runs; "" for none."""
        return prompt.get(self.server.get("/soak/node"), {"class_type": ""})["class_type"]

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

    def cancel(self, node: str, prompt: dict) -> bool:
        """Cancel a run at a random moment of a node; whether it ended there."""
        prompt_id = self.server.queue(prompt)["prompt_id"]
        while self.executing(prompt) != node and not self.server.get(f"/history/{prompt_id}"):
            time.sleep(0.01)
        time.sleep(self.random.uniform(0, self.seconds[node]))
        self.server.post("/interrupt", {})
        entry = self.server.wait(prompt_id)
        stopped = failure(entry)
        if stopped.get("kind") == "execution_error":
            self.complain(f"cancelled: {told(entry)}")
        end = stopped.get("node_type", "none")
        self.cancelled[node, end] += 1
        if end != node:  # it takes less time than was measured, on a busy machine
            self.seconds[node] /= 2
        return end == node

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


def stages(seed: int, swapped: bool = False, workflow: str = "Four stages") -> dict:
    """A workflow with a node for each stage, small; `swapped` gives the stages after the inversion another model.

    The prompt has another text for each seed, so that no stage comes from ComfyUI's cache.
    """
    prompt = json.loads((PACK / "workflows" / "api" / f"{workflow}.json").read_text(encoding="utf-8"))
    prompt = {name: node for name, node in prompt.items() if node["class_type"] not in SHOWN}
    for node in prompt.values():
        node["inputs"] |= STAGES.get(node["class_type"], {})
        if text := node["inputs"].get("text"):
            node["inputs"]["text"] = f"{text} {seed}"
        if node["class_type"] == "ONRW_OptimizeNoise":
            node["inputs"]["seed"] = seed
        if swapped and node["class_type"] in ("ONRW_OptimizeNoise", "ONRW_ConstrainedDenoise"):
            node["inputs"]["model"] = ["other", 0]
    return prompt | (OTHER if swapped else {})


def sampled(seed: int) -> dict:
    """The workflow in which ComfyUI samples and ONRW_Compose composes, small."""
    return stages(seed, workflow="Sampler graph")


AIMS = {  # the nodes that are cancelled
    "ONRW_Embed": marking,
    "ONRW_NullTextInversion": stages,
    "ONRW_OptimizeNoise": stages,
    "ONRW_ConstrainedDenoise": stages,
    "ONRW_Compose": sampled,
}


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
    with Image.open(path) as image:
        return image.tobytes()


if __name__ == "__main__":
    sys.exit(main())
