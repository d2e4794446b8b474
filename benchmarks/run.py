"""How fast this project is beside the reports' plain loop, measured in one process.

    python benchmarks/run.py [SECTION ...] [--quick]

benchmarks/README.md explains the sections (default: all). Writes results.json, with every time
in seconds, and results.md; both keep the results of each kind of processor. Images:
$CIFAR10_DIR when set, else synthetic.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path
from textwrap import fill

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import options
from common.errors import InputError
from common.files import ROOT, processor, versions, write_text
from common.reporting.tables import markdown_table

LEGEND = (
    "time: the median, in units of the first row's. spread: the least and the greatest. in"
    " turn: the least and greatest ratio to the first row within one repeat."
)


def main(args):
    os.environ["TQDM_DISABLE"] = "1"  # so that a terminal measures the same as a log
    os.environ["KINETO_LOG_LEVEL"] = "6"  # keeps the profiler from printing
    # On one core two workers are too many: that is what the section measures.
    warnings.filterwarnings("ignore", "This DataLoader will create 2 worker processes")
    from benchmarks import sections

    for name in args.sections:
        if name not in sections.SECTIONS:
            raise InputError(f"{name}: no section; take {', '.join(sections.SECTIONS)}")
    # Neither a selection of sections nor a quick pass replaces the measured whole.
    whole = not args.quick and not args.sections
    folder = args.output_dir or ROOT / ("benchmarks" if whole else "dry-run")
    start = time.perf_counter()
    setting = sections.make_setting(args.quick)
    result = {
        "machine": machine(),
        "data": setting.split.record(),
        "versions": versions(),
        "repeats": setting.repeats,
        "sections": {},
    }
    print(heading(result), flush=True)
    for name in args.sections or sections.SECTIONS:
        table = result["sections"][name] = sections.SECTIONS[name](setting)
        print(f"\n{table_text(table)}", flush=True)
    result["seconds"] = round(time.perf_counter() - start)
    path = folder / "results.json"
    by_processor = json.loads(path.read_text()) if path.exists() else {}
    by_processor[result["machine"][0]] = result
    write_text(path, json.dumps(by_processor, indent=1) + "\n")
    parts = [f"# Benchmarks\n\n{fill(LEGEND, 80)}"]
    for each in by_processor.values():
        parts.append(f"# {each['machine'][0]}\n\n{heading(each)}")
        parts += [table_text(table) for table in each["sections"].values()]
    write_text(path.with_suffix(".md"), "\n\n".join(parts) + "\n")
    options.print_saved(path.with_suffix(".md"), path)


def heading(result):
    """Return what was measured, where and when."""
    facts = f"Images: {result['data']['source']}. Machine: {'; '.join(result['machine'])}."
    return fill(facts, 80)


def table_text(table):
    """Return a table of `sections` with its title, in Markdown."""
    headers = list(table["rows"][0])
    rows = [[row[name] for name in headers] for row in table["rows"]]
    return f"## {table['title']}\n\n{markdown_table(headers, rows)}"


def machine():
    """Return in words what the times depend on."""
    import platform

    import torch

    return [
        processor(),
        f"{os.cpu_count()} cores",
        f"load {os.getloadavg()[0]:.1f} at the start",
        platform.system(),
        f"Python {platform.python_version()}",
        f"PyTorch {torch.__version__}",
        time.strftime("%d %B %Y"),
    ]


if __name__ == "__main__":
    parser = options.Parser(__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="(default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="once, on a handful of images (default: off)"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="where results go (default: benchmarks/; dry-run/ with sections or --quick)",
    )
    options.run(main, parser)
