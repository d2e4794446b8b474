"""What a script writes to the terminal, and how it ends, with a short program as the script."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
from tqdm import tqdm

from common.errors import InputError, OutputError
from common.files import ROOT
from common.terminal import (
    ENDING_SIGNALS,
    Output,
    ReaderGoneError,
    printable,
    run_to_exit_code,
)

# A script with its work. A shell's background job ignores Ctrl-C, and so would its children.
PROGRAM = f"""
import atexit, os, select, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from common.errors import DivergedError, DownloadError, InputError, OutputError
from common.terminal import run_to_exit_code
def kill(*names):
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))
def await_reader_gone():
    stdout = select.poll()
    stdout.register(1, 0)
    stdout.poll()
def work():
    WORK
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.exit(run_to_exit_code("script.py", work))
"""
HOSTILE = "a\nb\x1b[31mc\x07\x7f\x9b2J\r\u202ed\udcff"
ESCAPED = r"a\nb\x1b[31mc\x07\x7f\x9b2J\r\u202ed\xff"


def end_of(
    work: str, shell: str = "", before: str = "", **variables: str
) -> tuple[int, str, str]:
    """Run a script that does this work; return exit code, standard output and errors.

    shell: what follows the command in bash, such as a redirection. before: other commands.
    """
    command = [sys.executable, "-c", PROGRAM.replace("WORK", work)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | variables
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; {before} "$@" {shell}', "bash", *command],
        capture_output=True, text=True, errors="surrogateescape", timeout=60, check=False,
        env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


FULL = "script.py: standard output can't be written (No space left on device)\n"
MUCH = "for i in range(100000): print(i)"


@pytest.mark.parametrize(
    ("work", "shell", "expected"),
    [
        ("print('a')", ">/dev/full", (1, "", FULL)),
        ("print('a', flush=True)", ">/dev/full", (1, "", FULL)),
        ("print('a'); sys.exit(0)", ">/dev/full", (1, "", FULL)),  # as --help does
        ("print('a'); raise InputError('b')", ">/dev/full", (2, "", "script.py: b\n")),
        ("print('a'); raise InputError('b')", "2>/dev/full", (2, "a\n", "")),
        ("print('a'); raise InputError('b')", "2>&-", (2, "a\n", "")),
        ("print('a'); raise InputError('b')", ">&-", (2, "", "script.py: b\n")),
        ("print('a', file=sys.stderr)", ">&- <&- 2>&-", (0, "", "")),
        # A file must not get the number of a closed stream.
        ("print(open('/dev/zero').fileno() > 2)", "<&- 2>&-", (0, "True\n", "")),
        (MUCH, "| head -1", (141, "0\n", "")),
        ("await_reader_gone(); print('a')", "| true", (141, "", "")),
        ("await_reader_gone(); print('a', flush=True)", "| true", (141, "", "")),
        ("await_reader_gone(); print('a', flush=True)", "2>&1 | true", (141, "", "")),
        ("await_reader_gone(); print('a'); raise InputError('b')", "| true",
         (2, "", "script.py: b\n")),
        # This broken pipe is not that of standard output.
        ("try: raise BrokenPipeError\n    except OSError: print('a')", "", (0, "a\n", "")),
        ("sys.exit(2)", "", (2, "", "")),
        ("raise OutputError('b')", "", (1, "", "script.py: b\n")),
        ("raise DivergedError('b')", "", (2, "", "script.py: b\n")),
        ("raise DownloadError('b')", "", (2, "", "script.py: b\n")),
        (f"raise InputError({HOSTILE!r})", "", (2, "", f"script.py: {ESCAPED}\n")),
    ],
)  # fmt: skip
def test_a_script_ends_without_a_traceback(work, shell, expected):
    assert end_of(work, shell) == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-8:surrogateescape"])
def test_standard_output_takes_any_text(encoding):
    hostile = f"{HOSTILE}\tçé\u2713"
    code, out, errors = end_of(f"print({hostile!r})", PYTHONIOENCODING=encoding)
    lossless = out.encode("utf-8", "surrogateescape").decode(encoding.split(":")[0])
    expected = ESCAPED.replace("\\n", "\n", 1) + "\tçé\u2713\n"
    if not encoding.startswith("utf"):
        expected = expected.encode(encoding, "backslashreplace").decode(encoding)
    assert (code, lossless, errors) == (0, expected, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_a_script_in_one_line(name):
    """Signals that follow while the script ends are ignored."""
    work = f"""
    atexit.register(kill, "SIGINT", "SIGTERM", "SIGHUP")
    try: kill("{name}"); print("not reached")
    finally: kill("SIGINT", "SIGTERM", "SIGHUP")"""
    expected = "script.py: stopped; what was finished is saved\n"
    assert end_of(work) == (128 + getattr(signal, name), "", expected)


def test_a_signal_after_the_work_changes_nothing():
    work = "print('done'); atexit.register(kill, 'SIGINT', 'SIGTERM', 'SIGHUP')"
    assert end_of(work) == (0, "done\n", "")


def test_a_signal_that_nohup_ignores_stays_ignored():
    work = "kill('SIGHUP'); print('went on')"
    assert end_of(work, before="trap '' HUP;") == (0, "went on\n", "")


class Terminal(io.StringIO):
    """A stream that bars are drawn to."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_bars_reach_a_terminal_unchanged():
    """Two bars, one below the other."""

    def drawn(escaping: bool) -> str:
        terminal = Terminal()
        file = Output(terminal, required=False) if escaping else terminal
        fixed = {"file": file, "mininterval": 0, "miniters": 1, "disable": None}
        fixed |= {"bar_format": "{desc} {n_fmt} \u2588"}
        with tqdm(total=2, desc="outer", **fixed) as outer:
            for _ in range(2):
                list(tqdm(range(2), "inner", leave=False, position=1, **fixed))
                outer.update()
        return terminal.getvalue()

    plain = drawn(escaping=False)
    assert plain.count("\r") > 6
    assert plain.count("\x1b[A") > 2
    assert drawn(escaping=True) == plain


def test_only_what_tqdm_writes_moves_the_cursor():
    stream = io.StringIO()
    for text in ("\x1b[A", "\n\n", "\rbar \x1b[A\r", "text \r\x1b[A\n"):
        print(text, end="", file=Output(stream, required=False))
    assert stream.getvalue() == "\x1b[A\n\n\rbar \\x1b[A\\r" + "text \\r\\x1b[A\n"


def test_printable_text_stays_as_it_is():
    text = "Größe 32 ± 0.5 \\x1b"
    assert printable(text) == text


@pytest.fixture
def handlers_restored():
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_restored")
@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: sys.exit(3), 3, ""),
        (lambda: raised(InputError("a\nb")), 2, r"script.py: a\nb"),
        (lambda: raised(OutputError("a")), 1, "script.py: a"),
        (lambda: raised(KeyboardInterrupt), 130, "script.py: stopped"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "script.py: stopped"),
        (lambda: raised(ReaderGoneError), 141, ""),
    ],
)
def test_an_end_has_an_exit_code_and_at_most_a_line(capsys, end, code, message):
    streams = sys.stdout, sys.stderr
    assert run_to_exit_code("script.py", lambda: [print("\x1b"), end()]) == code
    assert (sys.stdout, sys.stderr) == streams
    out, errors = capsys.readouterr()
    assert out == "\\x1b\n"
    assert errors.startswith(message)
    assert errors.count("\n") == bool(message)


def raised(error):
    raise error


def test_a_failed_write_is_an_error_only_if_it_is_required():
    for required in (False, True):
        with open("/dev/full", "w") as full:
            output = Output(full, required)
            output.write("a")
            with pytest.raises(OutputError, match="No space") if required else nullcontext():
                output.flush()
            output.write("b")  # goes nowhere
            output.flush()
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        output = Output(pipe, required=True)
        output.write("a")
        with pytest.raises(ReaderGoneError):
            output.flush()
