"""Downloads from a local server that fails in the ways of real servers."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import re
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common.dataset import download
from common.dataset.download import ATTEMPTS
from common.errors import DownloadError

PAYLOAD = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(PAYLOAD).hexdigest()
SIZE = len(PAYLOAD)
HALF = SIZE // 2


class Server(ThreadingHTTPServer):
    """A server of PAYLOAD at /file; any other path is the number of an error to answer with.

    Each request removes one entry from `faults`: "cut" closes the connection half-way through
    the body, "stall" goes silent there, "drop" closes without an answer, "noise" does not
    speak HTTP, "empty" closes after the headers, "shift" sends the wrong range.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/file"
        self.faults: list[str] = []
        self.ranges = True
        self.length = True
        self.log: list[tuple[str | None, int]] = []  # the Range header, the bytes sent
        self.closing = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        requested = self.headers["Range"]
        fault = self.server.faults.pop(0) if self.server.faults else None
        start = int(re.findall(r"\d+", requested)[0]) if requested and self.server.ranges else 0
        body = PAYLOAD[start:]
        sent = {"cut": len(body) // 2, "stall": len(body) // 2, "drop": 0, "empty": 0}
        count = sent.get(fault, len(body))
        self.server.log.append((requested, count))
        if fault == "noise":
            self.wfile.write(b"hello\r\n")
        if fault in ("drop", "noise"):
            return
        if self.path != "/file":
            self.send_error(int(self.path[1:]))
            return
        if not body:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{SIZE}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        if start:
            first = start + (fault == "shift")
            self.send_header("Content-Range", f"bytes {first}-{SIZE - 1}/{SIZE}")
        self.end_headers()
        self.wfile.write(body[:count])
        if fault == "stall" and not self.server.closing.wait(10):
            self.server.log.append(("the client waited without a time limit", 0))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_proxy_no_pause_few_requests(monkeypatch):
    """Connect directly and without pauses; fail after 20 requests instead of hanging."""
    calls = itertools.count()
    urlopen = urllib.request.urlopen

    def limited(request, timeout=None):
        assert next(calls) < 20, "download() never stops sending requests"
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(urllib.request, "urlopen", limited)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.bin"


@pytest.fixture
def part(path):
    return path.with_name("file.bin.part")


def is_complete(path):
    """Return whether `path` is correct and the only file in its folder."""
    return list(path.parent.iterdir()) == [path] and path.read_bytes() == PAYLOAD


def test_download_is_one_silent_request(server, path, capsys):
    download.download(server.url, path, MD5)
    assert is_complete(path)
    assert server.log == [(None, SIZE)]
    assert capsys.readouterr() == ("", "")


def test_server_without_content_length_is_accepted(server, path):
    server.length = False
    download.download(server.url, path, MD5)
    assert is_complete(path)
    assert len(server.log) == 1


START = PAYLOAD[:1000]
REST = ("bytes=1000-", SIZE - 1000)


@pytest.mark.parametrize(
    ("present", "attributes", "log"),
    [
        pytest.param(START, {}, [REST], id="resumes"),
        pytest.param(START, {"ranges": False}, [("bytes=1000-", SIZE)], id="no ranges"),
        pytest.param(START, {"faults": ["shift"]}, [REST, (None, SIZE)], id="wrong range"),
        pytest.param(PAYLOAD, {}, [(f"bytes={SIZE}-", 0)], id="complete"),
        pytest.param(
            PAYLOAD + b"more", {}, [(f"bytes={SIZE + 4}-", 0), (None, SIZE)], id="too long"
        ),
    ],
)
def test_partial_file_is_completed_or_replaced(server, path, part, present, attributes, log):
    vars(server).update(attributes)
    part.write_bytes(present)
    download.download(server.url, path, MD5)
    assert is_complete(path)
    assert server.log == log


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_interrupted_connection_is_resumed(server, path, monkeypatch, fault):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    server.faults = [fault]
    download.download(server.url, path, MD5)
    assert is_complete(path)
    assert server.log == [(None, HALF), (f"bytes={HALF}-", HALF)]


def test_new_bytes_reset_the_count_of_attempts(server, path):
    server.faults = ["cut", *["drop", "empty"] * 2, "cut", *["empty", "drop"] * 2]
    assert len(server.faults) > ATTEMPTS
    download.download(server.url, path, MD5)
    assert is_complete(path)


def test_download_fails_after_attempts_without_new_bytes(server, path, part, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 7)
    server.faults = ["cut"] + ["empty"] * ATTEMPTS
    with pytest.raises(DownloadError, match=f"{server.url}.*ended at byte {HALF}"):
        download.download(server.url, path, MD5)
    assert not path.exists()
    assert part.read_bytes() == PAYLOAD[:HALF]
    assert pauses == [7] * ATTEMPTS


def test_repeated_bytes_are_not_new(server, path, part):
    server.ranges = False
    server.faults = (["cut", "empty"] * ATTEMPTS)[:ATTEMPTS]
    part.write_bytes(PAYLOAD[:HALF])
    with pytest.raises(DownloadError, match=server.url):
        download.download(server.url, path, MD5)


def test_wrong_md5_leaves_no_file(server, path):
    with pytest.raises(DownloadError, match=f"{server.url}.*MD5"):
        download.download(server.url, path, "0" * 32)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(("status", "started"), [(404, False), (404, True), (416, False)])
def test_http_error_is_final(server, path, part, status, started):
    if started:
        part.write_bytes(START)
    url = server.url.replace("file", str(status))
    with pytest.raises(DownloadError, match=f"{url}: .*{status}"):
        download.download(url, path, MD5)
    assert len(server.log) == 1
    assert part.exists() == started
    assert not path.exists()


@pytest.mark.parametrize("fault", ["drop", "noise"])
def test_failure_of_the_first_connection_is_final(server, path, fault):
    server.faults = [fault]
    with pytest.raises(DownloadError, match=server.url):
        download.download(server.url, path, MD5)
    assert len(server.log) == 1


def test_refused_connection_is_named(path):
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    closed.server_close()
    with pytest.raises(DownloadError, match=f":{closed.server_port}/file: .*refused"):
        download.download(f"http://127.0.0.1:{closed.server_port}/file", path, MD5)
    assert list(path.parent.iterdir()) == []


def test_connection_that_hangs_is_final(path, monkeypatch):
    release = threading.Event()
    calls = []

    def hang(*args, **options):
        calls.append(args)
        release.wait(5)
        raise AssertionError("download() waited for a connection that hangs")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.1)
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1/file: no answer within"):
        download.download("http://127.0.0.1/file", path, MD5)
    release.set()
    assert len(calls) == 1


def test_ctrl_c_keeps_the_partial_file(server, path, part, monkeypatch):
    def interrupt(bar, count):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download.download(server.url, path, MD5)
    size = part.stat().st_size
    assert 0 < size < SIZE
    assert not path.exists()
    download.download(server.url, path, MD5)
    assert is_complete(path)
    assert server.log[1] == (f"bytes={size}-", SIZE - size)


def test_write_of_another_process_does_not_reach_the_file(server, path, part):
    part.write_bytes(START)
    with part.open("ab") as other:
        download.download(server.url, path, MD5)
        other.write(b"late")
    assert is_complete(path)


def test_simultaneous_downloads_do_not_mix_their_bytes(server, path, part, monkeypatch):
    calls = itertools.count()

    def nested_download(bar, count):
        """Start a second download at the first bytes of the first, and end it after some."""
        call = next(calls)
        if call == 0:
            with pytest.raises(KeyboardInterrupt):
                download.download(server.url, path, MD5)
        if call == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(download.tqdm, "update", nested_download)
    part.write_bytes(START)
    download.download(server.url, path, MD5)
    assert is_complete(path)
    assert len(server.log) == 2


def test_file_appears_in_one_step(server, path, part, monkeypatch):
    def refuse(*args):
        raise OSError("no room")

    monkeypatch.setattr(download.os, "replace", refuse)
    with pytest.raises(DownloadError, match=f"{server.url}: no room"):
        download.download(server.url, path, MD5)
    assert list(path.parent.iterdir()) == [part]


def test_disk_error_is_one_line(server, path):
    missing = path.parent / "no" / "file.bin"
    with pytest.raises(DownloadError, match=r"^could not .*/file: .*No such file.*$"):
        download.download(server.url, missing, MD5)


def test_bar_starts_at_the_bytes_present(server, path, part, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    part.write_bytes(PAYLOAD[:HALF])
    download.download(server.url, path, MD5)
    assert re.match(r"\rfile\.bin: +50%.*150k/300k", screen.getvalue())
    assert "100%" in screen.getvalue()
