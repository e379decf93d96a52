"""``onrw serve``: a page on this machine that reports the watermark of a dropped image.

The server is for the browser of this machine alone. It listens on 127.0.0.1, and refuses requests

- of another host name, as DNS rebinding makes them, by the Host header;
- of pages of other origins, by the Origin header, and by a token that only its own page has;
- with an image that is too large, by Content-Length before the body is read and by the number of pixels in the
  image's header; and a second image while one is read.

Images stay in memory and nothing is written to the disk. The Content-Security-Policy allows the page its own script,
its own style sheet and images in the page, and no other origin.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from string import Template
from urllib.parse import unquote

from ..payload.keys import redacted
from .common import number
from .output import say
from .verify import add_sources, given_key

__all__ = ["MAX_BYTES", "MAX_PIXELS", "Server", "add_arguments", "run"]

HOST = "127.0.0.1"
PORT = 8317
MAX_BYTES = 64_000_000
MAX_PIXELS = 40_000_000
PATIENCE = 30  # seconds without a byte from the browser
LONGEST_NAME = 255
LONGEST_NUMBER = 18  # digits; Python refuses to read numbers of more than 4300
KIND = "application/octet-stream"  # of an image; no HTML form sends it
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sources(parser)
    parser.add_argument(
        "--port",
        type=number(int, 0, 65535),
        default=PORT,
        metavar="N",
        help=f"port on 127.0.0.1; 0 for any that is free (default: {PORT})",
    )


def run(arguments: argparse.Namespace) -> int:
    key = given_key(arguments)

    from ..payload.registry import Registry
    from .html_report import render
    from .report import Examiner

    registry = None if arguments.registry is None else Registry(arguments.registry)
    examine = Examiner(key, registry, arguments.fpr)
    readers = "No key was given: only what needs no key is reported." if key is None else f"Key {key.fingerprint}."

    # All reading is done in one thread, which has ended before Python does. A thread that has used torch aborts the
    # process if it ends while Python does, also when it no longer computes.
    reader = ThreadPoolExecutor(1)

    def read(name: str, content: bytes) -> str:
        try:
            report = reader.submit(lambda: render(examine(name, content, MAX_PIXELS)))
        except RuntimeError:  # it takes no other image when Ctrl-C has ended the server
            raise ValueError(f"{name}: not read, since the server ends; start it again") from None
        return report.result()

    try:
        server = Server(read, readers, arguments.port)
    except OSError as error:
        raise ValueError(f"--port {arguments.port}: {error.strerror or error}; choose another, or 0") from None
    # At its end `reader` waits for the image that is read, but not for one that a browser has not sent yet.
    with reader, server:
        say(f"{server.url} (Ctrl-C ends it)")
        server.serve_forever()
    return 0


class Server(ThreadingHTTPServer):
    """The server.

    Attributes:
        url: Address of its page.

    Args:
        read: (name, content) of an image -> its report, HTML; raises ValueError with a message for the user.
        readers: What images are read with, shown on the page.
        port: 0 for any that is free.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, read: Callable[[str, bytes], str], readers: str = "", port: int = 0) -> None:
        super().__init__((HOST, port), Handler)
        self.read, self.token = read, secrets.token_urlsafe(32)
        self.reading = threading.Lock()
        self.names = [f"{name}:{self.server_port}" for name in (HOST, "localhost")]
        self.url = f"http://{self.names[0]}/"
        self.files = _files(self.token, readers)

    def handle_error(self, request: object, client_address: object) -> None:
        """Report an error of a request; a browser that has closed its connection is none."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            log.error("unexpected:", exc_info=error)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        if not self._own():
            return
        if self.path not in self.server.files:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
            return
        kind, content = self.server.files[self.path]
        self._answer(HTTPStatus.OK, kind, content)

    def do_POST(self) -> None:
        if not self._own():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/read":
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
        elif not hmac.compare_digest(self.headers.get("X-Token", "").encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "The page is of an earlier run; load it again.")
        elif self.headers.get("Content-Type") != KIND:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"An image is sent as {KIND}.")
        elif not (length.isascii() and length.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "The size of the image is missing.")
        elif len(length) > LONGEST_NUMBER or int(length) > MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The file is larger than {MAX_BYTES // 10**6} MB.")
        elif not self.server.reading.acquire(blocking=False):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Another image is being read; try again when it is done.")
        else:
            try:
                answer = self._read(int(length))
            finally:
                self.server.reading.release()  # before the answer: the page may send the next image at once
            if answer is not None:
                self._answer(*answer)

    def _read(self, length: int) -> tuple[HTTPStatus, str, bytes] | None:
        """Read an image from the request: the answer with its report; None if the browser has gone."""
        name = unquote(self.headers.get("X-File-Name", ""))[:LONGEST_NAME] or "image"
        content = self.rfile.read(length)
        if len(content) < length:
            return None
        try:
            report = self.server.read(name.replace("/", "_").replace("\0", "_"), content)
        except ValueError as error:
            return HTTPStatus.UNPROCESSABLE_ENTITY, "text/plain", redacted(str(error)).encode()
        except Exception as error:
            log.error("%s: unexpected:", name, exc_info=error)
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"The image could not be read; see the terminal."
        return HTTPStatus.OK, "text/html", report.encode()

    def _own(self) -> bool:
        """Whether a request is of this server's own page; refuses it otherwise."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host in self.server.names and origin in (None, f"http://{host}"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"This page is for {self.server.url} alone.")
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._answer(status, "text/plain", reason.encode())

    def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for header, value in HEADERS.items():
            self.send_header(header, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        return "onrw"

    def log_message(self, format: str, *arguments: object) -> None:
        log.debug(format, *arguments)


def _files(token: str, readers: str) -> dict[str, tuple[str, bytes]]:
    """The files of the page: path -> (type, content)."""
    from html import escape

    from .html_report import STYLE, WEB

    page = Template((WEB / "page.html").read_text(encoding="utf-8")).substitute(
        token=token,
        most_bytes=MAX_BYTES,
        limits=f"Up to {MAX_BYTES // 10**6} MB and {MAX_PIXELS // 10**6} megapixels",
        readers=escape(readers),
    )
    return {
        "/": ("text/html", page.encode()),
        "/report.css": ("text/css", STYLE.encode()),
        "/page.js": ("text/javascript", (WEB / "page.js").read_bytes()),
    }
