"""download() against a server on this machine that fails in the ways a real one does."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import re
import threading
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common import download
from common.download import ATTEMPTS, DownloadError

PAYLOAD = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(PAYLOAD).hexdigest()
SIZE = len(PAYLOAD)
HALF = SIZE // 2


class Server(ThreadingHTTPServer):
    """Serves PAYLOAD; each request takes one of `faults`, and none is left when it is well.

    "cut" closes half-way through what was asked for, "stall" goes silent there, "drop"
    closes without an answer, "noise" answers something else than HTTP, "empty" closes after
    the headers, "shift" sends a wrong range. A path other than /file is an error's number.
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
        asked = self.headers["Range"]
        fault = self.server.faults.pop(0) if self.server.faults else None
        start = int(re.findall(r"\d+", asked)[0]) if asked and self.server.ranges else 0
        body = PAYLOAD[start:]
        sent = {"cut": len(body) // 2, "stall": len(body) // 2, "drop": 0, "empty": 0}
        count = sent.get(fault, len(body))
        self.server.log.append((asked, count))
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
            self.server.log.append(("the client waited for ever", 0))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_proxy_no_pause_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight to the server, without pauses; asking for ever fails instead of hanging."""
    calls = itertools.count()
    urlopen = urllib.request.urlopen

    def limited(request: urllib.request.Request, timeout: float | None = None) -> HTTPResponse:
        assert next(calls) < 20, "download() asks for ever"
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(urllib.request, "urlopen", limited)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


@pytest.fixture
def part(path: Path) -> Path:
    return path.with_name("file.bin.part")


def only_the_file(path: Path) -> bool:
    """Whether `path` is right and nothing else is left in its folder."""
    return list(path.parent.iterdir()) == [path] and path.read_bytes() == PAYLOAD


def test_plain_download_is_one_request(server: Server, path: Path) -> None:
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert server.log == [(None, SIZE)]


def test_a_server_may_not_say_the_length(server: Server, path: Path) -> None:
    server.length = False
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert len(server.log) == 1


def test_resumes_and_asks_only_for_the_rest(server: Server, path: Path, part: Path) -> None:
    part.write_bytes(PAYLOAD[:1000])
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert server.log == [("bytes=1000-", SIZE - 1000)]


def test_starts_over_if_ranges_are_ignored(server: Server, path: Path, part: Path) -> None:
    server.ranges = False
    part.write_bytes(PAYLOAD[:1000])
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert server.log == [("bytes=1000-", SIZE)]


def test_starts_over_if_the_range_is_wrong(server: Server, path: Path, part: Path) -> None:
    server.faults = ["shift"]
    part.write_bytes(PAYLOAD[:1000])
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert [asked for asked, _ in server.log] == ["bytes=1000-", None]


def test_a_complete_part_is_not_sent_again(server: Server, path: Path, part: Path) -> None:
    part.write_bytes(PAYLOAD)
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert server.log == [(f"bytes={SIZE}-", 0)]


def test_starts_over_if_the_part_is_too_long(server: Server, path: Path, part: Path) -> None:
    part.write_bytes(PAYLOAD + b"more")
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert server.log[1:] == [(None, SIZE)]


def test_resumes_after_a_cut_connection(server: Server, path: Path) -> None:
    server.faults = ["cut"]
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert server.log == [(None, HALF), (f"bytes={HALF}-", HALF)]


def test_resumes_after_a_stall(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    server.faults = ["stall"]
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert server.log == [(None, HALF), (f"bytes={HALF}-", HALF)]


def test_new_bytes_start_the_count_of_attempts_again(server: Server, path: Path) -> None:
    server.faults = ["cut", *["drop", "empty"] * 2, "cut", *["empty", "drop"] * 2]
    assert len(server.faults) > ATTEMPTS
    download.download(server.url, path, MD5)
    assert only_the_file(path)


def test_gives_up_after_attempts_without_a_byte(
    server: Server, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 7)
    server.faults = ["cut"] + ["empty"] * ATTEMPTS
    with pytest.raises(DownloadError, match=f"{server.url}.*ended at byte {HALF}"):
        download.download(server.url, path, MD5)
    assert not path.exists()
    assert part.read_bytes() == PAYLOAD[:HALF]
    assert pauses == [7] * ATTEMPTS


def test_the_same_half_again_is_nothing_new(server: Server, path: Path, part: Path) -> None:
    server.ranges = False
    server.faults = ["cut"] * ATTEMPTS
    part.write_bytes(PAYLOAD[:HALF])
    with pytest.raises(DownloadError, match=server.url):
        download.download(server.url, path, MD5)


def test_wrong_md5_leaves_nothing(server: Server, path: Path) -> None:
    with pytest.raises(DownloadError, match=f"{server.url}.*MD5"):
        download.download(server.url, path, "0" * 32)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(("status", "started"), [(404, False), (404, True), (416, False)])
def test_an_error_of_the_server_is_final(
    server: Server, path: Path, part: Path, status: int, started: bool
) -> None:
    if started:
        part.write_bytes(PAYLOAD[:1000])
    url = server.url.replace("file", str(status))
    with pytest.raises(DownloadError, match=f"{url}: .*{status}"):
        download.download(url, path, MD5)
    assert len(server.log) == 1
    assert part.exists() == started
    assert not path.exists()


@pytest.mark.parametrize("fault", ["drop", "noise"])
def test_no_first_connection_is_final(server: Server, path: Path, fault: str) -> None:
    server.faults = [fault]
    with pytest.raises(DownloadError, match=server.url):
        download.download(server.url, path, MD5)
    assert len(server.log) == 1


def test_nothing_listens(path: Path) -> None:
    other = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    other.server_close()
    with pytest.raises(DownloadError, match=f":{other.server_port}/file: .*refused"):
        download.download(f"http://127.0.0.1:{other.server_port}/file", path, MD5)
    assert list(path.parent.iterdir()) == []


def test_a_hanging_connect_is_final(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    calls = []

    def hang(*args: object, **options: object) -> None:
        calls.append(args)
        release.wait(5)
        raise AssertionError("download() waited for a connection that hangs")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.1)
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1/file: no answer within"):
        download.download("http://127.0.0.1/file", path, MD5)
    release.set()
    assert len(calls) == 1


def test_ctrl_c_keeps_the_part(
    server: Server, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(bar: object, count: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download.download(server.url, path, MD5)
    kept = part.stat().st_size
    assert 0 < kept < SIZE
    assert not path.exists()
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert server.log[1] == (f"bytes={kept}-", SIZE - kept)


def test_another_process_cannot_spoil_the_file(server: Server, path: Path, part: Path) -> None:
    part.write_bytes(PAYLOAD[:1000])
    with part.open("ab") as other:
        download.download(server.url, path, MD5)
        other.write(b"late")
    assert only_the_file(path)


def test_two_at_once_do_not_mix_their_bytes(
    server: Server, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def meanwhile(bar: object, count: int) -> None:
        """At the first bytes of the first download a second one writes a little and ends."""
        call = next(calls)
        if call == 0:
            with pytest.raises(KeyboardInterrupt):
                download.download(server.url, path, MD5)
        if call == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(download.tqdm, "update", meanwhile)
    part.write_bytes(PAYLOAD[:1000])
    download.download(server.url, path, MD5)
    assert only_the_file(path)
    assert len(server.log) == 2


def test_the_file_appears_in_one_step(
    server: Server, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(download.os, "replace", refuse)
    with pytest.raises(DownloadError, match=f"{server.url}: no room"):
        download.download(server.url, path, MD5)
    assert list(path.parent.iterdir()) == [part]


def test_a_disk_error_is_one_line(server: Server, path: Path) -> None:
    missing = path.parent / "no" / "file.bin"
    with pytest.raises(DownloadError, match=r"^could not .*/file: .*No such file.*$"):
        download.download(server.url, missing, MD5)


def test_the_bar_is_silent_off_a_terminal(
    server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download.download(server.url, path, MD5)
    assert capsys.readouterr() == ("", "")


def test_the_bar_goes_from_what_is_there_to_the_end(
    server: Server, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    part.write_bytes(PAYLOAD[:HALF])
    download.download(server.url, path, MD5)
    assert re.match(r"\rfile\.bin: +50%.*150k/300k", screen.getvalue())
    assert "100%" in screen.getvalue()
