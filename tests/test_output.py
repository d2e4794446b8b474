"""--output-dir is tried before work, and a write that fails later is one line."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import is_one_line

from common.dataset.load import load
from common.errors import InputError
from common.files import ROOT, output_folders, short_name
from common.metrics.report import report
from common.reporting.training_figures import confusion
from common.training.recipe import Recipe
from common.training.recipes import variant_name

SCRIPTS = {  # the folders that each writes, and the file that it writes first
    "inspect_data.py": (("data", "figures"), "data/duplicates.csv"),
    "evaluate.py": (("figures",), "figures/evaluate_baseline_confusion.png"),
    "train.py": (("models", "figures"), "models/baseline.pt"),
    "lr_sweep.py": (("models", "figures"), "models/original-lr1e-10.pt"),
    "adversarial.py": (("figures",), "figures/adversarial_baseline_epsilon.png"),
}
ARGUMENTS = {"train.py": ["baseline"], "adversarial.py": [ROOT / "models/baseline.pt"]}


@contextmanager
def largest_file(size: int):
    """Let every write beyond `size` bytes fail, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def bad_folders(tmp_path):
    """Folders that can't be written, with the reason."""
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    return {
        file: "File exists",
        file / "below": "Not a directory",
        tmp_path / ("long" * 75): "File name too long",
        tmp_path / "new" / ("long" * 75): "File name too long",
        tmp_path / "link": "File exists",
        tmp_path / "loop": "",
        Path("/proc/new"): "No such file or directory",
    }


def test_a_folder_that_cannot_be_written_is_refused_without_a_trace(tmp_path, bad_folders):
    for folder, reason in bad_folders.items():
        before = sorted(tmp_path.rglob("*"))
        with (
            pytest.raises(InputError, match=f"--output-dir: .*{reason}.*give another folder"),
            output_folders([tmp_path / "made", folder]),
        ):
            pytest.fail("the work has begun")
        assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_refused(tmp_path):
    with (
        largest_file(0),
        pytest.raises(InputError, match=r"--output-dir: .*File too large"),
        output_folders([tmp_path / "made"]),
    ):
        pytest.fail("the work has begun")
    assert not list(tmp_path.iterdir())


def test_folders_stay_if_they_are_used(tmp_path):
    (tmp_path / "a").mkdir()
    with output_folders([tmp_path / "a", tmp_path / "b/c", tmp_path / "b/d"]):
        assert sorted(tmp_path.rglob("*")) == [tmp_path / x for x in ("a", "b", "b/c", "b/d")]
        (tmp_path / "b/d/file").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / x for x in ("a", "b", "b/d", "b/d/file")]
    with pytest.raises(KeyError), output_folders([tmp_path / "e/f"]):
        raise KeyError
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_tries_each_of_its_folders_before_work(
    in_process, monkeypatch, tmp_path, name
):
    monkeypatch.setattr("common.options.load_split", lambda _: pytest.fail("the work began"))
    for folder in SCRIPTS[name][0]:
        out = tmp_path / f"out-{folder}"
        out.mkdir()
        (out / folder).write_text("in the way")
        done = in_process(name, "--dry-run", "--output-dir", out)
        assert done.returncode == 2
        assert is_one_line(
            done.stderr, f"{name}: --output-dir: {out / folder} can't be written"
        )
        assert os.listdir(out) == [folder]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_disk_that_fills_up_is_one_line_and_earlier_files_stay(in_process, tmp_path, name):
    load("synthetic", dry_run=True)  # now the split is in the cache, and not written again
    earlier = tmp_path / SCRIPTS[name][1]
    earlier.parent.mkdir()
    earlier.write_text("earlier")
    with largest_file(5):  # enough for the trial
        done = in_process(
            name, *ARGUMENTS.get(name, []), "--dry-run", "--data", "synthetic",
            "--threads", 1, "--output-dir", tmp_path,
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = [f"{name}: {earlier}: can't be written (File too large)"]
    if earlier.suffix == ".pt":  # a run goes on without its log, which says so
        log = earlier.with_suffix(".csv")
        lines.insert(0, f"{log}: can't be written (File too large); going on without it")
    assert done.stderr.splitlines() == lines
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [earlier]
    assert earlier.read_text() == "earlier"


def test_names_that_are_too_long_for_files_are_shortened_and_stay_different():
    changes = dict.fromkeys(("momentum", "beta", "ema", "mix_share", "warm_up"), 0.123456789)
    names = [
        variant_name("original", Recipe(**changes, learning_rate=rate)) for rate in (0.1, 0.2)
    ]
    names += [short_name("é" * 119 + end) for end in "ab"] + [short_name("x" * 121)]
    assert max(len(os.fsencode(name)) for name in names) == 120
    assert len(set(names)) == 5
    assert names[0].startswith("original+learning-rate=0.1+momentum=0.123456789+")
    assert short_name("x" * 120) == "x" * 120


def test_a_checkpoint_with_a_hostile_name_is_evaluated(in_process, tmp_path):
    """Control characters, a byte that is not UTF-8, mathematics for Matplotlib, and length."""
    checkpoint = tmp_path / ("$\\frac$ \x1b[31m\n\udcff" + "x" * 200 + ".pt")
    shutil.copy(ROOT / "models/baseline.pt", checkpoint)
    out = tmp_path / "o\x1b[31m\n\udcff"
    done = in_process("evaluate.py", checkpoint, "--dry-run", "--output-dir", out)
    assert done.returncode == 0, done.stderr
    assert is_one_line(done.stderr, "GOING ON WITH SYNTHETIC")
    assert "\x1b" not in done.stdout
    assert done.stdout.count("saved o\\x1b[31m\\n\\xff/figures/evaluate_$") == 6
    written = list((out / "figures").iterdir())
    assert len(written) == 7
    page = (out / "figures/index.html").read_text(encoding="utf-8")
    assert r"$\frac$ \x1b[31m\n\xff" in page
    assert not {"\x1b", "\udcff"} & set(page)
    assert all(path.name.isprintable() for path in written)


def test_names_are_not_read_as_mathematics(tmp_path):
    names = ("$\\frac$", "$x")
    labels = torch.tensor([0, 1])
    confusion(tmp_path / "a.png", report(labels, labels, names), *names)
