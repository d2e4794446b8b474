import csv
import itertools
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from limits import flips, limited, one_line_if_refused

from common.dataset import image_files
from common.dataset import load as loader
from common.dataset.label_fixes import (
    COLUMNS,
    Suspect,
    as_rows,
    read_fixes,
    read_suspects,
    write_suspects,
)
from common.dataset.label_noise import plant_noise
from common.errors import InputError
from common.files import save_table

HEADER = ",".join(COLUMNS).encode() + b"\r\n"
COUNTS = {"train_counts": [60, 20, 10], "test_counts": [6, 4, 3]}
FULL = {
    "classes": ("automobile", "truck", "cat"),
    "train_counts": ["full"],
    "test_counts": ["full"],
}
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
    return as_rows([suspect], split.train_fingerprint)[0]


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
                pixels = image_files.read_image(image_folder / name)
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


CHANGED = "line 2: another column than accept was changed; restore or remove the row"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "0123456789ab"}, CHANGED),
        ({"data": "../../x"}, "line 2: data '../../x' is not 12 hexadecimal digits"),
        ({"data": "0123456789aB"}, "line 2: data '0123456789aB' is not 12 hex"),
        ({"index": "x"}, "line 2: index 'x' is not a whole number"),
        ({"index": "²"}, "line 2: index '²' is not a whole number"),
        ({"index": "9" * 5000}, "line 2: index '9{40}' is not a whole number"),
        ({"index": "1"}, CHANGED),
        ({"file": "a.png"}, CHANGED),
        ({"given": "boat"}, CHANGED),
        ({"suggested": "truck"}, CHANGED),
        ({"confidence": "0.6"}, CHANGED),
        ({"check": ""}, CHANGED),
        ({"accept": "maybe"}, "line 2: accept is 'maybe'; use yes, drop, no or nothing"),
        ({"confidence": "high"}, "line 2: confidence 'high' is not a number from 0 to 1"),
        ({"confidence": "99"}, "line 2: confidence '99' is not a number from 0 to 1"),
        ({"confidence": "nan"}, "line 2: confidence 'nan' is not a number from 0 to 1"),
        ({"accept": "no"}, "accepts nothing"),
    ],
)
def test_invalid_row_is_named(load, change, words):
    with pytest.raises(InputError, match=words):
        load(fixes=[row(load(), 0, "cat") | change], accept_above=0.9)


@pytest.mark.parametrize(
    ("suspect", "words"),
    [
        (Suspect(90, "", "car", "cat", 0.5, "yes"), "index 90, but there are 90 train images"),
        (Suspect(0, "", "boat", "cat", 0.5, "yes"), "given 'boat', but image 0 is a "),
        (
            Suspect(0, "", "", "boat", 0.5, "yes"),
            "suggested 'boat' is not one of car, truck",
        ),
    ],
)
def test_a_row_that_does_not_fit_the_images_is_named(load, suspect, words):
    split = load()
    suspect = suspect._replace(given=suspect.given or split.classes[split.train.labels[0]])
    with pytest.raises(InputError, match=f"line 2: {words}"):
        load(fixes=as_rows([suspect], split.train_fingerprint))
    if suspect.index == 0:
        with pytest.raises(InputError, match="line 2: made for other images or labels"):
            load(fixes=as_rows([suspect], "0123456789ab"))


def test_a_spreadsheet_may_rewrite_the_file(load, tmp_path):
    split = load()
    cells = row(split, 0, "cat", confidence=0.5) | {"confidence": "0.5", "": "a remark"}
    lines = (",".join(map(str, line)) for line in (cells, cells.values()))
    path = tmp_path / "rewritten.csv"
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")  # a BOM, other ends of lines
    assert read_fixes(path, split, None) == ({0: 2}, [])


def test_files_of_earlier_versions_are_read(load):
    rows = [row(load(), 0, "cat")]
    del rows[0]["check"]
    assert load(fixes=rows).changes["label_fixes"]["relabelled"] == 1


@pytest.mark.parametrize("decisions", [*itertools.product(("yes", "no", ""), repeat=2)])
def test_an_image_has_one_row(load, decisions):
    rows = [row(load(), 0, "cat", accept) for accept in decisions]
    with pytest.raises(InputError, match="line 3: image 0 has an earlier row; remove one"):
        load(fixes=rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no column index, file"),
        (b"\n\n", "has no column index, file"),
        (b"index,given\n0,car", "has no column file, suggested"),
        (HEADER, "accepts nothing"),
        (HEADER + b"1,2", "line 2: 2 columns, but there are 8"),
        (HEADER + b"1,2,3,4,5,6,7,8,9", "line 2: 9 columns, but there are 8"),
        (HEADER + b"\0,,,,,,,", "line 2: index '.x00' is not a whole number"),
        (HEADER + b"0," + b"x" * 200_000 + b",,,,,,", "not a CSV file .field larger than"),
        (HEADER + b"0,\xff,,,,,,", "not a CSV file"),
        (HEADER.decode().encode("utf-16"), "not a CSV file"),
    ],
)
def test_invalid_file_is_named(load, tmp_path, content, words):
    path = tmp_path / "fixes.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"fixes\.csv: {words}") as caught:
        load(label_fixes=path)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_cannot_be_read_are_named(load, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for name, words in (("none.csv", "can't be read"), ("pipe.csv", "not a regular file")):
        with limited(), pytest.raises(InputError, match=rf"{name}: {words}"):
            load(label_fixes=tmp_path / name)
    with limited(), pytest.raises(InputError, match="not a regular file"):
        read_suspects(tmp_path / "pipe.csv", A)


def test_a_flipped_byte_changes_no_fix(load, tmp_path):
    split = load()
    accepts = ("yes", "drop", "no", "", "yes")
    rows = [row(split, 4 + 3 * i, "cat", accept) for i, accept in enumerate(accepts)]
    path = save_table(tmp_path / "fixes.csv", rows, COLUMNS)
    expected = read_fixes(path, split, 0.9)
    assert [len(fixes) for fixes in expected] == [2, 1]
    refused = 0
    for content in flips(path.read_bytes(), 1000):
        path.write_bytes(content)
        refused += 1
        with one_line_if_refused():
            assert read_fixes(path, split, 0.9) == expected
            refused -= 1
    assert refused > 900


def test_fixes_leave_an_image_of_each_class(load):
    counts = {"train_counts": [60, 20, 1]}
    split = load(**counts)
    (cat,) = (split.train.labels == 2).nonzero().flatten().tolist()
    with pytest.raises(InputError, match="leaves no image with the label cat"):
        load(**counts, fixes=[row(split, cat, "car", "drop")])


A, B, C = "aaaaaaaaaaaa", "0123456789ab", "cccccccccccc"
SUSPECTS = [
    Suspect(3, "a.png", "car", "cat", 0.91234),
    Suspect(5, 'with, comma "and" quotes.png', "cat", "car", 0.5),
]


def test_suspects_are_read_as_written(tmp_path):
    path = tmp_path / "data/suspects.csv"
    assert write_suspects(path, SUSPECTS, A) == SUSPECTS
    assert read_suspects(path, A) == [SUSPECTS[0]._replace(confidence=0.9123), SUSPECTS[1]]
    assert read_suspects(path, B) == []
    assert read_suspects(tmp_path / "none.csv", A) == []


def test_another_audit_keeps_the_decisions(tmp_path):
    path = tmp_path / "suspects.csv"
    accepted = Suspect(3, "a.png", "car", "truck", 0.9, "yes")
    rejected = Suspect(9, "", "car", "cat", 0.4, "no")
    write_suspects(path, [accepted, SUSPECTS[1], rejected], A)
    changed, new = SUSPECTS[1]._replace(confidence=0.6), Suspect(1, "", "car", "cat", 0.91)
    rows = write_suspects(path, [changed, SUSPECTS[0], new], A)
    assert rows == read_suspects(path, A) == [changed, accepted, new, rejected]


def test_decisions_on_other_labels_are_moved_aside(tmp_path):
    path = tmp_path / "suspects.csv"
    write_suspects(path, [SUSPECTS[1]._replace(accept="drop")], A)
    before = path.read_bytes()
    assert write_suspects(path, SUSPECTS, B) == SUSPECTS
    assert (tmp_path / f"suspects-{A}.csv").read_bytes() == before
    write_suspects(path, SUSPECTS[:1], C)  # the file for B has no decisions
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"suspects-{A}.csv", "suspects.csv"]


def decide(path, changes):
    """Change the column accept of a file as a user does; an index without a row is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for each in rows:
        each["accept"] = changes.get(int(each["index"]), each["accept"])
    save_table(path, rows, COLUMNS)
    return {int(each["index"]): each["accept"] for each in rows}


def test_a_decision_that_is_taken_back_does_not_return(tmp_path):
    path, aside = tmp_path / "suspects.csv", tmp_path / f"suspects-{A}.csv"
    write_suspects(path, [SUSPECTS[0]._replace(accept="yes")], A)
    write_suspects(path, [], B)
    earlier = aside.read_bytes()
    assert write_suspects(path, SUSPECTS, A)[0].accept == "yes"
    decide(path, {3: ""})
    for suspects in ([], SUSPECTS):
        assert [row.accept for row in write_suspects(path, suspects, A)] == [""] * len(suspects)
    # As if the computer had stopped between the writing of one file and the end of the other.
    aside.write_bytes(earlier)
    decide(path, {3: "no"})
    assert write_suspects(path, SUSPECTS, A)[0].accept == "no"


ACCEPTS = st.dictionaries(st.integers(0, 5), st.sampled_from(["yes", "drop", "no", ""]))
AUDITS = st.lists(
    st.tuples(st.sampled_from([A, B, C]), st.sets(st.integers(0, 5)), ACCEPTS), max_size=8
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(AUDITS)
def test_audits_in_any_order_keep_all_decisions(audits):
    truth = {A: {}, B: {}, C: {}}
    with TemporaryDirectory() as folder, patch("os.fsync"):  # takes most of the time
        path = Path(folder) / "suspects.csv"
        for data, indices, changes in [*audits, (A, (), {}), (B, (), {}), (C, (), {})]:
            found = [Suspect(i, f"{data}.png", "car", "cat", i / 7) for i in sorted(indices)]
            write_suspects(path, found, data)
            rows = read_suspects(path, data)
            assert [row.index for row in rows[: len(found)]] == sorted(indices)
            assert {row.index: row.accept for row in rows if row.accept} == truth[data]
            assert all(row.file == f"{data}.png" for row in rows)
            truth[data] = {i: accept for i, accept in decide(path, changes).items() if accept}


CELLS = st.text(st.sampled_from('0159.abcxyesno,"\r\n\0\ufeff')) | st.sampled_from([A, "yes"])


@settings(deadline=None, derandomize=True)
@given(
    st.binary(max_size=200)
    | st.lists(st.lists(CELLS, min_size=8, max_size=8).map(",".join)).map(
        lambda lines: HEADER + "\n".join(lines).encode()
    )
)
@example(HEADER + f'3,"a\nb",,,0.5,no,{A},x\n'.encode())
def test_any_content_is_rows_or_one_line(content):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "suspects.csv"
        path.write_bytes(content)
        with one_line_if_refused():
            assert all(isinstance(row, Suspect) for row in read_suspects(path, A))


def test_damaged_decisions_are_named_before_an_audit(tmp_path):
    path, aside = tmp_path / "suspects.csv", tmp_path / f"suspects-{A}.csv"
    aside.write_bytes(b"damaged")
    with pytest.raises(InputError, match=f"{aside}: has no column"):
        read_suspects(path, A)
    write_suspects(path, [SUSPECTS[0]._replace(accept="no")], B)
    aside.rename(tmp_path / f"suspects-{B}.csv")
    with pytest.raises(InputError, match=f"suspects-{B}.csv: has no column"):
        read_suspects(path, A)
    save_table(tmp_path / f"suspects-{B}.csv", as_rows(SUSPECTS, C), COLUMNS)
    with pytest.raises(InputError, match=f"suspects-{B}.csv: has rows for other images or"):
        read_suspects(path, A)


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
