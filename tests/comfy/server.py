"""A real ComfyUI server in a process of its own, and a client of its API."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 180
RUN_SECONDS = 600


class Server:
    """ComfyUI with the packs of `base`/custom_nodes.

    Attributes:
        url: Where it listens.
        base: Its base directory; images go to `base`/output.
        log: What it printed so far.

    Args:
        root: ComfyUI's folder.
        base: See above.
        device: Arguments that choose where it computes and with how much memory.
    """

    def __init__(self, root: Path, base: Path, device: Sequence[str] = ("--cpu",)) -> None:
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        arguments = [*device, "--base-directory", str(base), "--port", str(port), "--disable-api-nodes"]
        arguments += ["--database-url", "sqlite:///:memory:", "--preview-method", "auto"]
        self.log_path = base / "server.log"
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *arguments],
                cwd=root,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"ComfyUI did not start:\n{self.log[-4000:]}")
            time.sleep(0.3)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def cpu_seconds(self) -> float:
        """What it has used of the processor; other work on the machine does not count."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: Any) -> dict:
        """The answer; with "http" where it is an error."""
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return {"http": error.code, **json.loads(error.read() or b"{}")}

    def queue(self, prompt: dict) -> dict:
        return self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})

    def wait(self, prompt_id: str) -> dict:
        """The history entry of a finished prompt."""
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}")
            if entry:
                return entry[prompt_id]
            time.sleep(0.2)
        raise TimeoutError(f"the prompt ran longer than {RUN_SECONDS} s:\n{self.log[-2000:]}")

    def run(self, prompt: dict) -> dict:
        """Queue a prompt and wait for its history entry."""
        answer = self.queue(prompt)
        assert "prompt_id" in answer, answer
        return self.wait(answer["prompt_id"])

    def images(self, outputs: dict) -> list[Path]:
        """Files of a node's images."""
        folder = {"output": self.base / "output", "temp": self.base / "temp"}
        return [folder[i["type"]] / i["subfolder"] / i["filename"] for i in outputs.get("images", [])]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def failure(entry: dict) -> dict:
    """What the node said that failed or was interrupted; "kind" is the name of the message."""
    kinds = ("execution_error", "execution_interrupted")
    return next(({"kind": kind, **data} for kind, data in entry["status"]["messages"] if kind in kinds), {})


def titled(prompt: dict, title: str) -> str:
    """The id of the node with a title."""
    return next(number for number, node in prompt.items() if node["_meta"]["title"] == title)
