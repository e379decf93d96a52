"""Soak: the first example workflow again and again in one ComfyUI server. Run it with ComfyUI's own interpreter:

    python tests/comfy/soak.py --comfy ~/comfy/ComfyUI --runs 200

Two seeds take turns, so that nothing comes from ComfyUI's cache, and each has to give the same picture every time. In
between, runs are cancelled at random moments, two prompts are queued at once, the model is used by stock nodes, whose
picture must stay the same as before any marking, and halfway the server is started anew. At the end it says how memory
and open files of the server went after the warm-up, and fails where either grew by more than the limit.
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
        shutil.copy(arguments.comfy / "input" / "example.png", base / "input")
        return Soak(arguments.comfy, base, random.Random(arguments.seed)).run(arguments.runs)


class Soak:
    """One soak; `wrong` counts what was not as it has to be."""

    def __init__(self, comfy: Path, base: Path, random: random.Random) -> None:
        self.comfy, self.base, self.random = comfy, base, random
        self.server = Server(comfy, base)
        self.pictures: dict[str, str] = {}
        self.seconds, self.wrong = 10.0, 0

    def run(self, runs: int) -> int:
        self.picture("stock", stock())  # before any marking
        memory, handles = [], []
        for number in range(runs):
            if number == runs // 2:
                self.server.close()
                self.server = Server(self.comfy, self.base)
                memory, handles = [], []  # of one process
            start = time.monotonic()
            self.picture(f"seed {number % 2}", marking(number % 2))
            self.seconds = time.monotonic() - start
            if number % 5 == 3:
                self.cancel()
                self.picture("stock", stock())
            if number % 5 == 4:
                answers = [self.server.queue(marking(seed)) for seed in (1, 0)]
                for seed, answer in zip((1, 0), answers, strict=True):
                    self.expect(f"seed {seed}", self.server.wait(answer["prompt_id"]))
            process = psutil.Process(self.server.process.pid)
            memory.append(process.memory_info().rss)
            handles.append(process.num_fds())
            print(json.dumps({"run": number, "mib": memory[-1] >> 20, "handles": handles[-1]}), flush=True)
        self.server.close()
        warm = min(WARM_UP, len(memory) // 2)
        late = memory[-max(1, (len(memory) - warm) // 4) :]
        early = memory[warm : warm + len(late)]
        growth = sum(late) / sum(early) - 1
        more = max(handles[warm:]) - handles[warm]
        print(f"{runs} runs: {self.wrong} wrong; memory {growth:+.1%}, open files {more:+d} after the warm-up")
        return int(self.wrong > 0 or growth > LIMIT or more > HANDLES)

    def picture(self, name: str, prompt: dict) -> None:
        """Run a prompt; its picture has to be what it was the first time."""
        self.expect(name, self.server.run(prompt))

    def expect(self, name: str, entry: dict) -> None:
        if entry["status"]["status_str"] != "success":
            return self.complain(f"{name}: {failure(entry)}")
        (saved,) = (found for node in entry["outputs"].values() for found in self.server.images(node))
        digest = hashlib.sha256(pixels(saved)).hexdigest()
        if self.pictures.setdefault(name, digest) != digest:
            self.complain(f"{name}: another picture than the first time")

    def cancel(self) -> None:
        """Stop a run at a random moment of it."""
        prompt_id = self.server.queue(marking(2))["prompt_id"]
        time.sleep(self.random.uniform(0, self.seconds))
        self.server.post("/interrupt", {})
        self.server.wait(prompt_id)

    def complain(self, text: str) -> None:
        self.wrong += 1
        print(text, file=sys.stderr, flush=True)


def marking(seed: int) -> dict:
    """The workflow, small, and with one picture alone to be saved."""
    prompt = json.loads((PACK / "workflows" / "api" / "Mark a photo.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"] == "ONRW_Embed":
            node["inputs"] |= MARKING | {"seed": seed}
    return prompt


def stock() -> dict:
    """The embedded model in ComfyUI's own sampler; other seeds between keep it from being cached."""
    return {
        "1": {"class_type": "ONRW_LoadMini", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a lake"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
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
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "stock"}},
    }


def pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


if __name__ == "__main__":
    sys.exit(main())
