"""A headless Chromium with a page open, ComfyUI's by default, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--mute-audio",
    "--remote-allow-origins=*",
    "--remote-debugging-port=0",
    "--window-size=1920,1080",
)
READY = "Boolean(window.app && window.app.graph && window.app.extensionManager && document.querySelector('canvas'))"


def executable() -> str | None:
    """Where Chromium is, if it is."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page.

    Args:
        url: Its address.
        ready: JavaScript that is true when the page can be used.
        settle: Seconds to wait after that: ComfyUI goes on loading extensions.
    """

    def __init__(self, url: str, ready: str = READY, settle: float = 2) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [executable(), *FLAGS, f"--user-data-dir={self.folder.name}", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = Path(self.folder.name) / "DevToolsActivePort"
        self._wait(lambda: port_file.is_file() and port_file.read_text(), 30)
        port = port_file.read_text().split()[0]
        pages: list[dict] = []

        def page() -> bool:
            listed = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/json").read())
            pages[:] = [target for target in listed if target["type"] == "page"]
            return bool(pages)

        self._wait(page, 30)
        self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=120)
        self.ids = itertools.count(1)
        self._wait(lambda: self._is(ready), 180)
        time.sleep(settle)

    def _is(self, expression: str) -> bool:
        """Whether an expression is true; false while the page is still being opened."""
        try:
            return bool(self.run(expression))
        except RuntimeError:
            return False

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        self._wait(lambda: self.run(expression), seconds)

    @staticmethod
    def _wait(condition: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError("the page did not get ready")
            time.sleep(0.2)

    def call(self, method: str, **parameters: Any) -> dict:
        """One command of the protocol."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(answer["error"]["message"])
                return answer["result"]

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", str(result)))
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()
