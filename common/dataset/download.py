"""A download that survives a slow host: it resumes, and never waits without a time limit."""

import hashlib
import queue
import re
import threading
import time
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

from tqdm import tqdm

from common.errors import DownloadError, OutputError
from common.files import atomic_write

CONNECT_SECONDS = 10  # until the server answers: name look-up, every address, TLS, headers
STALL_SECONDS = 15  # without a byte
PAUSE_SECONDS = 2  # before another connection: the network may be down for a moment only
ATTEMPTS = 5  # consecutive connections without new bytes
CHUNK = 1 << 16


def download(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, which appears only when its MD5 has been checked.

    The bytes received so far stay in `path`.part, also after Ctrl-C, and the next call resumes
    from them. If two processes download to the same path, either may fail, but neither
    leaves a wrong file. Raises DownloadError if the network, the server, the disk or the MD5
    is at fault.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        fetch(url, part)
        data = part.read_bytes()
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            part.unlink(missing_ok=True)
            raise DownloadError(f"could not download {url}: its MD5 is {found}, not {md5}")
        # Another process may hold `part` open and write to it after the check. So `path` is
        # made from the bytes that were checked, in a file that no other process uses.
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
        part.unlink(missing_ok=True)
    except (OSError, HTTPException, OutputError) as error:
        raise DownloadError(f"could not download {url}: {error}") from error


def fetch(url: str, part: Path) -> None:
    """Complete the file `part`, over several connections if necessary.

    Raises OSError or HTTPException if the first connection fails, the server answers with an
    error, or ATTEMPTS consecutive connections bring no new bytes.
    """
    connected, failures, longest = False, 0, size(part)
    while True:
        start = size(part)
        try:
            with connect(url, start) as response:
                connected = True
                receive(response, part, start)
            return
        except HTTPError as error:
            error.close()
            if error.code != 416 or not start:
                raise
            # The file on the server has no byte `start`: either `part` is complete, or it
            # belongs to another file.
            if error.headers["Content-Range"] == f"bytes */{start}":
                return
            part.unlink()
        except (OSError, HTTPException):
            # Only bytes beyond the longest attempt are new: a server that ignores ranges and
            # always stops at the same byte makes no progress.
            failures = 0 if size(part) > longest else failures + 1
            longest = max(longest, size(part))
            if not connected or failures == ATTEMPTS:
                raise
            time.sleep(PAUSE_SECONDS)


def connect(url: str, start: int) -> HTTPResponse:
    """Request `url` from byte `start` on, and return the response.

    Raises the exceptions of urlopen, and TimeoutError after CONNECT_SECONDS.
    """
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    results: queue.SimpleQueue[HTTPResponse | Exception] = queue.SimpleQueue()

    def open_url() -> None:
        try:
            results.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:
            results.put(error)

    # In a thread, because the timeout of urlopen applies to each address separately and does
    # not cover the name look-up.
    threading.Thread(target=open_url, daemon=True).start()
    try:
        result = results.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def receive(response: HTTPResponse, part: Path, start: int) -> None:
    """Write the response to `part` from byte `start` on, or from 0 if it is the whole file.

    Raises OSError or HTTPException if the response stalls, ends early or is the wrong range.
    """
    if response.status == 206:
        header = response.headers.get("Content-Range", "")
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", header)
        if content_range is None or int(content_range[1]) != start:
            part.unlink()  # the next request is for the whole file
            raise HTTPException("the server sent another range than was requested")
        position, total = start, int(content_range[2])
    else:
        position, total = 0, response.length
    bar = tqdm(
        desc=part.stem, total=total, initial=position, unit="B", unit_scale=True, disable=None
    )
    # Not "ab": two processes that download at once must write the same bytes to the same
    # positions.
    with bar, part.open("r+b" if position else "wb") as file:
        file.seek(position)
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            position += len(chunk)
            bar.update(len(chunk))
    if total is not None and position != total:
        raise ConnectionError(f"the connection ended at byte {position} of {total}")


def size(path: Path) -> int:
    """Return the size of a file in bytes, or 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0
