"""Everything that README.md and figures/results.md claim, made anew on the real images.

    python benchmarks/reproduce.py [STAGE ...] [--quick]

Runs the scripts as a user would, stage by stage, with their output in reproduce/, copies what
each has found to figures/results/, and writes both pages from that. After an interruption the
same command goes on: a script that ended is not run again with the same code, images and
libraries, and a training goes on from its own state. All stages together take one to two days
on two CPU cores; --list tells what each one does. Without AutoAttack's own code (pip install
git+https://github.com/fra31/auto-attack) they are all but auto-attack. --quick runs the same
commands, of alike ones a few, on a handful of images, with all of their output, the pages
included, in reproduce-quick/: in minutes it proves the path; its numbers mean nothing.
"""

import argparse
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import publish
from common import options
from common.errors import InputError
from common.files import ROOT, atomic_write, code_digest, versions, write_text
from common.training.recipes import FIELD, REPORT_A, REPORT_B, ROBUST_VARIANTS

REPORTS = " ".join([*REPORT_A, *REPORT_B])
REMEDIES = " ".join(["original", *FIELD])
LONG_TAIL = "--classes all --train-counts exp:100"
# The page shows PGD and the ensemble; of the other attacks adversarial.py makes little here.
ROBUST_ATTACKS = (
    "--test-counts full --epsilons 0 4 --ensemble-epsilons 4 --images 3 --noise-steps 5"
    " --universal-steps 2"
)
SHORTER_ATTACKS = "--ensemble-steps 50 --queries 200"
SPEED = "benchmarks/run.py"  # its results go to benchmarks/, beside those of other processors
# What takes the place of options in --quick, which would need minutes with them.
QUICK = {
    LONG_TAIL: "--classes all",
    ROBUST_ATTACKS: "",
    "--seeds 5": "--seeds 1",
    "benchmarks/ablation.py": "benchmarks/ablation.py --seeds 1",
    "--only pgd ensemble": "--only ensemble --images 7",
}
ATTACK_FIGURES = ("epsilon", "radius", "networks", "transfer", "fgsm", "noise", "universal")


class Command(NamedTuple):
    """A command of a stage.

    folder: below the output's; the line is run there, and its results go there. published:
    (file, path) pairs: files in the folder, and where below the project's root they are copied
    to as soon as the command ends, before another one can write files of the same names.
    """

    folder: str
    line: str
    published: Sequence[tuple[str, str]] = ()


class Stage(NamedTuple):
    """A part of the results.

    quick: how many of the commands --quick runs, where the others, or those of another stage,
    are alike; None: all.
    """

    about: str
    commands: Sequence[Command]
    quick: int | None = None


def figures(*names):
    """Return what is published of a folder's figures/, to figures/results/.

    names: of files, or (name, published name) pairs.
    """
    pairs = [(name, name) if isinstance(name, str) else name for name in names]
    return [(f"figures/{old}", f"figures/results/{new}") for old, new in pairs]


def table(name, published=None):
    """Return what is published of a table that is saved as NAME.md, .json and .png."""
    return figures(
        *((f"{name}.{e}", f"{published or name}.{e}") for e in ("md", "json", "png"))
    )


def network(name):
    """Return what is published of a network: the checkpoint and its result file."""
    return [(path, path) for path in (f"models/{name}.pt", f"models/{name}.json")]


# Of several stages: what one of them has trained, by the same command, no other trains again.
BEST = Command(
    "three",
    "train.py best --seeds 5 --test-counts full",
    [*network("best"), *figures(("train_comparison.json", "best.json"))],
)
ROBUST = Command("three", "train.py robust --seeds 3 --test-counts full", network("robust"))


def labels_stage():
    """Return the stage of the label audit: of the labels as they are, and of planted errors."""
    audit = "inspect_data.py --audit-labels"
    trained = "train.py augmentation+sampler --test-counts full --seeds 3"

    def compared(name):
        return figures(("train_comparison.json", f"{name}_trained.json"))

    pictures = [
        (f"inspect_data_{name}.png", f"labels_{name}.png") for name in ("suspects", "joint")
    ]
    commands = [
        Command("labels", trained, compared("labels")),
        Command("labels", audit, figures(("inspect_data.json", "labels.json"), *pictures)),
    ]
    for seed in range(3):
        noise = f"--label-noise cat:0.2 truck:0.1 --label-noise-seed {seed}"
        fixes = f"--label-fixes ../noise-{seed}/data/label_suspects.csv --accept-above 0.5"
        noisy, fixed = f"noise-{seed}", f"noise-{seed}-fixed"
        commands += [
            Command(noisy, f"{audit} {noise}", figures(("inspect_data.json", f"{noisy}.json"))),
            Command(noisy, f"{trained} {noise}", compared(noisy)),
            Command(fixed, f"{trained} {noise} {fixes}", compared(fixed)),
        ]
    return Stage("wrong labels: those there are, and planted ones", commands, quick=3)


def robust_stage():
    """Return the stage of adversarial training, three seeds: `robust`, then with each loss.

    The losses are compared on a third of the test images, with shorter attacks.
    """

    def attack(name, rest, published):
        checkpoints = " ".join(f"models/{name}{seed}.pt" for seed in ("", "-seed1", "-seed2"))
        line = f"adversarial.py {checkpoints} {ROBUST_ATTACKS} {rest}"
        return Command("three", line, figures((f"adversarial_{name}.json", published)))

    commands = [ROBUST, attack("robust", "--per-class all", "attacked_robust.json")]
    commands += [
        Command("three", ROBUST.line.replace("robust", name)) for name in ROBUST_VARIANTS
    ]
    commands += [
        attack(name, f"--per-class 200 {SHORTER_ATTACKS}", f"losses_{name}.json")
        for name in ("robust", *ROBUST_VARIANTS)
    ]
    return Stage("adversarial training, each loss against imbalance", commands, quick=2)


def peers_commands(prefix, with_three_classes, with_more):
    """Return the commands of other libraries' attacks, on networks of 3, 4 and 10 classes.

    AutoAttack's standard version needs four. prefix: of what is published; the others: which
    comparisons of benchmarks/attacks.py.
    """

    def attacks(folder, name, rest, published):
        line = f"benchmarks/attacks.py models/{name}.pt {rest} --threads 1"
        result = "attack_peers.json", f"{prefix}_{published}.json"
        return Command(folder, line, figures(result))

    commands = [BEST, ROBUST]
    commands += [
        attacks("three", name, f"--only {with_three_classes}", name)
        for name in ("best", "robust")
    ]
    for folder, classes in (("four", "automobile truck cat dog"), ("ten", "all")):
        images = f"--classes {classes} --train-counts exp:10"
        commands += [
            Command(folder, f"train.py original {images}"),
            attacks(folder, "original", f"{images} --only {with_more}", folder),
        ]
    return commands


STAGES = {
    "data": Stage(
        "what is in the images",
        [
            Command(
                "three",
                "inspect_data.py",
                figures(
                    "inspect_data.json",
                    "inspect_data_counts.png",
                    "inspect_data_samples.png",
                    "inspect_data_duplicates.png",
                ),
            )
        ],
    ),
    "best": Stage(
        "the baseline and best",
        [
            Command("three", "train.py baseline --threads 1", network("baseline")),
            BEST,
            Command(
                "three",
                "benchmarks/small_test.py best --seeds 5",
                figures(("small_test.json", "best_small.json")),
            ),
            Command(
                "three",
                "evaluate.py models/baseline.pt models/best.pt",
                figures(
                    "evaluate_baseline.json",
                    "evaluate_best.json",
                    "evaluate_confusions.png",
                    "evaluate_best_errors.png",
                    "evaluate_best_precision_recall.png",
                ),
            ),
        ],
    ),
    "best-long-tail": Stage(
        "best on CIFAR-10-LT, ratio 100, two seeds",
        [
            Command(
                "long-tail",
                f"train.py best {LONG_TAIL} --seeds 2",
                figures(("train_comparison.json", "best_long-tail.json")),
            )
        ],
    ),
    "labels": labels_stage(),
    "reports": Stage(
        "the recipes of both reports",
        [
            Command(
                "three",
                f"train.py {REPORTS} --seeds 5 --test-counts full",
                table("train_comparison", "reports"),
            ),
            Command(
                "three",
                f"benchmarks/small_test.py {REPORTS} --seeds 5",
                figures(("small_test.json", "reports_small.json")),
            ),
        ],
    ),
    "field": Stage(
        "the remedies of the field, at the reports' settings",
        [
            Command(
                "three",
                f"train.py {REMEDIES} --seeds 5 --test-counts full",
                table("train_comparison", "field"),
            )
        ],
    ),
    "race": Stage(
        "a fair comparison of the remedies, on the three classes",
        [Command("three", "train.py race --seeds 5", table("race_3-classes"))],
    ),
    "race-long-tail": Stage(
        "the same on CIFAR-10-LT, ratio 100, two seeds",
        [
            Command(
                "long-tail",
                f"train.py race {LONG_TAIL} --seeds 2",
                table("race_10-classes"),
            )
        ],
        quick=0,
    ),
    "ablation": Stage(
        "what each part of best is worth",
        [
            Command(
                "three",
                "benchmarks/ablation.py",
                [
                    (f"benchmarks/ablation.{end}", f"figures/results/ablation.{end}")
                    for end in ("md", "json", "png")
                ],
            )
        ],
    ),
    "rates": Stage(
        "what the learning rate does",
        [
            Command(
                "three",
                "lr_sweep.py",
                figures(
                    "lr_sweep_original.json",
                    "lr_sweep_original_loss.png",
                    "lr_sweep_original_validation.png",
                ),
            ),
            Command(
                "three",
                "lr_sweep.py --range-test",
                figures("lr_sweep_original_range_test.png"),
            ),
        ],
    ),
    "robust": robust_stage(),
    "attacks": Stage(
        "how networks stand attacks",
        [
            BEST,
            ROBUST,
            Command("three", "train.py original --test-counts full"),
            Command(
                "three",
                "adversarial.py models/best.pt models/robust.pt models/original.pt"
                " --per-class all --images 30",
                figures(
                    "adversarial_best.json",
                    *(f"adversarial_best_{kind}.png" for kind in ATTACK_FIGURES),
                ),
            ),
        ],
    ),
    "peers": Stage(
        "the attacks beside those of torchattacks and foolbox",
        peers_commands("peers", "pgd ensemble", "ensemble"),
        quick=3,
    ),
    "speed": Stage(
        "how long it takes beside the reports' loop", [Command("speed", SPEED)], quick=0
    ),
    "auto-attack": Stage(
        "the ensemble beside AutoAttack's own code",
        peers_commands("auto-attack", "auto-attack", "auto-attack"),
        quick=0,
    ),
}


def main(args):
    names = args.stages or all_stages()
    for name in names:
        if name not in STAGES:
            raise InputError(f"{name}: no stage; take {', '.join(STAGES)}")
    output = args.output_dir or ROOT / ("reproduce-quick" if args.quick else "reproduce")
    root = output if args.quick else ROOT  # where the pages and what they show go
    images = "" if args.quick else fingerprint_of_photographs()
    for name in names:
        stage = STAGES[name]
        print(f"== {name}: {stage.about} ==", flush=True)
        for command in stage.commands[: stage.quick if args.quick else None]:
            run(command, output, root, images, args.quick)
        for path in publish.write_pages(root):
            print(f"saved {options.display_path(path)}")


def all_stages():
    """Return the names of the stages that can be run here, in order."""
    there = importlib.util.find_spec("autoattack")
    return [name for name in STAGES if there or name != "auto-attack"]


def fingerprint_of_photographs():
    """Return the fingerprint of the images; raise InputError if they would be drawings."""
    from common.dataset.load import load

    split = load(os.environ.get("CIFAR10_DIR") or None)
    if split.source.startswith("synthetic"):
        raise InputError(
            "the photographs of CIFAR-10 can't be had; set CIFAR10_DIR to a folder with them,"
            " or take --quick"
        )
    return split.fingerprint


def quick_line(line):
    """Return the command line of a dry run that takes seconds."""
    for options_of_line, shorter in QUICK.items():
        line = line.replace(options_of_line, shorter)
    return f"{line} --dry-run"


def run(command, output, root, images, quick):
    """Run a command and publish its results, unless that has been done before.

    images: their fingerprint. With other code, images or libraries nothing has been done
    before. Its report is shown, and kept in the folder logs of the output. Raises InputError if
    it fails.
    """
    words = shlex.split(quick_line(command.line) if quick else command.line)
    script = (ROOT / words[0]).read_text(encoding="utf-8")
    depends_on = command.folder, words, script, code_digest(), images, versions()
    identity = hashlib.sha256(repr(depends_on).encode()).hexdigest()
    log = output / "logs" / f"{command.folder}-{Path(words[0]).stem}-{identity[:12]}.txt"
    print(f"\n{command.folder}/ $ {shlex.join(words)}", flush=True)
    if log.exists():
        print(f"(done before: {options.display_path(log)})")
        return
    folder = output / command.folder
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if environment.get("CIFAR10_DIR"):
        environment["CIFAR10_DIR"] = os.path.abspath(environment["CIFAR10_DIR"])
    where = [] if command.line == SPEED else ["--output-dir", "."]
    lines = []
    with subprocess.Popen(
        [sys.executable, ROOT / words[0], *words[1:], *where],
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
    for file, path in command.published:
        if quick and not (folder / file).exists():
            continue  # a handful of images has no duplicates to show, for example
        with atomic_write(root / path) as temporary:
            shutil.copyfile(folder / file, temporary)
    write_text(log, "".join(lines))  # last: a command without it counts for nothing


class StageList(argparse.Action):
    """Print the stages and their commands, and end, as --help does."""

    def __call__(self, parser, *_):
        for name, stage in STAGES.items():
            print(f"{name}: {stage.about}")
            for folder, line, _ in stage.commands:
                text = f"  {folder}/ $ {line}"
                print(
                    textwrap.fill(text, 80, subsequent_indent="      ", break_on_hyphens=False)
                )
        parser.exit()


if __name__ == "__main__":
    parser = options.Parser(__doc__)
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help="(default: all, in order; see above)"
    )
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
