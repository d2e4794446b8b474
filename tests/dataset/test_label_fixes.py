from pathlib import Path

import numpy as np
import pytest
import torch

from common.dataset import load as loader
from common.dataset import sources
from common.dataset.label_fixes import Suspect, read_suspects, write_suspects
from common.dataset.label_noise import plant_noise
from common.errors import InputError
from common.files import save_table

COUNTS = {"train_counts": [60, 20, 10], "test_counts": [6, 4, 3]}
FULL = {"train_counts": ["full"], "test_counts": ["full"]}
NOISE = {"label_noise": [("automobile", 0.1), ("cat", 0.5)]}


@pytest.fixture
def load(tmp_path):
    """The loader on synthetic images, with small counts, a separate cache and rows of fixes."""

    def load(data="synthetic", fixes=(), **options):
        if fixes:
            options["label_fixes"] = save_table(tmp_path / "fixes.csv", fixes, [*fixes[0]])
        return loader.load(data, cache=tmp_path / "cache", **(COUNTS | options))

    return load


def row(split, i, suggested, accept="yes", confidence=0.5):
    """Return a row of a file of label fixes for the split."""
    given = split.classes[split.train.labels[i]]
    suspect = Suspect(i, "", given, suggested, confidence, accept)
    return suspect._asdict() | {"data": split.train_fingerprint}


def test_noise_replaces_a_share_of_the_labels_of_each_named_class(load):
    clean, noisy = load(), load(**NOISE, label_noise_seed=3)
    changed = noisy.train.labels != clean.train.labels
    assert torch.bincount(clean.train.labels[changed], minlength=3).tolist() == [6, 0, 5]
    assert torch.equal(noisy.true_labels, clean.train.labels)
    assert torch.equal(noisy.train.images, clean.train.images)
    assert torch.equal(noisy.test.labels, clean.test.labels)
    assert (clean.true_labels, clean.changes) == (None, {})
    assert noisy.record()["label_noise"] == {
        "shares": {"car": 0.1, "cat": 0.5},
        "seed": 3,
        "planted": {"car": 6, "truck": 0, "cat": 5},
    }
    assert noisy.fingerprint == f"{noisy.train.fingerprint()}-{noisy.test.fingerprint()}"
    fingerprints = zip(clean.fingerprint.split("-"), noisy.fingerprint.split("-"), strict=True)
    assert [before == after for before, after in fingerprints] == [False, True]


def test_wrong_labels_are_uniform_over_the_other_classes():
    labels = torch.repeat_interleave(torch.arange(3), 400)
    noisy, again, other = (plant_noise(labels, [(1, 0.5)], 3, seed=seed) for seed in (4, 4, 5))
    wrong = torch.bincount(noisy[400:800], minlength=3).tolist()
    assert wrong[1] == 200
    assert abs(wrong[0] - 100) < 35  # five standard deviations of 200 throws of a fair coin
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    two = plant_noise(labels, [(0, 0.5), (1, 0.5)], 3, seed=4)
    assert torch.equal(noisy[400:], two[400:])  # a class does not depend on other classes


def test_files_and_true_labels_stay_beside_their_images(load, image_folder):
    whole, held_out, few = splits = [
        load(str(image_folder), **(FULL | {"label_noise": [("cat", 0.5)]} | options))
        for options in ({}, {"validation": 0.25}, {"train_counts": [3, 2, 4]})
    ]
    numbers = [len(split.train_files) for split in (whole, held_out, few, load())]
    assert numbers == [24, 18, 9, 0]
    for split in splits:
        for name, true in zip(split.train_files, split.true_labels, strict=True):
            assert name.split("/")[1] == ("automobile", "truck", "cat")[true]
        for files, part in ((split.train_files, split.train), (split.test_files, split.test)):
            for name, image in zip(files, part.images, strict=True):
                pixels = sources.read_image(image_folder / name)
                assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("accept_above", "relabelled"), [(None, {3: 1, 4: 2}), (0.9, {3: 1, 4: 2, 9: 2})]
)
def test_accepted_fixes_relabel_and_drop_images(load, accept_above, relabelled):
    split = load(**NOISE)
    assert split.train.labels[[3, 4, 9, 10]].tolist() == [0, 0, 0, 0]
    rows = [
        row(split, 3, "truck"),
        row(split, 4, "cat", " YES "),
        row(split, 7, "cat", "drop", 0.1),
        row(split, 8, "cat", "no", 0.99),
        row(split, 9, "cat", "", 0.9),
        row(split, 10, "cat", "", 0.8999),
    ]
    fixed = load(**NOISE, fixes=rows, accept_above=accept_above)
    expected = split.train.labels.clone()
    expected[list(relabelled)] = torch.tensor(list(relabelled.values()))
    kept = [i for i in range(90) if i != 7]
    assert torch.equal(fixed.train.labels, expected[kept])
    assert torch.equal(fixed.train.images, split.train.images[kept])
    assert torch.equal(fixed.true_labels, split.true_labels[kept])
    record = fixed.record()["label_fixes"]
    assert Path(record.pop("file")).name == "fixes.csv"
    assert record == {"accept_above": accept_above, "relabelled": len(relabelled), "dropped": 1}
    assert fixed.record()["label_noise"] == split.record()["label_noise"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "other"}, "line 2: made for other images or labels"),
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
def test_invalid_row_is_named(load, change, words):
    with pytest.raises(InputError, match=words):
        load(fixes=[row(load(), 0, "cat") | change], accept_above=0.9)


def test_invalid_file_is_named(load, tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: can't be read"):
        load(label_fixes=tmp_path / "none.csv")
    with pytest.raises(InputError, match="has no column file, suggested"):
        load(fixes=[{"index": 0, "given": "car"}])
    with pytest.raises(InputError, match="line 3: image 0 has an earlier row"):
        load(fixes=[row(load(), 0, "cat")] * 2)


def test_fixes_leave_an_image_of_each_class(load):
    counts = {"train_counts": [60, 20, 1]}
    split = load(**counts)
    (cat,) = (split.train.labels == 2).nonzero().flatten().tolist()
    with pytest.raises(InputError, match="leaves no image with the label cat"):
        load(**counts, fixes=[row(split, cat, "car", "drop")])


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
    accepted = Suspect(3, "a.png", "car", "truck", 0.9, "yes")
    rejected = Suspect(9, "", "car", "cat", 0.4, "no")
    write_suspects(path, [accepted, SUSPECTS[1], rejected], "abc")
    changed, new = SUSPECTS[1]._replace(confidence=0.6), Suspect(1, "", "car", "cat", 0.91)
    rows = write_suspects(path, [changed, SUSPECTS[0], new], "abc")
    assert rows == read_suspects(path, "abc") == [changed, accepted, new, rejected]


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
