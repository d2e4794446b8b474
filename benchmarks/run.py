"""How long this project takes beside the reports' plain loop, measured in one process.

    python benchmarks/run.py [SECTION ...] [--quick]

Sections (default: all): step, resnet, runs, sweep, images, recipes, profile, absolute, which
benchmarks/README.md explains. Writes results.json, with every time in seconds, and results.md.
Images: $CIFAR10_DIR when set, else synthetic.
"""

import argparse
import os
import platform
import re
import sys
import time
import warnings
from pathlib import Path
from textwrap import fill

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import options

LEGEND = (
    "time: the median, with the first row's as 1. spread: the least and the greatest. in turn:"
    " the same of what a row took over what the first row took beside it, in one repeat."
)


def main(args):
    os.environ["TQDM_DISABLE"] = "1"  # so that a terminal measures what a log does
    os.environ["KINETO_LOG_LEVEL"] = "6"  # keeps the profiler from printing
    # On one core two workers are too many, which is what is measured.
    warnings.filterwarnings("ignore", "This DataLoader will create 2 worker processes")
    from benchmarks import sections
    from common import results

    for name in args.sections:
        if name not in sections.SECTIONS:
            raise options.InputError(f"{name}: no section; take {', '.join(sections.SECTIONS)}")
    # Neither a part nor a quick pass replaces the measured whole.
    usual = options.ROOT / ("dry-run" if args.quick or args.sections else "benchmarks")
    folder = args.output_dir or usual
    here, start = machine(), time.perf_counter()
    setting = sections.setting(args.quick)
    facts = f"Images: {setting.split.source}. Machine: {'; '.join(here)}."
    text = f"# Benchmarks\n\n{fill(facts, 80)}\n\n{fill(LEGEND, 80)}\n"
    print(text, flush=True)
    tables = {}
    for name in args.sections or sections.SECTIONS:
        tables[name] = []
        for table in sections.SECTIONS[name](setting):
            tables[name].append(table)
            shown = f"## {table['title']}\n\n{markdown(table['rows'])}\n"
            print(shown, flush=True)
            text += f"\n{shown}"
    with results.replacing(folder / "results.md") as unfinished:
        unfinished.write_text(text)
    results.save_result(
        folder / "results.json",
        setting.split,
        seed=0,
        device="cpu, and cuda where there is any",
        seconds=time.perf_counter() - start,
        machine=here,
        repeats=setting.repeats,
        sections=tables,
    )
    options.print_saved(folder / "results.md", folder / "results.json")


def machine():
    """What the times depend on, in words."""
    import torch

    try:
        processor = re.search("model name\t: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        processor = platform.processor() or platform.machine()
    words = [
        processor,
        f"{os.cpu_count()} cores",
        f"load {os.getloadavg()[0]:.1f} at the start",
        platform.system(),
        f"Python {platform.python_version()}",
        f"PyTorch {torch.__version__}",
    ]
    if torch.cuda.is_available():
        words += [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"]
    return words


def markdown(rows):
    """Rows, each from column to text, as a table whose columns line up."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


if __name__ == "__main__":
    parser = options.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="what to measure")
    parser.add_argument("--quick", action="store_true", help="once, on a handful of images")
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="where results go (default: benchmarks/; of some sections or --quick, dry-run/)",
    )
    options.run(main, parser)
