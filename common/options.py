"""The command line: options that scripts share, and errors in one line.

The module imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from common.errors import InputError
from common.files import ROOT, output_folders
from common.terminal import printable, run_to_exit_code
from common.training.log import require_tensorboard
from common.training.recipe import FIELDS, Recipe, option_name
from common.training.recipe_record import within_limits
from common.training.recipes import select

if TYPE_CHECKING:
    import torch

    from common.dataset.split import Split

SOURCES = (
    "cifar10 (downloaded once), synthetic, or a path: a folder of your own with a folder of"
    " images for each class, split into train/ and test/ or not; a folder with"
    " cifar-10-batches-py, or with train.pickle and dev.pickle; or a cifar-10-python.tar.gz"
    " (default: $CIFAR10_DIR when set, else cifar10; synthetic when that can't be downloaded)"
)
DRY_RUN_EPOCHS = 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports errors in one line and takes no abbreviations."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        line = printable(f"{self.prog}: {message} (see {self.prog} --help)")
        self.exit(2, f"{line}\n")


def number(kind: type, **limits: float) -> Callable[[str], Any]:
    """Return an argparse type: a finite number of the kind int or float, within the limits.

    limits: least, above, most and below, as `within_limits` takes them.
    """
    titles = {"least": "of at least", "above": "above", "most": "at most", "below": "below"}
    words = " and ".join(
        f"{title} {limits[name]:.10g}" for name, title in titles.items() if name in limits
    )

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            fits = within_limits(value, **limits)
        except ValueError:
            fits = False
        if not fits:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {words}")
        return value

    return parse


MOST_SEED = 2**32 - 1  # of NumPy's older generators, which scikit-learn uses
SEED = number(int, least=0, most=MOST_SEED)
POSITIVE = number(int, least=1, most=10**6)
PROCESSES = number(int, least=1, most=1024)  # a machine starts no more, and no more threads
# A float32 ends at 3.4e38, and a step multiplies the rate with other numbers.
RATE = number(float, above=0, most=1e30)
SHARE = number(float, least=0, below=1)


def image_count(text: str) -> int | str:
    """Parse a number of images per class, or "full": all images of the source."""
    return text if text == "full" else POSITIVE(text)


def train_image_count(text: str) -> int | str:
    """Parse `image_count`, or "exp:RATIO" or "step:RATIO": an imbalance of the field."""
    kind, colon, ratio = text.partition(":")
    if not colon:
        return image_count(text)
    if kind not in ("exp", "step"):
        raise argparse.ArgumentTypeError(f"{text!r} is not exp:RATIO or step:RATIO")
    number(float, least=1, most=1e6)(ratio)
    return text


def byte_count(text: str) -> int:
    """Parse "2G" or "500M" as a number of bytes."""
    unit = {"M": 2**20, "G": 2**30}.get(text[-1:])
    if unit is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2G or 500M")
    return round(number(float, above=0, most=1e6)(text[:-1]) * unit)


def text(given: str) -> str:
    """Parse a text that is not empty: an empty one comes from a variable without a value."""
    if not given:
        raise argparse.ArgumentTypeError(
            "the value is empty; give one, or leave the option out"
        )
    return given


def path(given: str) -> Path:
    """Parse a path, in which a first ~ or ~USER stands for a home folder."""
    try:
        return Path(text(given)).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"{given!r}: there is no such user; write ./{given} for a file of that name"
        ) from None


def class_share(text: str) -> tuple[str, float]:
    """Parse "cat:0.2" as ("cat", 0.2)."""
    name, colon, value = text.rpartition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not CLASS:SHARE, such as cat:0.2")
    return name, SHARE(value)


def make_parser(description: str) -> Parser:
    """Return a parser with the options that all scripts share."""
    parser = Parser(description)
    add_images(parser)
    add_run(parser)
    return parser


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images a script works on."""
    add = parser.add_argument_group("images").add_argument
    # fmt: off
    add("--data", type=text, metavar="SOURCE", help=SOURCES)
    add("--image-size", type=number(int, least=16, most=224), metavar="N",
        help="resize the shorter side of each image to N pixels, and keep the middle, N x N"
        " (default: all must be 32 x 32)")
    add("--classes", nargs="+", type=text, metavar="NAME",
        help="classes of the source, in label order, or all (default: automobile truck cat; of"
        " a folder of your own all, the largest first)")
    add("--train-counts", nargs="+", type=train_image_count, metavar="N",
        help="train images per class, in label order; or full: all of them; or exp:RATIO or"
        " step:RATIO: from all of the first class to a RATIO-th of them, long-tailed or in one"
        " step (default: 4949 466 210 for three classes of CIFAR-10, else full)")
    add("--test-counts", nargs="+", type=image_count, metavar="N",
        help="test images per class, or full (default: 551 51 23 for three classes of"
        " CIFAR-10, else full; of train.py race full)")
    add("--test-share", type=number(float, above=0, below=1), metavar="SHARE",
        help="stratified share of the images to test on, for a folder without train/ and test/"
        " (default: 0.2)")
    add("--groups", type=path, metavar="FILE",
        help="CSV with the columns file and group: such a folder's images of one group stay on"
        " one side of its split, as near duplicates always do (default: none)")
    add("--skip-damaged", action="store_true",
        help="leave image files that can't be read out, and list them (default: off)")
    add("--memory", type=byte_count, default="2G", metavar="SIZE",
        help="images that would take more are kept in a file in data/ (default: %(default)s)")
    add("--validation", type=SHARE, default=0.0, metavar="SHARE",
        help="stratified share of the train images to hold out (default: %(default)s, with"
        " --patience 0.1)")
    add("--split-seed", type=SEED, default=0, metavar="N",
        help="seed of the draw of images (default: %(default)s)")
    add("--label-noise", nargs="+", type=class_share, default=(), metavar="CLASS:SHARE",
        help="plant wrong labels: this share of the class's train images gets another label,"
        " such as cat:0.2 (default: none)")
    add("--label-noise-seed", type=SEED, default=0, metavar="N",
        help="seed of the wrong labels (default: %(default)s)")
    add("--label-fixes", type=path, metavar="FILE",
        help="relabel or drop the train images that FILE accepts: label_suspects.csv of"
        " inspect_data.py --audit-labels, with yes or drop in its column accept (default:"
        " none)")
    add("--accept-above", type=number(float, least=0, most=1), metavar="P",
        help="accept also the suspects of --label-fixes that have no decision and at least"
        " this confidence, such as 0.9 (default: none)")
    # fmt: on


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how and where a script runs."""
    add = parser.add_argument_group("run").add_argument
    # fmt: off
    add("--seed", type=SEED, default=0, metavar="N",
        help="seed of weights, order, dropout and augmentation (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto: CUDA if there is one, else the CPU (default: %(default)s)")
    add("--threads", type=PROCESSES, metavar="N",
        help="CPU threads, which runs that train side by side share (default: PyTorch's own"
        " number, or one per core to train)")
    add("--output-dir", type=path, metavar="DIR",
        help="checkpoints go to DIR/models, figures to DIR/figures (default: the project's"
        " folder, or its dry-run/ in a dry run)")
    add("--dry-run", action="store_true",
        help="run everything on a handful of images; only --data makes it download CIFAR-10"
        " (default: off)")
    # fmt: on


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts that train, which `training_settings` reads."""
    add = parser.add_argument_group("training").add_argument
    # fmt: off
    add("--drop-leaks", action="store_true",
        help="leave out train images that are duplicates, exact or near, of a test image"
        " (default: off)")
    add("--jobs", type=PROCESSES, metavar="N",
        help="parallel runs, which share the CPU threads (default: one per core; 1 on CUDA)")
    add("--cluster", type=text, metavar="tcp://HOST:PORT",
        help="send the runs to this dask scheduler (needs pip install distributed; default:"
        " none)")
    add("--fresh", action="store_true",
        help="train finished runs again, from the start (default: off)")
    add("--tensorboard", action="store_true",
        help="write the epochs of models/NAME.csv to models/tensorboard/NAME/ as well, for"
        " TensorBoard (needs pip install tensorboard; default: off)")
    add("--deterministic", action="store_true",
        help="repeat every bit from run to run on CUDA too, which takes longer (default: off)")
    # fmt: on


def check_training(args: argparse.Namespace) -> None:
    """Raise InputError for options of `add_training` that can't be used, before any work."""
    if args.tensorboard and args.cluster:
        raise InputError("--tensorboard: runs on a --cluster write no log; leave one out")
    if args.tensorboard:
        require_tensorboard()


def seed_range(args: argparse.Namespace) -> range:
    """Return the seeds of each recipe: `--seeds` numbers from `--seed` on.

    Raises InputError if there are no such seeds.
    """
    seeds = range(args.seed, args.seed + args.seeds)
    if seeds[-1] > MOST_SEED:
        raise InputError(
            f"--seed {args.seed}: {args.seeds} seeds go beyond {MOST_SEED}; start lower"
        )
    return seeds


def add_recipe(
    parser: argparse.ArgumentParser, without: str | None = None, epochs: int | None = None
) -> None:
    """Add an option for each field of Recipe, except for the field `without`.

    epochs: of every recipe, instead of its own.
    """
    group = parser.add_argument_group("recipe (default of each: the recipe's own value)")
    parser.set_defaults(**dict.fromkeys(FIELDS) | {"epochs": epochs})
    for name, each in FIELDS.items():
        if name == without:
            continue
        limits = dict(each.metadata)
        default = each.default
        if isinstance(default, tuple):
            default = " ".join(default) or "none"
        whose = "original"
        if name == "epochs" and epochs is not None:
            whose, default = "default", epochs
        given: dict[str, Any] = {"help": f"{limits.pop('help')} ({whose}: {default})"}
        choices, metavar = limits.pop("choices"), limits.pop("metavar", None)
        if "nargs" in limits:
            given["nargs"] = limits.pop("nargs")
        if each.type == "bool":
            given["action"] = argparse.BooleanOptionalAction
        elif choices:
            given["choices"] = choices
        elif metavar:
            given |= {"type": text, "metavar": metavar}
        else:
            given |= {"type": number(int if "int" in each.type else float, **limits)}
            given["metavar"] = "N"
        group.add_argument(f"--{option_name(name)}", **given)


def add_attacks(parser: argparse.ArgumentParser) -> None:
    """Add the options of adversarial.py."""
    bound, l2_bound = number(float, least=0, most=255), number(float, least=0, most=1000)

    def count_or_all(given: str) -> int | str:
        return given if given == "all" else POSITIVE(given)

    # fmt: off
    add = parser.add_argument_group("attacks on every network").add_argument
    add("--per-class", type=count_or_all, metavar="N", default=150,
        help="attack at most N test images of each class, a random sample, or all (default:"
        " %(default)s)")
    add("--epsilons", nargs="+", type=bound, metavar="E", default=[0, 1, 2, 4, 8, 16, 32],
        help="epsilons of the L-infinity attacks, in 1/255 (default: 0 1 2 4 8 16 32)")
    add("--l2-epsilons", nargs="+", type=l2_bound, metavar="E", default=[0.125, 0.25, 0.5, 1],
        help="epsilons of PGD in L2, in pixel values (default: 0.125 0.25 0.5 1)")
    add("--steps", type=POSITIVE, metavar="N", default=10,
        help="steps of PGD, of size 2.5 epsilon / N (default: %(default)s)")
    add("--restarts", type=POSITIVE, metavar="N", default=1,
        help="random starts of PGD (default: %(default)s)")
    add("--ensemble-epsilons", nargs="+", type=bound, metavar="E", default=[4, 8],
        help="epsilons of the ensemble of attacks, in 1/255; the largest also of the images"
        " of MI-FGSM that are tried on other networks (default: 4 8)")
    add("--ensemble-l2-epsilons", nargs="+", type=l2_bound, metavar="E", default=[],
        help="epsilons of the ensemble in L2, in pixel values (default: none)")
    add("--ensemble-steps", type=POSITIVE, metavar="N", default=100,
        help="steps of each APGD of the ensemble, and of the search for the smallest noise, 40"
        " at most there (default: %(default)s)")
    add("--queries", type=POSITIVE, metavar="N", default=1000,
        help="evaluations of the network, for each image, in the ensemble's Square attack"
        " (default: %(default)s)")
    add("--save-images", type=path, metavar="DIR",
        help="save the ensemble's images as PNG files, with a table in images.csv (default:"
        " do not)")
    add = parser.add_argument_group("attacks on the first network").add_argument
    add("--images", metavar="N", default=20, type=count_or_all,
        help="number of images with optimised noise, or all (default: %(default)s)")
    add("--norm", choices=("l1", "l2"), default="l1",
        help="norm of the optimised noise (default: %(default)s)")
    add("--c", type=RATE, metavar="C",
        help="weight of that norm in the loss (default: by bisection for each image)")
    add("--target", type=text, metavar="CLASS",
        help="target of all optimised noise (default: each image's next class)")
    add("--pairs", nargs="+", type=text, metavar="TRUE:TARGET",
        help="pairs in the figure of optimised noise (default: the first class to others)")
    add("--noise-steps", type=POSITIVE, metavar="N", default=50,
        help="steps of each of six bisections; with --c twice as many (default: %(default)s)")
    add("--epsilon", type=bound, metavar="E", default=16,
        help="bound of the universal noise, in 1/255 (default: %(default)s)")
    add("--universal-steps", type=POSITIVE, metavar="N", default=60,
        help="steps that learn the universal noise, of 100 images each (default: %(default)s)")
    # fmt: on


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the option of scripts that read checkpoints, as `load_checkpoints` takes it."""
    parser.add_argument(
        "--network",
        type=text,
        metavar="MODULE:FUNCTION",
        help="import this to build the networks of checkpoints that name it: a function of your"
        " own, code that a checkpoint does not hold (default: none)",
    )


def chosen_recipes(names: list[str], args: argparse.Namespace) -> dict[str, Recipe]:
    """Return the recipes of these names with the options that were given.

    A dry run has at most two epochs. Raises InputError for an unknown name and for options
    that contradict each other.
    """
    return select(names, given_fields(args), DRY_RUN_EPOCHS if args.dry_run else None)


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of Recipe that were given as options, with their values."""
    given = {name: getattr(args, name) for name in FIELDS}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }


def typed_options(
    args: argparse.Namespace,
    add_options: Callable[[argparse.ArgumentParser], None],
    words: Sequence[str] | None = None,
) -> list[str]:
    """Return the options of `add_images`, `add_run` or the like as they were typed.

    Those that have their default values are left out. words: the command line's.
    """
    words = sys.argv[1:] if words is None else words
    parser = Parser("")
    add_options(parser)
    typed = []
    for name, default in vars(parser.parse_args([])).items():
        option = f"--{option_name(name)}"
        at = [i for i, word in enumerate(words) if word.partition("=")[0] == option]
        if at and getattr(args, name) != default:
            values = itertools.takewhile(lambda word: word[:2] != "--", words[at[-1] + 1 :])
            typed += [words[at[-1]], *values]
    return typed


def require_absent(args: argparse.Namespace, names: Sequence[str], because: str) -> None:
    """Raise InputError if one of these options was given; because: what makes it useless."""
    for name in names:
        if getattr(args, name):
            raise InputError(f"{because}, --{option_name(name)} does nothing; leave it out")


def require_distinct(args: argparse.Namespace, *names: str) -> None:
    """Raise InputError if an option, one of these names in `args`, has a number twice."""
    for name in names:
        for number, next_number in itertools.pairwise(sorted(getattr(args, name))):
            if number == next_number:
                option = f"--{option_name(name)}"
                raise InputError(f"{option}: {number:g} is given twice; leave one out")


def output_dir(args: argparse.Namespace) -> Path:
    """Return the folder for results; that of a dry run keeps it from replacing real ones."""
    if args.output_dir is not None:
        return args.output_dir
    return ROOT / "dry-run" if args.dry_run else ROOT


def torch_device(args: argparse.Namespace) -> torch.device:
    """Return the device of `--device`, and apply `--threads`.

    Raises InputError if this machine has no such device.
    """
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    # auto never takes MPS: its results differ from run to run.
    name = ("cuda" if available["cuda"] else "cpu") if args.device == "auto" else args.device
    if not available[name]:
        raise InputError(f"--device {name}: PyTorch finds none here; take --device auto or cpu")
    return torch.device(name)


def training_settings(
    args: argparse.Namespace, device: torch.device, trainings: int
) -> dict[str, Any]:
    """Return the arguments of `runs.train_all` beside the runs, the images and the folder.

    trainings: as many as there are, at most, go at a time. The number of jobs and their threads
    follow from the command alone, not from the runs that are still missing: another number of
    threads can change the last bits of a result.
    """
    return {
        "device": str(device),
        **share_cores(args, device, trainings, args.jobs),
        "cluster": args.cluster,
        "fresh": args.fresh,
        "deterministic": args.deterministic,
        "tensorboard": args.tensorboard,
    }


def share_cores(
    args: argparse.Namespace, device: torch.device, runs: int, jobs: int | None = None
) -> dict[str, int]:
    """Return how many runs go at a time ("jobs"), and the CPU "threads" of each."""
    from joblib import cpu_count

    cores = args.threads or cpu_count()
    jobs = min(jobs or (cores if device.type == "cpu" else 1), runs)
    return {"jobs": jobs, "threads": max(1, cores // jobs)}


def load_split(args: argparse.Namespace) -> Split:
    """Return the images that the options describe."""
    from common.dataset.load import load

    folder = os.environ.get("CIFAR10_DIR") or None
    try:
        return load(
            args.data or folder,
            classes=args.classes,
            image_size=args.image_size,
            train_counts=args.train_counts,
            test_counts=args.test_counts,
            test_share=args.test_share,
            groups=args.groups,
            skip_damaged=args.skip_damaged,
            memory=args.memory,
            validation=args.validation,
            seed=args.split_seed,
            label_noise=args.label_noise,
            label_noise_seed=args.label_noise_seed,
            label_fixes=args.label_fixes,
            accept_above=args.accept_above,
            drop_leaks=getattr(args, "drop_leaks", False),  # only scripts that train have it
            dry_run=args.dry_run,
        )
    except InputError as error:
        if args.data is None and folder:
            raise InputError(f"{error} (from $CIFAR10_DIR)") from None
        raise


def display_path(path: Path) -> str:
    """Return a path for people: relative to the current folder if it lies below it."""
    path, here = path.resolve(), Path.cwd()
    return printable(str(path.relative_to(here) if path.is_relative_to(here) else path))


def print_saved(*paths: Path) -> None:
    """Print one line for each file that was written."""
    print()
    for path in paths:
        print(f"saved {display_path(path)}")


def run(
    main: Callable[[argparse.Namespace], None], parser: Parser, folders: Sequence[str] = ()
) -> None:
    """Parse the command line and call `main`; see `run_to_exit_code` for how it ends.

    folders: of `--output-dir`, to which `main` writes; tried before it is called. If "figures"
    is one of them, the results page is made anew after `main`.
    """

    def work() -> None:
        args = parser.parse_args()
        from tqdm import tqdm

        # tqdm's own lock is a semaphore of `multiprocessing`. Since Python 3.14 that starts a
        # process which the end of a terminal would kill, with a warning.
        tqdm.set_lock(threading.RLock())
        with output_folders([output_dir(args) / folder for folder in folders]):
            main(args)
            if "figures" in folders:
                from common.reporting.results_page import write_results_page

                page = write_results_page(output_dir(args) / "figures")
                print(f"Page: {display_path(page)}")

    if code := run_to_exit_code(parser.prog, work):
        sys.exit(code)
