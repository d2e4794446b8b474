"""A download for a slow host: it never waits without end and goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
import time
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

from tqdm import tqdm

CONNECT_SECONDS = 10  # until the server answers: name look-up, every address, TLS, headers
STALL_SECONDS = 15  # without a byte
PAUSE_SECONDS = 2  # before connecting again: the network may be gone for a moment only
ATTEMPTS = 5  # in a row that bring nothing new
CHUNK = 1 << 16


class DownloadError(Exception):
    """The file can't be had: one line that names the URL and the cause."""


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` into `path`, which appears only when it is complete and its MD5 is right.

    What arrives is kept in `path`.part, after Ctrl-C too, and the next call goes on there.
    Of two calls at once for one path either may fail, but neither leaves a wrong file there.
    Raises DownloadError if the network, the server, the disk or the MD5 is at fault.
    """
    part = path.with_name(f"{path.name}.part")
    # Another process may hold `part` open and write to it after the check, so `path` is made
    # of the very bytes that were checked, in a file that no other process knows.
    own = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fetch(url, part)
        data = part.read_bytes()
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            part.unlink(missing_ok=True)
            raise DownloadError(f"could not download {url}: its MD5 is {found}, not {md5}")
        own.write_bytes(data)
        os.replace(own, path)
        part.unlink(missing_ok=True)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"could not download {url}: {error}") from error
    finally:
        own.unlink(missing_ok=True)


def fetch(url: str, part: Path) -> None:
    """Bring `part` to its full length, over as many connections as that takes.

    Raises OSError or HTTPException if the first connection can't be made, the server answers
    with an error, or ATTEMPTS connections in a row bring nothing new.
    """
    connected = False
    idle = 0
    most = size(part)
    while True:
        have = size(part)
        try:
            with connect(url, have) as answer:
                connected = True
                receive(answer, part, have)
            return
        except HTTPError as error:
            error.close()
            if error.code != 416 or not have:
                raise
            # The file has no byte `have`: the part is all of it, or can't be a part of it.
            if error.headers["Content-Range"] == f"bytes */{have}":
                return
            part.unlink()
        except (OSError, HTTPException):
            # New is what no attempt had yet: a server that ignores ranges and always stops
            # at the same byte brings nothing.
            idle = 0 if size(part) > most else idle + 1
            most = max(most, size(part))
            if not connected or idle == ATTEMPTS:
                raise
            time.sleep(PAUSE_SECONDS)


def connect(url: str, start: int) -> HTTPResponse:
    """Ask for `url` from byte `start` on; raises what urlopen raises, or TimeoutError."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    answers: queue.SimpleQueue[HTTPResponse | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:
            answers.put(error)

    # In a thread, because urlopen's timeout is per address and leaves out the name look-up.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def receive(answer: HTTPResponse, part: Path, have: int) -> None:
    """Write the answer to `part` from byte `have` on, or from 0 if it is the whole file.

    Raises OSError or HTTPException if the answer stalls, ends early or is another range.
    """
    if answer.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != have:
            part.unlink()  # the next request is for the whole file
            raise HTTPException("the server sent another range than it was asked for")
        total = int(span[2])
    else:
        have, total = 0, answer.length
    bar = tqdm(
        desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None
    )
    # Not "ab": two processes at once then write the same bytes to the same places.
    with bar, part.open("r+b" if have else "wb") as file:
        file.seek(have)
        while chunk := answer.read1(CHUNK):
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
    if total is not None and have != total:
        raise ConnectionError(f"the connection ended at byte {have} of {total}")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
