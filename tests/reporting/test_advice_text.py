"""The advice of stage 1 in words, and the command that it ends with."""

import shlex
import sys

import pytest

from common import options
from common.inspection.advice import Advice, Facts
from common.reporting.advice_text import advice_text, next_command

FACTS = Facts(50, 6405, 20.04, "dog", "a class with a rather long name", 20, 27, 64)
BEST = {
    "seconds": 720.0, "epochs": 55, "steps_per_epoch": 51, "processor": "A processor",
    "threads": 2,
}  # fmt: skip


def advice_of(too_few):
    suited = [("best", "a reason that is long " * 8), ("original", "none")]
    return Advice(FACTS, suited, [("smote", "pixels")], too_few, 60, BEST)


@pytest.mark.parametrize("classes", [0, 1, 10, 11, 50])
def test_the_advice_fits_80_columns_and_names_every_class(classes):
    too_few = [
        (f"a class with a rather long name {k}", k, 0.3 + k / 1000) for k in range(classes)
    ]
    lines = advice_text(advice_of(too_few), "cpu", ["--data", "x" * 60], []).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for k in range(classes):
        assert text.count(f"  {k}  {0.3 + k / 1000:.3f}") + text.count(
            f" {k:2}  {0.3 + k / 1000:.3f}"
        )
    assert ("Every class has test images enough" in text) == (classes == 0)
    words = " ".join(text.split())
    assert "Imbalance ratio: 20.0 (dog to a class with a rather long name, 50" in words
    assert "about 12 min on this machine (A processor, 2 threads)" in words
    assert len(lines) < 60


COMMANDS = [
    ([], "python train.py"),
    (["--seed", "3"], "python train.py --seed 3"),
    (["--data", "my photos", "--image-size", "64"],
     "python train.py best --data 'my photos' --image-size 64"),
    (["--image-size=64", "--skip-damaged"],
     "python train.py best --image-size=64 --skip-damaged"),
    # Defaults are left out.
    (["--data", "photos", "--split-seed", "0", "--memory", "2G"],
     "python train.py best --data photos"),
    (["--memory", "3G", "--test-share", "0.3"],
     "python train.py best --test-share 0.3 --memory 3G"),
    (["--label-noise", "cat:0.2", "truck:0.10"],
     "python train.py best --label-noise cat:0.2 truck:0.10"),
    (["--data", "$x; rm", "--dry-run"], "python train.py best --data '$x; rm' --dry-run"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "command"), COMMANDS)
def test_the_next_command_repeats_the_users_options(typed, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inspect_data.py", *typed])
    args = options.make_parser("").parse_args(typed)
    own = [options.typed_options(args, add) for add in (options.add_images, options.add_run)]
    assert next_command(advice_of([]), *own) == command
    # What is pasted means the same images.
    words = [
        word for word in shlex.split(command) if word not in ("python", "train.py", "best")
    ]
    assert options.make_parser("").parse_args(words) == args


def test_a_long_command_goes_on_in_further_lines():
    own = ["--data", "a folder", "--classes", *(f"class {k}" for k in range(20))]
    command = next_command(advice_of([]), own, [])
    assert max(map(len, command.splitlines())) <= 80
    assert len(command.splitlines()) == 4
    assert shlex.split(command.replace("\\\n", " ")) == ["python", "train.py", "best", *own]
