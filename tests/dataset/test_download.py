"""Downloads from a local server that fails in the ways of real servers."""

import hashlib
import itertools
import random
import re
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

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

    path, part: the files of the client. Each request removes one entry from `faults`: "cut"
    closes the connection half-way through the body, "stall" goes silent there, "drop" closes
    without an answer, "noise" does not speak HTTP, "empty" closes after the headers, "shift"
    sends the wrong range.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.path = folder / "file.bin"
        self.part = folder / "file.bin.part"
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
        self.send_response((206 if body else 416) if start else 200)
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        if start:
            content_range = f"{start + (fault == 'shift')}-{SIZE - 1}" if body else "*"
            self.send_header("Content-Range", f"bytes {content_range}/{SIZE}")
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
def server(tmp_path):
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


def check_download(server):
    """Download PAYLOAD; it must be correct and the only file in its folder."""
    download.download(server.url, server.path, MD5)
    assert list(server.path.parent.iterdir()) == [server.path]
    assert server.path.read_bytes() == PAYLOAD


def check_failure(url, path, words, md5=MD5):
    """Check that the download fails, the message matches `words`, and `path` is missing."""
    with pytest.raises(DownloadError, match=f"^could not .*{url}{words}.*$"):
        download.download(url, path, md5)
    assert not path.exists()


START = PAYLOAD[:1000]
REST = ("bytes=1000-", SIZE - 1000)
BEYOND = f"bytes={SIZE + 4}-"
TWO_HALVES = [(None, HALF), (f"bytes={HALF}-", HALF)]


@pytest.mark.parametrize(
    ("present", "attributes", "log"),
    [
        pytest.param(b"", {}, [(None, SIZE)], id="one request"),
        pytest.param(b"", {"length": False}, [(None, SIZE)], id="no Content-Length"),
        pytest.param(b"", {"faults": ["cut"]}, TWO_HALVES, id="cut"),
        pytest.param(b"", {"faults": ["stall"]}, TWO_HALVES, id="stall"),
        pytest.param(START, {}, [REST], id="resumes"),
        pytest.param(START, {"ranges": False}, [("bytes=1000-", SIZE)], id="no ranges"),
        pytest.param(START, {"faults": ["shift"]}, [REST, (None, SIZE)], id="wrong range"),
        pytest.param(PAYLOAD, {}, [(f"bytes={SIZE}-", 0)], id="complete"),
        pytest.param(PAYLOAD + b"more", {}, [(BEYOND, 0), (None, SIZE)], id="too long"),
    ],
)
def test_partial_file_and_interrupted_connection_are_completed(
    server, monkeypatch, capsys, present, attributes, log
):
    monkeypatch.setattr(download, "STALL_SECONDS", 1)
    vars(server).update(attributes)
    if present:
        server.part.write_bytes(present)
    check_download(server)
    assert server.log == log
    if "faults" not in attributes:  # a fault can make the server print an error
        assert capsys.readouterr() == ("", "")


def test_new_bytes_reset_the_count_of_attempts(server):
    server.faults = ["cut", *["drop", "empty"] * 2, "cut", *["empty", "drop"] * 2]
    assert len(server.faults) > ATTEMPTS
    check_download(server)


def test_download_fails_after_attempts_without_new_bytes(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 7)
    server.faults = ["cut"] + ["empty"] * ATTEMPTS
    check_failure(server.url, server.path, f": .*ended at byte {HALF}")
    assert server.part.read_bytes() == PAYLOAD[:HALF]
    assert pauses == [7] * ATTEMPTS


def test_repeated_bytes_are_not_new(server):
    server.ranges = False
    server.faults = (["cut", "empty"] * ATTEMPTS)[:ATTEMPTS]
    server.part.write_bytes(PAYLOAD[:HALF])
    check_failure(server.url, server.path, "")


@pytest.mark.parametrize(
    ("name", "fault", "present", "words"),
    [
        ("404", None, b"", ".*404"),
        ("404", None, START, ".*404"),
        ("416", None, b"", ".*416"),
        ("file", "drop", b"", ""),
        ("file", "noise", b"", ""),
    ],
)
def test_failure_of_the_first_request_is_final(server, name, fault, present, words):
    server.faults = [fault]
    if present:
        server.part.write_bytes(present)
    check_failure(server.url.replace("file", name), server.path, f": {words}")
    assert len(server.log) == 1
    assert server.part.exists() == bool(present)


def test_refused_connection_is_named(tmp_path):
    with Server(tmp_path) as closed:
        pass
    check_failure(closed.url, closed.path, ": .*refused")
    assert list(tmp_path.iterdir()) == []


def test_connection_that_hangs_is_final(tmp_path, monkeypatch):
    release, calls = threading.Event(), []

    def hang(*args, **options):
        calls.append(args)
        release.wait(5)
        raise AssertionError("download() waited for a connection that hangs")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.1)
    check_failure("http://127.0.0.1/file", tmp_path / "file.bin", ": no answer within")
    release.set()
    assert len(calls) == 1


def test_ctrl_c_keeps_the_partial_file(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download.download(server.url, server.path, MD5)
    size = server.part.stat().st_size
    assert 0 < size < SIZE
    assert not server.path.exists()
    check_download(server)
    assert server.log[1] == (f"bytes={size}-", SIZE - size)


def test_write_of_another_process_does_not_reach_the_file(server):
    server.part.write_bytes(START)
    with server.part.open("ab") as other:
        check_download(server)
        other.write(b"late")
    assert server.path.read_bytes() == PAYLOAD


def test_simultaneous_downloads_do_not_mix_their_bytes(server, monkeypatch):
    calls = itertools.count()

    def nested_download(bar, count):
        """Start a second download at the first bytes of the first, and end it after some."""
        call = next(calls)
        if call == 0:
            with pytest.raises(KeyboardInterrupt):
                download.download(server.url, server.path, MD5)
        if call == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(download.tqdm, "update", nested_download)
    server.part.write_bytes(START)
    check_download(server)
    assert len(server.log) == 2


def test_wrong_md5_leaves_no_file(server):
    check_failure(server.url, server.path, ": its MD5 is ", md5="0" * 32)
    assert list(server.path.parent.iterdir()) == []


def test_file_appears_in_one_step(server, monkeypatch):
    monkeypatch.setattr("os.replace", Mock(side_effect=OSError("no room")))
    check_failure(server.url, server.path, ": .*no room")
    assert list(server.path.parent.iterdir()) == [server.part]


def test_disk_error_is_one_line(server):
    check_failure(server.url, server.path.parent / "no" / "file.bin", ": .*No such file")


def test_bar_starts_at_the_bytes_present(server, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    server.part.write_bytes(PAYLOAD[:HALF])
    check_download(server)
    bar = capsys.readouterr().err
    assert re.match(r"\rfile\.bin: +50%.*150k/300k", bar)
    assert "100%" in bar
