"""Archives are downloaded once, resumed, and verified. Failures say where to put the file."""

import hashlib
import http.server
import socket
import threading

import pytest

from simclr.data.download import DOWNLOADS, Download, fetch
from simclr.errors import UserError
from simclr.progress import SILENT, Observer
from tests.simclr.data.helpers import publish, write

ARCHIVE = "cifar-10-binary.tar.gz"
CONTENT = bytes(range(256)) * 40


class Server:
    """A local web server that serves one file and records the requested ranges."""

    def __init__(self, content, mode="ranges"):
        self.requests = requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requested = self.headers.get("Range")
                requests.append(requested)
                if mode == "garbage":
                    self.wfile.write(b"this is not HTTP\r\n\r\n")
                    return
                if mode == "missing":
                    self.send_error(404)
                    return
                start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and mode == "ranges" else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : len(content) // 2 if mode == "cut" else None])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{ARCHIVE}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(mode="ranges"):
        servers.append(Server(CONTENT, mode))
        publish(monkeypatch, "cifar10", CONTENT, servers[-1].url)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def fetch_error(folder):
    with pytest.raises(UserError) as caught:
        fetch("cifar10", folder, SILENT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Recorder(Observer):
    def __init__(self):
        self.steps = []

    def progress(self, what, done, total):
        self.steps.append((what, done, total))


@pytest.mark.parametrize("mode", ["ranges", "whole"])
def test_archive_is_downloaded_once(mode, tmp_path, serve):
    server, observer = serve(mode), Recorder()
    for _ in range(2):
        path = fetch("cifar10", tmp_path / "new", observer)
        assert path == tmp_path / "new" / ARCHIVE
        assert path.read_bytes() == CONTENT
    assert observer.steps == [(f"downloading {ARCHIVE}", len(CONTENT), len(CONTENT))]
    assert server.requests == [None]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("mode", ["ranges", "whole"])
def test_partial_download_is_resumed_or_starts_over_where_the_server_cannot(mode, tmp_path, serve):
    server = serve(mode)
    write(tmp_path / f"{ARCHIVE}.part", CONTENT[:5000])
    assert fetch("cifar10", tmp_path, SILENT).read_bytes() == CONTENT
    assert server.requests == ["bytes=5000-"]
    assert not list(tmp_path.rglob("*.part"))


def test_partial_download_that_is_complete_is_used(tmp_path, serve):
    serve()
    write(tmp_path / f"{ARCHIVE}.part", CONTENT)
    assert fetch("cifar10", tmp_path, SILENT).read_bytes() == CONTENT


def test_download_resumes_after_the_connection_was_lost(tmp_path, serve):
    serve("cut")
    message = fetch_error(tmp_path)
    assert "run again to resume" in message
    assert f"of {len(CONTENT)} bytes" in message
    half = len(CONTENT) // 2
    assert (tmp_path / f"{ARCHIVE}.part").stat().st_size == half
    server = serve()
    assert fetch("cifar10", tmp_path, SILENT).read_bytes() == CONTENT
    assert server.requests == [f"bytes={half}-"]


@pytest.mark.parametrize("partial", [False, True])
def test_download_with_the_wrong_checksum_is_rejected(partial, tmp_path, serve, monkeypatch):
    server = serve()
    monkeypatch.setitem(DOWNLOADS, "cifar10", Download(server.url, "0" * 32))
    if partial:
        write(tmp_path / f"{ARCHIVE}.part", b"other bytes")
    message = fetch_error(tmp_path)
    assert str(tmp_path / f"{ARCHIVE}.part") in message
    assert "0" * 32 in message
    assert "delete the file" in message
    assert not (tmp_path / ARCHIVE).exists()


def test_archive_that_is_already_there_is_verified(tmp_path):
    path = write(tmp_path / ARCHIVE, CONTENT)
    message = fetch_error(tmp_path)
    assert str(path) in message
    assert hashlib.md5(CONTENT).hexdigest() in message
    assert DOWNLOADS["cifar10"].md5 in message


@pytest.mark.parametrize("mode", ["no server", "missing", "garbage"])
def test_failed_download_names_the_address_and_where_to_save_the_file(mode, tmp_path, serve, monkeypatch):
    if mode == "no server":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # nobody listens on this port
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/{ARCHIVE}"
            monkeypatch.setenv("no_proxy", "*")
            publish(monkeypatch, "cifar10", CONTENT, url)
            message = fetch_error(tmp_path)
    else:
        url = serve(mode).url
        message = fetch_error(tmp_path)
    assert url in message
    assert str(tmp_path / ARCHIVE) in message
    assert "--preset shapes" in message
