"""Everything that figures/results.md claims, made anew on the real images.

    python benchmarks/reproduce.py [STAGE ...] [--quick]

Runs the scripts as a user would, stage by stage, with their output in reproduce/, then copies
what a stage has found to figures/results/ and writes the page from that. After an
interruption the same command goes on: a script that ended is not run again by the same code,
and a training goes on from its own state. All stages together take about a day on two CPU
cores; --list tells what each one does. --quick runs the same commands, of alike ones a few, on
a handful of images, with all of their output, the page included, in reproduce-quick/: in
minutes it proves the path; its numbers mean nothing.
"""

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import publish
from common import options
from common.errors import InputError
from common.files import ROOT, atomic_write, code_digest, write_text
from common.training.recipes import ROBUST_VARIANTS

EXERCISE = (
    "original augmentation sampler weights augmentation+sampler smote final naive-100"
    " weight-decay strict-sampler weighted-sampler transforms step-lr tuned"
    " square-root-sampler progressive-sampler effective-number deferred-weights focal ldam"
    " ldam-drw balanced-softmax logit-adjusted post-hoc tau-normalisation crt borderline-smote"
    " adasyn random-over random-under mixup cutmix resnet9 resnet9-logit-adjusted best robust"
)
LONG_TAIL = "--classes all --train-counts exp:100"
# Few images of what is not in the table, which several networks have no use for.
ROBUST_ATTACKS = (
    "--test-counts full --epsilons 0 4 --ensemble-epsilons 4 --images 3 --noise-steps 5"
    " --universal-steps 2"
)
SPEED = "benchmarks/run.py"  # its results go to benchmarks/
OUTPUT = ("--output-dir", ".")
MOST_QUICK_SEEDS = 3
ATTACK_FIGURES = ("epsilon", "radius", "networks", "transfer", "fgsm", "noise", "universal")


class Stage(NamedTuple):
    """A part of the results.

    commands: (folder, command) pairs. The folder, below the output's, is where the command is
    run, and where its results go. published: (file, path) pairs: files below the output's
    folder, and where below the project's root they are copied to. quick: how many of the
    commands --quick runs, where the others are alike; None: all.
    """

    about: str
    commands: list[tuple[str, str]]
    published: list[tuple[str, str]]
    quick: int | None = None


def figures_of(folder, *names):
    """Return what is published of the figures/ of a folder, to figures/results/.

    names: of files, or (name, published name) pairs.
    """
    pairs = [(name, name) if isinstance(name, str) else name for name in names]
    return [(f"{folder}/figures/{old}", f"figures/results/{new}") for old, new in pairs]


def compared(folder, name):
    """Return what is published of the comparison that train.py makes in a folder."""
    ends = ("md", "json", "png")
    return figures_of(folder, *((f"train_comparison.{e}", f"{name}.{e}") for e in ends))


def labels_stage():
    """Return the stage of the label audit: of the labels as they are, and of planted errors."""
    trained = "train.py augmentation+sampler --test-counts full --seeds 3"
    commands = [("labels", trained), ("labels", "inspect_data.py --audit-labels")]
    published = figures_of(
        "labels",
        ("inspect_data.json", "labels.json"),
        ("inspect_data_suspects.png", "labels_suspects.png"),
        ("train_comparison.json", "labels_trained.json"),
    )
    for seed in range(3):
        noise = f"--label-noise cat:0.2 truck:0.1 --label-noise-seed {seed}"
        fixes = f"--label-fixes ../noise-{seed}/data/label_suspects.csv --accept-above 0.5"
        noisy, fixed = f"noise-{seed}", f"noise-{seed}-fixed"
        commands += [
            (noisy, f"inspect_data.py --audit-labels {noise}"),
            (noisy, f"{trained} {noise}"),
            (fixed, f"{trained} {noise} {fixes}"),
        ]
        published += figures_of(
            noisy,
            ("inspect_data.json", f"{noisy}.json"),
            ("train_comparison.json", f"{noisy}_trained.json"),
        )
        published += figures_of(fixed, ("train_comparison.json", f"{fixed}_trained.json"))
    return Stage("wrong labels: those there are, and planted ones", commands, published, 3)


def robust_stage():
    """Return the stage of adversarial training, with each loss, three seeds."""
    commands, published = [], []
    for name in ("robust", *ROBUST_VARIANTS):
        checkpoints = " ".join(f"models/{name}{seed}.pt" for seed in ("", "-seed1", "-seed2"))
        commands += [
            ("three", f"train.py {name} --seeds 3 --test-counts full"),
            ("three", f"adversarial.py {checkpoints} {ROBUST_ATTACKS}"),
        ]
        published += figures_of("three", (f"adversarial_{name}.json", f"attacked_{name}.json"))
    published += [
        (f"three/models/robust.{end}", f"models/robust.{end}") for end in ("pt", "json")
    ]
    return Stage("adversarial training, each loss against imbalance", commands, published, 2)


STAGES = {
    "data": Stage(
        "what is in the images",
        [("three", "inspect_data.py")],
        figures_of(
            "three",
            "inspect_data.json",
            "inspect_data_counts.png",
            "inspect_data_samples.png",
            "inspect_data_duplicates.png",
        ),
    ),
    "best": Stage(
        "the baseline and best",
        [
            ("three", "train.py baseline --threads 1"),
            ("three", "train.py best --seeds 5 --test-counts full"),
            ("three", "evaluate.py models/baseline.pt models/best.pt"),
        ],
        figures_of(
            "three",
            "evaluate.json",
            "evaluate_baseline.json",
            "evaluate_best.json",
            "evaluate_confusions.png",
            "evaluate_best_errors.png",
            "evaluate_best_precision_recall.png",
            ("train_comparison.json", "best.json"),
        )
        + [
            (f"three/models/{name}.{end}", f"models/{name}.{end}")
            for name in ("baseline", "best")
            for end in ("pt", "json")
        ],
    ),
    "best-long-tail": Stage(
        "best on CIFAR-10-LT, ratio 100, two seeds",
        [("long-tail", f"train.py best {LONG_TAIL} --seeds 2")],
        figures_of("long-tail", ("train_comparison.json", "best_long-tail.json")),
    ),
    "labels": labels_stage(),
    "exercise": Stage(
        "recipes of the reports and of the field, at the reports' settings",
        [
            ("three", f"train.py {EXERCISE} --seeds 5 --test-counts full"),
            ("three", f"benchmarks/small_test.py {EXERCISE} --seeds 5"),
        ],
        compared("three", "exercise") + figures_of("three", "small_test.json"),
    ),
    "race": Stage(
        "a fair comparison of the remedies, on the three classes",
        [("three", "train.py race")],
        figures_of("three", *(f"race_3-classes.{end}" for end in ("md", "json", "png"))),
    ),
    "race-long-tail": Stage(
        "the same on CIFAR-10-LT, ratio 100, two seeds",
        [("long-tail", f"train.py race {LONG_TAIL} --seeds 2")],
        figures_of("long-tail", *(f"race_10-classes.{end}" for end in ("md", "json", "png"))),
    ),
    "ablation": Stage(
        "what each part of best is worth",
        [("three", "benchmarks/ablation.py")],
        [
            (f"three/benchmarks/ablation.{end}", f"figures/results/ablation.{end}")
            for end in ("md", "json", "png")
        ],
    ),
    "rates": Stage(
        "what the learning rate does",
        [
            ("three", "lr_sweep.py"),
            ("three", "lr_sweep.py --range-test"),
        ],
        figures_of(
            "three",
            "lr_sweep_original.json",
            "lr_sweep_original_loss.png",
            "lr_sweep_original_validation.png",
            "lr_sweep_original_range_test.json",
            "lr_sweep_original_range_test.png",
        ),
    ),
    "robust": robust_stage(),
    "attacks": Stage(
        "how networks stand attacks",
        [
            ("three", "train.py original best robust --seeds 3 --test-counts full"),
            ("three", "adversarial.py models/best.pt models/robust.pt models/original.pt"),
        ],
        figures_of(
            "three",
            "adversarial_best.json",
            *(f"adversarial_best_{kind}.png" for kind in ATTACK_FIGURES),
        ),
    ),
    # Its results lie in benchmarks/, with those of other kinds of processor.
    "speed": Stage(
        "how long it takes beside the reports' loop", [("three", SPEED)], [], quick=0
    ),
}


def main(args):
    names = args.stages or list(STAGES)
    for name in names:
        if name not in STAGES:
            raise InputError(f"{name}: no stage; take {', '.join(STAGES)}")
    folder = args.output_dir or ROOT / ("reproduce-quick" if args.quick else "reproduce")
    root = folder if args.quick else ROOT  # where the pages and what they show go
    if not args.quick:
        require_photographs()
    for name in names:
        stage = STAGES[name]
        print(f"== {name}: {stage.about} ==", flush=True)
        for where, command in stage.commands[: stage.quick if args.quick else None]:
            run(command, folder / where, folder / "logs", args.quick)
        for file, path in stage.published:
            if args.quick and not (folder / file).exists():
                continue  # a handful of images has no duplicates to show, for example
            with atomic_write(root / path) as temporary:
                shutil.copyfile(folder / file, temporary)
    for path in publish.write_pages(root):
        print(f"saved {options.display_path(path)}")


def require_photographs():
    """Raise InputError if the images would be drawings."""
    from common.dataset.load import load

    if load(os.environ.get("CIFAR10_DIR") or None).source.startswith("synthetic"):
        raise InputError(
            "the photographs of CIFAR-10 can't be had; set CIFAR10_DIR to a folder with them,"
            " or take --quick"
        )


def run(command, folder, logs, quick):
    """Run a command in its folder, unless this code has run it there to its end.

    Its report is shown, and kept in `logs`. Raises InputError if it fails.
    """
    words = shlex.split(command)
    if quick:
        words = shlex.split(command.replace(LONG_TAIL, "--classes all"))
        words.append("--dry-run")
        if "--seeds" in words and int(words[words.index("--seeds") + 1]) > MOST_QUICK_SEEDS:
            words[words.index("--seeds") + 1] = "1"
    code = (ROOT / words[0]).read_text(encoding="utf-8"), code_digest()
    identity = hashlib.sha256(repr((folder.name, words, *code)).encode()).hexdigest()
    log = logs / f"{folder.name}-{Path(words[0]).stem}-{identity[:12]}.txt"
    print(f"\n{folder.name}/ $ {shlex.join(words)}", flush=True)
    if log.exists():
        print(f"(done before: {options.display_path(log)})")
        return
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if environment.get("CIFAR10_DIR"):
        environment["CIFAR10_DIR"] = os.path.abspath(environment["CIFAR10_DIR"])
    lines = []
    with subprocess.Popen(
        [sys.executable, ROOT / words[0], *words[1:], *([] if command == SPEED else OUTPUT)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8",
    ) as process:  # fmt: skip
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise InputError(
            f"{words[0]} ended with exit code {process.returncode}; mend what it says, and the"
            " same command goes on from there"
        )
    write_text(log, "".join(lines))


class StageList(argparse.Action):
    """Print the stages and their commands, and end, as --help does."""

    def __call__(self, parser, *_):
        for name, stage in STAGES.items():
            print(f"{name}: {stage.about}")
            for folder, command in stage.commands:
                line = f"  {folder}/ $ {command}"
                print(
                    textwrap.fill(line, 80, subsequent_indent="      ", break_on_hyphens=False)
                )
        parser.exit()


if __name__ == "__main__":
    parser = options.Parser(__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="(default: all, in order)")
    parser.add_argument(
        "--list", action=StageList, nargs=0, help="print the stages and end (default: off)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a dry run of every command (default: off)"
    )
    parser.add_argument(
        "--output-dir", type=options.path, metavar="DIR",
        help="where the scripts' output goes (default: reproduce/, or reproduce-quick/)",
    )  # fmt: skip
    options.run(main, parser)
