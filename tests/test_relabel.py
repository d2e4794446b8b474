"""Wrong labels that are planted, and fixes that the user accepted."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from common import dataset, relabel, results, text
from common.options import InputError

COUNTS = {"train_counts": [60, 20, 10], "test_counts": [6, 4, 3]}
NOISE = {"label_noise": [("automobile", 0.1), ("cat", 0.5)]}


@pytest.fixture
def load(tmp_path):
    def run(**options):
        return dataset.load("synthetic", cache=tmp_path / "cache", **(COUNTS | options))

    return run


def write(path: Path, rows: list[dict], columns=relabel.COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(split, i, suggested, accept="yes", confidence=0.5, **other):
    given = split.classes[split.train.labels[i]]
    return {
        "index": i, "file": "", "given": given, "suggested": suggested,
        "confidence": confidence, "accept": accept, "data": dataset.train_fingerprint(split),
    } | other  # fmt: skip


def test_noise_changes_the_named_share_of_each_class_and_nothing_else(load):
    clean, noisy = load(), load(**NOISE)
    changed = noisy.train.labels != clean.train.labels
    assert torch.bincount(clean.train.labels[changed], minlength=3).tolist() == [6, 0, 5]
    assert torch.equal(noisy.true_labels, clean.train.labels)
    assert torch.equal(noisy.train.images, clean.train.images)
    assert torch.equal(noisy.test.labels, clean.test.labels)
    assert clean.true_labels is None
    assert clean.changes == {}


def test_wrong_labels_are_spread_over_the_other_classes_by_the_seed():
    labels = torch.repeat_interleave(torch.arange(3), 400)
    noisy = relabel.plant_noise(labels, [(1, 0.5)], 3, seed=4)
    wrong = torch.bincount(noisy[400:800], minlength=3).tolist()
    assert wrong[1] == 200
    assert abs(wrong[0] - 100) < 35  # five standard deviations of a fair coin's 200 throws
    again, other = (relabel.plant_noise(labels, [(1, 0.5)], 3, seed=s) for s in (4, 5))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)


def test_a_class_gets_the_same_noise_whatever_other_classes_get():
    labels = torch.repeat_interleave(torch.arange(3), 40)
    alone = relabel.plant_noise(labels, [(2, 0.5)], 3, seed=0)
    beside = relabel.plant_noise(labels, [(0, 0.5), (2, 0.5)], 3, seed=0)
    assert torch.equal(alone[80:], beside[80:])


def test_noise_is_recorded_and_printed(load):
    noisy = load(**NOISE, label_noise_seed=3)
    record = results.data_record(noisy)
    assert record["label_noise"] == {
        "shares": {"car": 0.1, "cat": 0.5},
        "seed": 3,
        "planted": {"car": 6, "truck": 0, "cat": 5},
    }
    assert "label_noise" not in results.data_record(load())
    assert "Wrong labels planted: 6 of car, 5 of cat (seed 3)" in text.images(noisy)
    assert "planted" not in text.images(load())


def test_the_fingerprint_is_that_of_the_labels_in_use(load):
    clean, noisy = load(), load(**NOISE)
    arrays = {
        "train_images": noisy.train.images.numpy(), "train_labels": noisy.train.labels.numpy(),
        "test_images": noisy.test.images.numpy(), "test_labels": noisy.test.labels.numpy(),
    }  # fmt: skip
    assert noisy.fingerprint == dataset._fingerprint(arrays)
    assert noisy.fingerprint != clean.fingerprint
    assert noisy.fingerprint.partition("-")[2] == clean.fingerprint.partition("-")[2]


def test_validation_keeps_true_labels_and_files_beside_their_images(load, image_folder):
    whole = dataset.load(
        str(image_folder), train_counts=["full"], test_counts=["full"], cache=image_folder,
        label_noise=[("cat", 0.5)],
    )  # fmt: skip
    part = dataset.load(
        str(image_folder), train_counts=["full"], test_counts=["full"], cache=image_folder,
        label_noise=[("cat", 0.5)], validation=0.25,
    )  # fmt: skip
    for image, name, true in zip(
        part.train.images, part.train_files, part.true_labels, strict=True
    ):
        (at,) = [i for i, other in enumerate(whole.train.images) if torch.equal(image, other)]
        assert name == whole.train_files[at]
        assert name.split("/")[1] == ("automobile", "truck", "cat")[true]


def test_files_name_the_images(image_folder, load):
    split = dataset.load(
        str(image_folder), train_counts=[3, 2, 1], test_counts=["full"], cache=image_folder
    )
    for files, part in ((split.train_files, split.train), (split.test_files, split.test)):
        for name, image in zip(files, part.images, strict=True):
            pixels = dataset.sources.read_image(image_folder / name)
            assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert load().train_files == ()


def test_fixes_relabel_and_drop_what_is_accepted(load, tmp_path):
    split = load(**NOISE)
    file = write(
        tmp_path / "fixes.csv",
        [
            row(split, 3, "truck"),
            row(split, 7, "cat", "drop"),
            row(split, 8, "cat", "no"),
            row(split, 9, "cat", ""),
            row(split, 4, "cat", " YES "),
        ],
    )
    fixed = load(**NOISE, label_fixes=file)
    expected = split.train.labels.clone()
    expected[3], expected[4] = 1, 2
    kept = [i for i in range(90) if i != 7]
    assert torch.equal(fixed.train.labels, expected[kept])
    assert torch.equal(fixed.train.images, split.train.images[kept])
    assert torch.equal(fixed.true_labels, split.true_labels[kept])
    record = results.data_record(fixed)["label_fixes"]
    assert (record["relabelled"], record["dropped"]) == (2, 1)
    left = int((fixed.true_labels != expected[kept]).sum())
    printed = text.images(fixed)
    assert f"Label fixes: 2 relabelled, 1 dropped ({file})" in printed
    assert f"Wrong labels left: {left}" in printed


def test_accept_above_decides_only_where_the_user_did_not(load, tmp_path):
    split = load()
    file = write(
        tmp_path / "fixes.csv",
        [
            row(split, 0, "cat", "", 0.9),
            row(split, 1, "cat", "", 0.8999),
            row(split, 2, "cat", "no", 0.99),
            row(split, 3, "cat", "drop", 0.1),
        ],
    )
    fixed = load(label_fixes=file, accept_above=0.9)
    expected = split.train.labels.clone()
    expected[0] = 2
    assert torch.equal(fixed.train.labels, expected[[i for i in range(90) if i != 3]])


def test_a_file_for_other_labels_is_refused(load, tmp_path):
    file = write(tmp_path / "fixes.csv", [row(load(), 0, "cat")])
    assert load(label_fixes=file).changes["label_fixes"]["relabelled"] == 1
    with pytest.raises(InputError, match="line 2: made for other images or labels"):
        load(**NOISE, label_fixes=file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"index": "x"}, "line 2: index 'x' is not a whole number"),
        ({"index": "90"}, "line 2: there are 90 train images, none is 90"),
        ({"given": "boat"}, "line 2: image 0 is given as .*, not 'boat'"),
        ({"suggested": "boat"}, "line 2: suggested 'boat' is none of car, truck, cat"),
        ({"accept": "maybe"}, "line 2: accept is 'maybe'; put yes, drop, no or nothing"),
        ({"confidence": "high"}, "line 2: confidence 'high' is not a number from 0 to 1"),
        ({"confidence": "99"}, "line 2: confidence '99' is not a number from 0 to 1"),
        ({"accept": "no"}, "accepts nothing"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(load, tmp_path, change, words):
    file = write(tmp_path / "fixes.csv", [row(load(), 0, "cat") | change])
    with pytest.raises(InputError, match=words):
        load(label_fixes=file, accept_above=0.9)


def test_bad_files_are_named(load, tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: can't be read"):
        load(label_fixes=tmp_path / "none.csv")
    short = write(tmp_path / "short.csv", [row(load(), 0, "cat")], ("index", "given"))
    with pytest.raises(InputError, match="has no column file, suggested"):
        load(label_fixes=short)
    twice = write(tmp_path / "twice.csv", [row(load(), 0, "cat")] * 2)
    with pytest.raises(InputError, match="line 3: image 0 is there twice"):
        load(label_fixes=twice)
    with pytest.raises(InputError, match=r"--accept-above: .* give it"):
        load(accept_above=0.9)


def test_a_class_can_not_lose_its_last_image(load, tmp_path):
    with pytest.raises(InputError, match="--label-noise: leaves no image with the label cat"):
        load(train_counts=[60, 20, 1], label_noise=[("cat", 0.9)])
    split = load(train_counts=[60, 20, 1])
    (cat,) = (split.train.labels == 2).nonzero().flatten().tolist()
    file = write(tmp_path / "fixes.csv", [row(split, cat, "car", "drop")])
    with pytest.raises(InputError, match="leaves no image with the label cat"):
        load(train_counts=[60, 20, 1], label_fixes=file)


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        ([("boat", 0.1)], "--label-noise boat: no such class; car, truck, cat"),
        ([("car", 0.1), ("automobile", 0.2)], "--label-noise automobile: give one share"),
    ],
)
def test_noise_of_no_class_is_refused(load, noise, words):
    with pytest.raises(InputError, match=words):
        load(label_noise=noise)


SUSPECTS = [
    relabel.Suspect(3, "a.png", "car", "cat", 0.91234),
    relabel.Suspect(5, 'with, comma "and" quotes.png', "cat", "car", 0.5),
]


def test_suspects_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "data/suspects.csv"
    assert relabel.write_suspects(path, SUSPECTS, "abc") == SUSPECTS
    read = relabel.read_suspects(path, "abc")
    assert [s._replace(confidence=0) for s in read] == [
        s._replace(confidence=0) for s in SUSPECTS
    ]
    assert [s.confidence for s in read] == [0.9123, 0.5]
    assert relabel.read_suspects(path, "other") == []
    assert relabel.read_suspects(tmp_path / "none.csv", "abc") == []


def test_another_audit_keeps_what_was_decided(tmp_path):
    path = tmp_path / "suspects.csv"
    decided = [SUSPECTS[0]._replace(accept="yes", suggested="truck"), SUSPECTS[1]]
    decided += [relabel.Suspect(9, "", "car", "cat", 0.4, "no")]
    relabel.write_suspects(path, decided, "abc")
    again = [SUSPECTS[1]._replace(confidence=0.6), SUSPECTS[0], SUSPECTS[0]._replace(index=1)]
    kept = relabel.write_suspects(path, again, "abc")
    assert [(s.index, s.suggested, s.accept) for s in kept] == [
        (5, "car", ""), (3, "truck", "yes"), (1, "cat", ""), (9, "cat", "no"),
    ]  # fmt: skip
    assert kept[0].confidence == 0.6
    assert relabel.read_suspects(path, "abc")[1:] == [
        s._replace(confidence=round(s.confidence, 4)) for s in kept[1:]
    ]


def test_decisions_on_other_labels_are_moved_aside_not_lost(tmp_path):
    path = tmp_path / "suspects.csv"
    relabel.write_suspects(path, [SUSPECTS[0]._replace(accept="drop")], "abc")
    before = path.read_bytes()
    assert relabel.write_suspects(path, SUSPECTS, "xyz") == SUSPECTS
    assert (tmp_path / "suspects-abc.csv").read_bytes() == before
    relabel.write_suspects(path, SUSPECTS[:1], "uvw")  # nothing was decided on xyz
    assert sorted(p.name for p in tmp_path.iterdir()) == ["suspects-abc.csv", "suspects.csv"]


def test_leaks_are_dropped_from_train_and_recorded(image_folder):
    full = {"train_counts": ["full"], "test_counts": ["full"], "cache": image_folder}
    for i, name in ((2, "0001.png"), (5, "0003.png")):
        copied = (image_folder / "test/cat" / name).read_bytes()
        (image_folder / f"train/truck/{i:04}.png").write_bytes(copied)
    whole = dataset.load(str(image_folder), **full)
    kept = dataset.load(str(image_folder), **full, drop_leaks=True)
    gone = [f"train/truck/{i:04}.png" for i in (2, 5)]
    assert list(kept.train_files) == [f for f in whole.train_files if f not in gone]
    assert kept.train.counts(3) == [8, 6, 8]
    assert results.data_record(kept)["leaks_dropped"] == 2
    assert "left out as duplicates of test images: 2" in text.images(kept)
    assert kept.fingerprint.partition("-")[2] == whole.fingerprint.partition("-")[2]
