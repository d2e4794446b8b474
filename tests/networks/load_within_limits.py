"""Load files as checkpoints with limits on time and memory, and print what came of each.

    python load_within_limits.py REPOSITORY FILE ...

Prints one JSON object for each file: its name, the error's type and text, and by how many bytes
the address space has grown since before the first file. The process dies with SIGPROF where a
file takes more than 5 seconds of processor time, and with SIGALRM where it waits.
"""

import json
import signal
import sys
from pathlib import Path

SECONDS = 5
WAIT_SECONDS = 120  # far above SECONDS, because other processes may use the processor
# Above what the test allows: a file that takes too much must be seen to take it.
MAX_GROWTH = 8 * 2**30


def peak():
    """Return the largest size of the address space so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmPeak:")[2].split()[0]) * 1024


def main(repository, *names):
    sys.path.insert(0, repository)
    import resource  # Windows has none, and pytest imports this file there too

    import torch

    from common.networks.checkpoint import load_checkpoint

    torch.set_num_threads(1)
    before = peak()
    resource.setrlimit(resource.RLIMIT_AS, (before + MAX_GROWTH,) * 2)
    for name in names:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WAIT_SECONDS)
        error = None
        try:
            load_checkpoint(Path(name))
        except BaseException as raised:
            error = raised
        result = {"name": Path(name).name, "kind": type(error).__name__, "text": str(error)}
        print(json.dumps(result | {"grown": peak() - before}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
