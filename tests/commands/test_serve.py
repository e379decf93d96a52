"""``onrw serve``: what it refuses by raw HTTP, and its page in a headless Chromium."""

import base64
import http.client
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onrw_core.commands import serve
from onrw_core.commands.report import Examiner
from onrw_core.commands.serve import MAX_BYTES, Server

from .test_extract import KEY, folder  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start():
    """Start a server whose readings are a function's."""
    servers = []

    def run(read=lambda name, content: f"{name} {len(content)}"):
        server = Server(read, "<key>")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server, method="POST", path="/read", body=b"content", **headers):
    """(status, headers, text) of a request; headers without a value are left out."""
    wanted = {
        "Host": f"127.0.0.1:{server.server_port}",
        "X-Token": server.token,
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(body)),
    }
    wanted |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in wanted.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body if method == "POST" else None)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def test_a_picture_is_read(start):
    server = start()
    status, headers, text = ask(server, X_File_Name="a%20%C3%BC.png")
    assert (status, text) == (200, "a ü.png 7")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src data:;")
    assert "unsafe" not in policy and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store" and headers["Server"] == "onrw"
    assert ask(server, X_File_Name="..%2F..%2Fetc%2Fpasswd")[2] == ".._.._etc_passwd 7"


def test_page_and_its_files(start):
    server = start()
    status, headers, page = ask(server, "GET", "/")
    assert status == 200 and server.token in page and "&lt;key&gt;" in page and "frame-ancestors 'none'" in str(headers)
    for path, kind in (("/page.js", "text/javascript"), ("/report.css", "text/css")):
        status, headers, text = ask(server, "GET", path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and text
    assert "//" not in page.replace("<!doctype", "")  # nothing from elsewhere
    assert ask(server, "GET", "/../cli.py")[0] == 404 and ask(server, "PUT")[0] == 501


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": None}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"X_Token": "guess"}, 403),
        ({"X_Token": None}, 403),
        ({"X_Token": "ü".encode().decode("latin-1")}, 403),
        ({"Content_Type": "multipart/form-data"}, 415),
        ({"Content_Type": None}, 415),
        ({"Content_Length": None}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": str(MAX_BYTES + 1)}, 413),
        ({"Content_Length": "9" * 5000}, 413),
    ],
)
def test_what_is_refused(start, headers, status):
    read = []
    server = start(lambda *image: read.append(image))
    assert ask(server, body=b"", **({"Content_Length": "0"} | headers))[0] == status and read == []


def test_other_hosts_get_no_token(start):
    server = start()
    status, _, text = ask(server, "GET", "/", Host="evil.example")
    assert status == 403 and server.token not in text
    assert ask(server, "GET", "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_it_listens_on_this_machine_alone(start):
    server = start()
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_one_picture_at_a_time(start):
    began, go_on = threading.Event(), threading.Event()

    def read(name, content):
        began.set()
        assert go_on.wait(20)
        return "done"

    server = start(read)
    answers = []
    first = threading.Thread(target=lambda: answers.append(ask(server)))
    first.start()
    assert began.wait(20)
    status, _, text = ask(server)
    assert status == 503 and "Another image" in text
    assert ask(server, "GET", "/")[0] == 200
    go_on.set()
    first.join(20)
    assert answers[0][0] == 200 and ask(server)[0] == 200


def test_errors_are_told_without_details_of_the_machine(start):
    def read(name, content):
        raise ValueError(f"{name}: is not an image") if name == "bad" else RuntimeError("/home/somebody")

    server = start(read)
    assert ask(server, X_File_Name="bad")[::2] == (422, "bad: is not an image")
    status, _, text = ask(server, X_File_Name="worse")
    assert status == 500 and "somebody" not in text


def test_a_broken_upload_frees_the_server(start, monkeypatch):
    server = start()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as client:
        head = f"POST /read HTTP/1.0\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Token: {server.token}\r\n"
        client.sendall(f"{head}Content-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\nhalf".encode())
    for _ in range(100):
        if ask(server)[0] == 200:
            return
    pytest.fail("the server stays busy")


def test_a_browser_that_goes_away_is_no_error(start, capfd, caplog):
    began, go_on = threading.Event(), threading.Event()

    def read(name, content):
        began.set()
        go_on.wait(20)
        return "x" * 10**7

    server = start(read)
    client = socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
    head = f"POST /read HTTP/1.0\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Token: {server.token}\r\n"
    client.sendall(f"{head}Content-Type: application/octet-stream\r\nContent-Length: 1\r\n\r\n1".encode())
    assert began.wait(20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
    client.close()
    handlers = [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]
    assert handlers
    go_on.set()
    for handler in handlers:
        handler.join(20)
    assert "Traceback" not in capfd.readouterr().err and not caplog.records


def test_large_pictures_are_refused_by_their_header(monkeypatch, folder):  # noqa: F811
    content = (folder / "photos" / "0.png").read_bytes()
    with pytest.raises(ValueError, match="0 megapixels"):
        Examiner(KEY)("0.png", content, max_pixels=1000)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_nothing_is_written_and_ctrl_c_ends_it(folder):  # noqa: F811
    (folder / "run").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "run"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "onrw_core", "serve", "--key", str(folder / "my.key"), "--port", "0"]
    process = subprocess.Popen(command, cwd=folder / "run", env=environment, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split()[0]
        connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=120)
        connection.request("GET", "/")
        page = connection.getresponse().read().decode()
        token = page.split('name="token" content="')[1].split('"')[0]
        headers = {"X-Token": token, "Content-Type": "application/octet-stream", "X-File-Name": "2.png"}
        connection.request("POST", "/read", (folder / "photos" / "2.png").read_bytes(), headers)
        answer = connection.getresponse()
        assert answer.status == 200 and "the id 000002" in answer.read().decode()
        assert list((folder / "run").iterdir()) == []
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_waits_for_the_image_that_is_read(folder):  # noqa: F811
    """Python aborts if it ends while another thread is in torch."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "onrw_core", "serve", "--key", str(folder / "my.key"), "--port", "0"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        url = process.stdout.readline().split()[0]
        host = url.removeprefix("http://").rstrip("/")
        connection = http.client.HTTPConnection(host, timeout=120)
        connection.request("GET", "/")
        token = connection.getresponse().read().decode().split('name="token" content="')[1].split('"')[0]
        headers = {"X-Token": token, "Content-Type": "application/octet-stream", "X-File-Name": "0.png"}
        connection.request("POST", "/read", (folder / "photos" / "0.png").read_bytes(), headers)
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.splitlines() == ["onrw: interrupted"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_does_not_wait_for_an_image_that_is_not_sent(folder):  # noqa: F811
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "onrw_core", "serve", "--key", str(folder / "my.key"), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        host = process.stdout.readline().split()[0].removeprefix("http://").rstrip("/")
        connection = http.client.HTTPConnection(host, timeout=120)
        connection.request("GET", "/")
        token = connection.getresponse().read().decode().split('name="token" content="')[1].split('"')[0]
        connection = http.client.HTTPConnection(host, timeout=120)
        headers = {"X-Token": token, "Content-Type": "application/octet-stream", "Content-Length": "1000"}
        connection.request("POST", "/read", b"begin", headers)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=serve.PATIENCE / 2)
    finally:
        process.kill()
    assert process.returncode == 130 and err.splitlines() == ["onrw: interrupted"]


def test_the_thread_that_reads_ends_before_python(folder, monkeypatch):  # noqa: F811
    """A thread that has used torch aborts the process if it ends while Python does."""
    from onrw_core.commands import cli, html_report

    readers = []

    def two_requests(server):
        for name in ("0.png", "1.png"):
            content = (folder / "photos" / name).read_bytes()
            request = threading.Thread(target=server.read, args=(name, content))
            request.start()
            request.join()
        raise KeyboardInterrupt

    render = html_report.render
    monkeypatch.setattr(
        html_report, "render", lambda report: readers.append(threading.current_thread()) or render(report)
    )
    monkeypatch.setattr(Server, "serve_forever", two_requests)
    assert cli.main(["serve", "--key", str(folder / "my.key"), "--port", "0"]) == 130
    assert len(readers) == 2 and len(set(readers)) == 1
    assert not readers[0].daemon and not readers[0].is_alive()


def test_a_port_that_is_taken(start, folder, capsys):  # noqa: F811
    from onrw_core.commands import cli

    port = start().server_port
    assert cli.main(["serve", "--key", str(folder / "my.key"), "--port", str(port)]) == 2
    assert f"--port {port}" in capsys.readouterr().err


# ---- the page


@pytest.fixture
def page(start, folder):  # noqa: F811
    """The page of a server with a key, in a browser."""
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    spec = importlib.util.spec_from_file_location("onrw_browser", ROOT / "tests" / "comfy" / "browser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.executable() is None:
        pytest.skip("Chromium is not installed")
    examine = Examiner(KEY)
    server = start(lambda name, content: serve_report(examine, name, content))
    browser = module.Browser(server.url, "Boolean(document.getElementById('drop'))", settle=0.2)
    yield browser
    browser.close()


def serve_report(examine, name, content):
    from onrw_core.commands.html_report import render

    return render(examine(name, content, serve.MAX_PIXELS))


def drop(browser, path):
    content = base64.b64encode(path.read_bytes()).decode()
    browser.run(f"""(() => {{
      const bytes = Uint8Array.from(atob("{content}"), (c) => c.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], {path.name!r}));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", {{ dataTransfer, bubbles: true }}));
    }})()""")


def test_page_in_a_browser(page, folder):  # noqa: F811
    page.run(
        "(() => { const make = URL.createObjectURL; URL.createObjectURL = (b) => make.call(URL, window.made = b) })()"
    )
    drop(page, folder / "photos" / "2.png")
    page.wait_for("document.querySelector('#result h2') !== null")
    assert page.run("document.querySelector('#result h2').textContent") == "Marked with this key: the id 000002."
    assert page.run("document.getElementById('status').textContent") == ""
    if screenshots := os.environ.get("ONRW_TEST_SCREENSHOTS"):
        page.screenshot(Path(screenshots) / "serve.png")
    # The drawing is shown, which the policy must allow, and so is the style.
    assert page.run("document.querySelector('#result svg image').getBoundingClientRect().width") > 100
    assert page.run("getComputedStyle(document.querySelector('dl')).display") == "grid"
    # The report that is saved is the whole page.
    assert page.run("document.getElementById('save').download") == "2-report.html"
    assert page.run("document.getElementById('save').href").startswith("blob:")
    saved = page.run("window.made.text()")
    assert saved.startswith("<!doctype html>") and "<style>" in saved and "the id 000002" in saved

    drop(page, folder / "photos" / "1.png")
    page.wait_for("document.querySelector('#result.nothing h2') !== null")
    assert page.run("document.querySelector('#result h2').textContent") == "No watermark found."
    drop(page, folder / "photos" / "3.png")
    page.wait_for("document.getElementById('status').textContent.includes('is not an image')")
    assert page.run("document.getElementById('save').hidden") and not page.run("document.querySelector('#result h2')")
