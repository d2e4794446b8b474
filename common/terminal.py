"""What a script writes to the terminal, and how it ends: streams, signals, exit codes."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import Any, TextIO

from common.errors import DivergedError, DownloadError, InputError, OutputError

# Windows has no SIGHUP.
ENDING_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
READER_GONE = 141  # 128 + SIGPIPE, as a shell reports a program that this signal ends
# tqdm redraws its bar in one write, and moves between the lines of several bars in others.
BAR = re.compile(r"\r(.*)", re.DOTALL)
CURSOR_MOVES = re.compile(r"(\n|\x1b\[A)*")


def printable(text: str, keep: str = "") -> str:
    r"""Return `text` with its control characters, except for those in `keep`, escaped.

    Escaped is what `repr` escapes: also invisible characters that reverse the direction of
    text. A byte of a file's name that is not UTF-8, for which Python's text has a character
    that no file can hold, becomes \xNN.

    >>> print(printable("a\x1b[31mb\n"))
    a\x1b[31mb\n
    >>> print(printable(os.fsdecode(b"\xff.png")))
    \xff.png
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00  # in Python's names of files
    if 0x80 <= byte <= 0xFF:
        return f"\\x{byte:02x}"
    return character.encode("unicode_escape").decode()


class ReaderGoneError(Exception):
    """What reads standard output, such as `| head -1`, has closed the pipe."""


class Output:
    """A standard stream that can neither control the terminal nor end in a traceback.

    Control characters in a text are escaped, except for newlines, tabs and what tqdm writes. A
    character that the stream's encoding lacks is escaped, too. After a failed write the stream
    goes nowhere; only if it is `required` does the failure raise OutputError, or
    ReaderGoneError.
    """

    def __init__(self, stream: TextIO, required: bool) -> None:
        self._stream, self._required = stream, required
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, escaped; return its length."""
        if bar := BAR.fullmatch(text):
            safe = "\r" + printable(bar[1])
        else:
            safe = text if CURSOR_MOVES.fullmatch(text) else printable(text, "\n\t")
        self._try(self._stream.write, safe)
        return len(text)

    def flush(self) -> None:
        """Write what is in the buffer."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., Any], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            # The text stays in the buffer, and Python writes it again when it exits.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if self._required:
                if isinstance(error, BrokenPipeError):
                    raise ReaderGoneError from None
                raise OutputError(
                    f"standard output can't be written ({error.strerror})"
                ) from None


def run_to_exit_code(prog: str, work: Callable[[], None]) -> int:
    """Call `work`, report how it ended if not well, and return the exit code.

    0: done. 1: a file or standard output can't be written. 2: input that can't be used. 128
    plus the number of a signal: stopped by Ctrl-C, SIGTERM or SIGHUP; 141: by the reader of
    standard output. Each but the last is reported in one line on stderr. Further signals are
    ignored while the script ends.
    """
    _open_closed_descriptors()
    out, err = Output(sys.stdout, required=True), Output(sys.stderr, required=False)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            for number in ENDING_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup ignores SIGHUP
                    signal.signal(number, _stop)
            code, message = 0, None
            try:
                work()
            except SystemExit as end:  # --help, and what argparse refuses
                code = end.code or 0
            out.flush()
        except (InputError, DivergedError, DownloadError) as error:
            code, message = 2, str(error)
        except OutputError as error:
            code, message = 1, str(error)
        except KeyboardInterrupt as stop:
            code = 128 + (stop.args or [signal.SIGINT])[0]
            message = "stopped; what was finished is saved"
            if err.isatty():
                err.write("\n")  # below the ^C or the bar
        except ReaderGoneError:
            code = READER_GONE
        _ignore_signals()
        with suppress(OutputError, ReaderGoneError):
            out.flush()
        if message is not None:
            print(f"{prog}: {printable(message)}", file=err)
    return code


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle the first signal that ends the script."""
    _ignore_signals()
    raise KeyboardInterrupt(number)


def _ignore_signals() -> None:
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _open_closed_descriptors() -> None:
    """Open os.devnull as each standard stream that is closed, as by `2>&-`.

    The next file that is opened would get its number, and the messages of libraries.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
