from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from common.dataset import label_fixes, sources
from common.dataset import load as loader
from common.dataset.label_fixes import Suspect, read_suspects, write_suspects
from common.dataset.label_noise import plant_noise
from common.errors import InputError

COUNTS = {"train_counts": [60, 20, 10], "test_counts": [6, 4, 3]}
FULL = {"train_counts": ["full"], "test_counts": ["full"]}
NOISE = {"label_noise": [("automobile", 0.1), ("cat", 0.5)]}


@pytest.fixture
def load(tmp_path):
    """The loader on synthetic images, with small counts and a separate cache."""

    def load(data="synthetic", **options):
        return loader.load(data, cache=tmp_path / "cache", **(COUNTS | options))

    return load


@pytest.fixture
def write(tmp_path):
    """Write rows to a file of label fixes, and return its path."""

    def write(*rows, columns=label_fixes.COLUMNS):
        path = tmp_path / "fixes.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def row(split, i, suggested, accept="yes", confidence=0.5):
    return {
        "index": i, "file": "", "given": split.classes[split.train.labels[i]],
        "suggested": suggested, "confidence": confidence, "accept": accept,
        "data": split.train_fingerprint,
    }  # fmt: skip


def test_noise_replaces_a_share_of_the_labels_of_each_named_class(load):
    clean, noisy = load(), load(**NOISE, label_noise_seed=3)
    changed = noisy.train.labels != clean.train.labels
    assert torch.bincount(clean.train.labels[changed], minlength=3).tolist() == [6, 0, 5]
    assert torch.equal(noisy.true_labels, clean.train.labels)
    assert torch.equal(noisy.train.images, clean.train.images)
    assert torch.equal(noisy.test.labels, clean.test.labels)
    assert clean.true_labels is None
    assert clean.changes == {}
    assert noisy.record()["label_noise"] == {
        "shares": {"car": 0.1, "cat": 0.5},
        "seed": 3,
        "planted": {"car": 6, "truck": 0, "cat": 5},
    }


def test_wrong_labels_are_uniform_over_the_other_classes():
    labels = torch.repeat_interleave(torch.arange(3), 400)
    noisy = plant_noise(labels, [(1, 0.5)], 3, seed=4)
    wrong = torch.bincount(noisy[400:800], minlength=3).tolist()
    assert wrong[1] == 200
    assert abs(wrong[0] - 100) < 35  # five standard deviations of 200 throws of a fair coin
    again, other = (plant_noise(labels, [(1, 0.5)], 3, seed=seed) for seed in (4, 5))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)


def test_noise_of_a_class_does_not_depend_on_other_classes():
    labels = torch.repeat_interleave(torch.arange(3), 40)
    one = plant_noise(labels, [(2, 0.5)], 3, seed=0)
    two = plant_noise(labels, [(0, 0.5), (2, 0.5)], 3, seed=0)
    assert torch.equal(one[80:], two[80:])


def test_fingerprint_covers_the_changed_labels(load):
    clean, noisy = load(), load(**NOISE)
    assert noisy.fingerprint == f"{noisy.train.fingerprint()}-{noisy.test.fingerprint()}"
    assert noisy.fingerprint != clean.fingerprint
    assert noisy.fingerprint.partition("-")[2] == clean.fingerprint.partition("-")[2]


def test_validation_keeps_labels_and_files_beside_their_images(load, image_folder):
    options = {"data": str(image_folder), "label_noise": [("cat", 0.5)], **FULL}
    whole, split = load(**options), load(**options, validation=0.25)
    for image, name, true in zip(
        split.train.images, split.train_files, split.true_labels, strict=True
    ):
        (i,) = [i for i, other in enumerate(whole.train.images) if torch.equal(image, other)]
        assert name == whole.train_files[i]
        assert name.split("/")[1] == ("automobile", "truck", "cat")[true]


def test_files_name_the_images(image_folder, load):
    split = load(str(image_folder), train_counts=[3, 2, 1], test_counts=["full"])
    for files, part in ((split.train_files, split.train), (split.test_files, split.test)):
        for name, image in zip(files, part.images, strict=True):
            pixels = sources.read_image(image_folder / name)
            assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert load().train_files == ()


def test_accepted_fixes_relabel_and_drop_images(load, write):
    split = load(**NOISE)
    file = write(
        row(split, 3, "truck"),
        row(split, 7, "cat", "drop"),
        row(split, 8, "cat", "no"),
        row(split, 9, "cat", ""),
        row(split, 4, "cat", " YES "),
    )
    fixed = load(**NOISE, label_fixes=file)
    expected = split.train.labels.clone()
    expected[3], expected[4] = 1, 2
    kept = [i for i in range(90) if i != 7]
    assert torch.equal(fixed.train.labels, expected[kept])
    assert torch.equal(fixed.train.images, split.train.images[kept])
    assert torch.equal(fixed.true_labels, split.true_labels[kept])
    expected = {"file": str(file), "accept_above": None, "relabelled": 2, "dropped": 1}
    assert fixed.record()["label_fixes"] == expected
    assert fixed.record()["label_noise"] == split.record()["label_noise"]


def test_accept_above_applies_only_to_rows_without_a_decision(load, write):
    split = load()
    file = write(
        row(split, 0, "cat", "", 0.9),
        row(split, 1, "cat", "", 0.8999),
        row(split, 2, "cat", "no", 0.99),
        row(split, 3, "cat", "drop", 0.1),
    )
    fixed = load(label_fixes=file, accept_above=0.9)
    expected = split.train.labels.clone()
    expected[0] = 2
    assert torch.equal(fixed.train.labels, expected[[i for i in range(90) if i != 3]])


def test_fixes_for_other_labels_are_refused(load, write):
    file = write(row(load(), 0, "cat"))
    assert load(label_fixes=file).changes["label_fixes"]["relabelled"] == 1
    with pytest.raises(InputError, match="line 2: made for other images or labels"):
        load(**NOISE, label_fixes=file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"index": "x"}, "line 2: index 'x' is not a whole number"),
        ({"index": "90"}, "line 2: index 90, but there are 90 train images"),
        ({"given": "boat"}, "line 2: given 'boat', but image 0 is a "),
        ({"suggested": "boat"}, "line 2: suggested 'boat' is not one of car, truck, cat"),
        ({"accept": "maybe"}, "line 2: accept is 'maybe'; use yes, drop, no or nothing"),
        ({"confidence": "high"}, "line 2: confidence 'high' is not a number from 0 to 1"),
        ({"confidence": "99"}, "line 2: confidence '99' is not a number from 0 to 1"),
        ({"accept": "no"}, "accepts nothing"),
    ],
)
def test_invalid_row_is_named(load, write, change, words):
    file = write(row(load(), 0, "cat") | change)
    with pytest.raises(InputError, match=words):
        load(label_fixes=file, accept_above=0.9)


def test_invalid_file_is_named(load, write, tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: can't be read"):
        load(label_fixes=tmp_path / "none.csv")
    valid = row(load(), 0, "cat")
    with pytest.raises(InputError, match="has no column file, suggested"):
        load(label_fixes=write(valid, columns=("index", "given")))
    with pytest.raises(InputError, match="line 3: image 0 has an earlier row"):
        load(label_fixes=write(valid, valid))
    with pytest.raises(InputError, match=r"--accept-above: .*--label-fixes FILE; add"):
        load(accept_above=0.9)


def test_class_must_keep_an_image(load, write):
    counts = {"train_counts": [60, 20, 1]}
    with pytest.raises(InputError, match="--label-noise: leaves no image with the label cat"):
        load(**counts, label_noise=[("cat", 0.9)])
    split = load(**counts)
    (cat,) = (split.train.labels == 2).nonzero().flatten().tolist()
    file = write(row(split, cat, "car", "drop"))
    with pytest.raises(InputError, match="leaves no image with the label cat"):
        load(**counts, label_fixes=file)


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        ([("boat", 0.1)], "--label-noise boat: no such class; .* car, truck, cat"),
        ([("car", 0.1), ("automobile", 0.2)], "--label-noise automobile: give one share"),
    ],
)
def test_noise_with_an_invalid_class_is_refused(load, noise, words):
    with pytest.raises(InputError, match=words):
        load(label_noise=noise)


SUSPECTS = [
    Suspect(3, "a.png", "car", "cat", 0.91234),
    Suspect(5, 'with, comma "and" quotes.png', "cat", "car", 0.5),
]


def test_suspects_are_read_as_written(tmp_path):
    path = tmp_path / "data/suspects.csv"
    assert write_suspects(path, SUSPECTS, "abc") == SUSPECTS
    assert read_suspects(path, "abc") == [SUSPECTS[0]._replace(confidence=0.9123), SUSPECTS[1]]
    assert read_suspects(path, "other") == []
    assert read_suspects(tmp_path / "none.csv", "abc") == []


def test_another_audit_keeps_the_decisions(tmp_path):
    path = tmp_path / "suspects.csv"
    decided = [SUSPECTS[0]._replace(accept="yes", suggested="truck"), SUSPECTS[1]]
    decided += [Suspect(9, "", "car", "cat", 0.4, "no")]
    write_suspects(path, decided, "abc")
    again = [SUSPECTS[1]._replace(confidence=0.6), SUSPECTS[0], SUSPECTS[0]._replace(index=1)]
    rows = write_suspects(path, again, "abc")
    assert [(s.index, s.suggested, s.accept) for s in rows] == [
        (5, "car", ""), (3, "truck", "yes"), (1, "cat", ""), (9, "cat", "no"),
    ]  # fmt: skip
    assert rows[0].confidence == 0.6
    assert read_suspects(path, "abc")[1:] == [
        s._replace(confidence=round(s.confidence, 4)) for s in rows[1:]
    ]


def test_decisions_on_other_labels_are_moved_aside(tmp_path):
    path = tmp_path / "suspects.csv"
    write_suspects(path, [SUSPECTS[0]._replace(accept="drop")], "abc")
    before = path.read_bytes()
    assert write_suspects(path, SUSPECTS, "xyz") == SUSPECTS
    assert (tmp_path / "suspects-abc.csv").read_bytes() == before
    write_suspects(path, SUSPECTS[:1], "uvw")  # the file for xyz has no decisions
    assert sorted(p.name for p in tmp_path.iterdir()) == ["suspects-abc.csv", "suspects.csv"]


def test_leaks_are_dropped_from_train_and_recorded(load, image_folder):
    for i, name in ((2, "0001.png"), (5, "0003.png")):
        contents = (image_folder / "test/cat" / name).read_bytes()
        (image_folder / f"train/truck/{i:04}.png").write_bytes(contents)
    whole = load(str(image_folder), **FULL)
    split = load(str(image_folder), **FULL, drop_leaks=True)
    dropped = [f"train/truck/{i:04}.png" for i in (2, 5)]
    assert list(split.train_files) == [f for f in whole.train_files if f not in dropped]
    assert split.train.counts(3) == [8, 6, 8]
    assert split.record()["leaks_dropped"] == 2
    assert split.fingerprint.partition("-")[2] == whole.fingerprint.partition("-")[2]
