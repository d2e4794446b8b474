"""The command line that every script shares: options, device, seed and one-line errors.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

    from common.dataset import Split

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CLASSES = ("automobile", "truck", "cat")


class InputError(Exception):
    """What the user gave can't be used: one line that names the thing and the remedy."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as every other error of the scripts."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def count(text: str) -> int | str:
    """A number of images per class, or "full": all that the source has."""
    if text == "full":
        return text
    return whole_number(text, least=1)


def whole_number(text: str, least: int = 0) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def positive(text: str) -> int:
    return whole_number(text, least=1)


def number(text: str, words: str, accept: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not accept(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
    return value


def share(text: str) -> float:
    return number(text, "a share from 0 up to, but not, 1", lambda value: 0 <= value < 1)


def probability(text: str) -> float:
    return number(text, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def class_share(text: str) -> tuple[str, float]:
    """cat:0.2 -> ("cat", 0.2)."""
    name, colon, value = text.rpartition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not CLASS:SHARE, such as cat:0.2")
    return name, share(value)


def rate(text: str) -> float:
    return number(text, "a number above 0", lambda value: 0 < value < math.inf)


def parser(description: str) -> Parser:
    """A parser with the options that all scripts share; a script adds its own."""
    result = Parser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = result.add_argument_group("images")
    group.add_argument(
        "--data",
        metavar="SOURCE",
        help="cifar10 (downloaded once), synthetic, or a path: a folder with"
        " cifar-10-batches-py, train/CLASS/*.png|jpg, or train.pickle and dev.pickle; or a"
        " cifar-10-python.tar.gz (default: $CIFAR10_DIR when set, else cifar10; synthetic"
        " when that can't be downloaded)",
    )
    group.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        default=list(DEFAULT_CLASSES),
        help="the source's classes, in label order (default: automobile truck cat)",
    )
    for part, usual in (("train", "4949 466 210"), ("test", "551 51 23")):
        group.add_argument(
            f"--{part}-counts",
            nargs="+",
            type=count,
            metavar="N",
            help=f"{part} images per class, in label order, or full: all of them (default:"
            f" {usual}; full for the course's pickles)",
        )
    group.add_argument(
        "--validation",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="stratified share of the train images to hold out (default: %(default)s)",
    )
    group.add_argument(
        "--split-seed",
        type=whole_number,
        default=0,
        metavar="N",
        help="which images are drawn (default: %(default)s)",
    )
    group.add_argument(
        "--label-noise",
        nargs="+",
        type=class_share,
        default=(),
        metavar="CLASS:SHARE",
        help="plant wrong labels: this share of the class's train images gets another label,"
        " such as cat:0.2 (default: none)",
    )
    group.add_argument(
        "--label-noise-seed",
        type=whole_number,
        default=0,
        metavar="N",
        help="which labels are wrong (default: %(default)s)",
    )
    group.add_argument(
        "--label-fixes",
        type=Path,
        metavar="FILE",
        help="relabel or drop the train images that FILE accepts: label_suspects.csv of"
        " inspect_data.py --audit-labels, with yes or drop in its column accept",
    )
    group.add_argument(
        "--accept-above",
        type=probability,
        metavar="P",
        help="accept also the suspects of --label-fixes that have no decision and at least"
        " this confidence, such as 0.9",
    )
    group = result.add_argument_group("run")
    group.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        metavar="N",
        help="weights, order and augmentation (default: %(default)s)",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="auto: CUDA where there is one, else the CPU (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="CPU threads (default: as many as PyTorch takes)",
    )
    group.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="checkpoints go to DIR/models, figures to DIR/figures (default: the project's"
        " folder, or its dry-run/ in a dry run)",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="the whole path on a handful of images; downloads nothing by itself",
    )
    return result


def output_dir(args: argparse.Namespace) -> Path:
    """Where results go. A dry run's own folder keeps it from replacing real results."""
    if args.output_dir is not None:
        return args.output_dir
    return ROOT / "dry-run" if args.dry_run else ROOT


def device(args: argparse.Namespace) -> torch.device:
    """The device that `--device` asks for, with `--threads` applied.

    Raises InputError where this machine has no such device.
    """
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    # auto leaves MPS out: its results are not the same from run to run.
    name = ("cuda" if available["cuda"] else "cpu") if args.device == "auto" else args.device
    if not available[name]:
        raise InputError(f"--device {name}: PyTorch finds none here; take --device auto or cpu")
    return torch.device(name)


def add_training(parser: argparse.ArgumentParser) -> None:
    """The options of scripts that train: `how_to_train` reads them."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--drop-leaks",
        action="store_true",
        help="leave out train images that are duplicates, exact or near, of a test image",
    )
    group.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="runs at a time, which share the CPU threads (default: as many as there are cores;"
        " 1 on CUDA)",
    )
    group.add_argument(
        "--cluster",
        metavar="tcp://HOST:PORT",
        help="send the runs to this dask scheduler (needs pip install distributed)",
    )
    group.add_argument(
        "--fresh", action="store_true", help="train also what ended before, from the start"
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits from run to run on CUDA too, where it costs time",
    )


def how_to_train(args: argparse.Namespace, device: torch.device, runs: int) -> dict[str, Any]:
    """What `experiment.train_all` is told beside the runs, the images and the folder.

    How many runs go at a time, and how many CPU threads each has, follows from the command
    alone, not from what is still to do: another number of threads can change the last bits of
    a result.
    """
    return {
        "device": str(device),
        **share_cores(args, device, runs, args.jobs),
        "cluster": args.cluster,
        "fresh": args.fresh,
        "deterministic": args.deterministic,
    }


def share_cores(
    args: argparse.Namespace, device: torch.device, runs: int, jobs: int | None = None
) -> dict[str, int]:
    """How many of the runs go at a time ("jobs"), and the CPU "threads" of each."""
    from joblib import cpu_count

    cores = args.threads or cpu_count()
    jobs = min(jobs or (cores if device.type == "cpu" else 1), runs)
    return {"jobs": jobs, "threads": max(1, cores // jobs)}


def split(args: argparse.Namespace) -> Split:
    """The images that the options describe."""
    from common import dataset

    folder = os.environ.get("CIFAR10_DIR") or None
    try:
        return dataset.load(
            args.data or folder,
            classes=args.classes,
            train_counts=args.train_counts,
            test_counts=args.test_counts,
            validation=args.validation,
            seed=args.split_seed,
            label_noise=args.label_noise,
            label_noise_seed=args.label_noise_seed,
            label_fixes=args.label_fixes,
            accept_above=args.accept_above,
            drop_leaks=getattr(args, "drop_leaks", False),  # of the scripts that train
            dry_run=args.dry_run,
        )
    except InputError as error:
        if args.data is None and folder:
            raise InputError(f"{error} (from $CIFAR10_DIR)") from None
        raise


def shown(path: Path) -> str:
    """A path for people: from the current folder where it lies below it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def print_saved(*paths: Path) -> None:
    """One line for each file that was written."""
    print()
    for path in paths:
        print(f"saved {shown(path)}")


def progress(items: Iterable, text: str, total: int | None = None) -> Iterable:
    """`items` under a bar that goes when they end, and that only a terminal sees."""
    from tqdm import tqdm

    return tqdm(items, text, total, leave=False, disable=None)


def run(main: Callable[[argparse.Namespace], None], parser: Parser) -> None:
    """Parse the command line, call `main`; an InputError ends as one line and exit code 2."""
    args = parser.parse_args()
    try:
        main(args)
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: stopped; what was finished is saved", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
