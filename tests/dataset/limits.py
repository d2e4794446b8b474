"""The limits within which a hostile or damaged file must be refused, and byte flips."""

import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError

SECONDS = 5
MEMORY = 1 << 30  # bytes beyond what the process has


class OverLimitError(BaseException):
    """The time is up. No Exception, which the code under test might take for damage."""


@contextmanager
def limited() -> Iterator[None]:
    """Let the block take at most SECONDS and MEMORY: beyond, it ends in an error.

    The seconds are the processor's, so that other work of the machine does not count. A block
    that waits ends after a minute.
    """

    def stop(*_: object) -> None:
        raise OverLimitError(f"not finished within {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {
        number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)
    }
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def one_line_if_refused() -> Iterator[None]:
    """Let the block end in an InputError of one line, or in none."""
    try:
        yield
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


def flips(content: bytes, count: int) -> Iterator[bytes]:
    """Yield `count` copies of content, each with another random byte changed."""
    for seed in range(count):
        rng = random.Random(seed)
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
        yield bytes(damaged)
