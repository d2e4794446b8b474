"""evaluate.py --predict: classes of image files that belong to no data set."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from conftest import is_one_line
from PIL import Image
from torchvision.transforms import v2

from common.files import load_result
from common.networks.build import build
from common.networks.checkpoint import load_checkpoint, save_checkpoint
from common.reporting import predictions

CLASSES = ["car", "truck", "a very long name of a class, longer than a column"]
SIZE = 24
FILES = ["a.PNG", "b.png", "sub/c.jpg", "sub/deeper/d.webp", "z.bmp"]


@pytest.fixture
def checkpoint(tmp_path):
    """Save net.pt, for images of 24x24 pixels, in the current folder."""
    arguments = {"classes": 3, "image_size": SIZE}
    network = build("simple-cnn", arguments)
    with torch.no_grad():  # so that the probabilities are not all near a third
        network.head.weight.mul_(30)
    save_checkpoint(
        tmp_path / "net.pt", network, "simple-cnn", arguments, classes=CLASSES, recipe={},
        seed=0, trained_on_test=False, data=None, image_size=SIZE,
    )  # fmt: skip
    return tmp_path / "net.pt"


@pytest.fixture
def photos(tmp_path):
    """A folder of images of different sizes, with files that are none or are hidden."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for i, name in enumerate([*FILES, ".hidden.png", ".hidden/e.png"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + 9 * i, 70 - 5 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities_of(path, checkpoint):
    """Return the probabilities of one file, by PIL, torchvision and the network alone."""
    transform = v2.Compose([
        v2.Resize(SIZE, antialias=True),
        v2.CenterCrop(SIZE),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    with Image.open(path) as image:
        x = transform(image.convert("RGB"))
    with torch.no_grad():
        logits = load_checkpoint(checkpoint).network(x[None])
    return logits.softmax(1)[0].numpy()


def test_every_image_file_gets_the_probabilities_of_the_network(
    in_process, checkpoint, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(predictions, "CHUNK_BYTES", 2 * 3 * SIZE**2)  # two images at a time
    done = in_process("evaluate.py", "net.pt", "--predict", photos, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = read_rows(tmp_path / "figures/predict_net.csv")
    assert [row["file"] for row in rows] == [str(photos / name) for name in FILES]
    assert list(rows[0]) == ["file", "class", *(f"p({name})" for name in CLASSES), "margin"]
    for row in rows:
        expected = probabilities_of(row["file"], checkpoint)
        assert [float(row[f"p({name})"]) for name in CLASSES] == pytest.approx(
            expected, abs=2e-6
        )
        assert row["class"] == CLASSES[expected.argmax()]
        ranked = sorted(expected)
        assert float(row["margin"]) == pytest.approx(ranked[2] - ranked[1], abs=3e-6)

    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "== net on 5 images ==" in done.stdout
    assert "none: below" not in done.stdout
    assert "not calibrated" in done.stdout
    least = done.stdout.split("second class:\n")[1].split("\n\n")[0].splitlines()[1:]
    margins = sorted(float(row["margin"]) for row in rows)[:3]
    assert [line.split()[-1] for line in least] == [f"{margin:.3f}" for margin in margins]
    record = load_result(tmp_path / "figures/predict_net.json")
    assert record["data"] == {"source": [str(photos)], "files": len(FILES)}
    predicted = [row["class"] for row in rows]
    assert record["images"] == {name: predicted.count(name) for name in CLASSES}
    assert [each[0] for each in record["least_certain"]] == pytest.approx(margins, abs=1e-6)


def test_images_below_the_least_probability_have_no_class(
    in_process, checkpoint, photos, tmp_path
):
    highest = {name: probabilities_of(photos / name, checkpoint).max() for name in FILES}
    least = float(np.median(list(highest.values())))
    below = {str(photos / name) for name, p in highest.items() if p < least - 1e-6}
    assert 0 < len(below) < len(FILES)
    done = in_process(
        "evaluate.py", "net.pt", "--predict", photos, "--abstain", least - 1e-6,
        "--output-dir", tmp_path,
    )  # fmt: skip
    rows = read_rows(tmp_path / "figures/predict_net.csv")
    assert {row["file"] for row in rows if row["class"] == ""} == below
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("none: below")]
    assert line.split()[-1] == str(len(below))
    table = done.stdout.split("images\n")[1].split("\n\n")[0].splitlines()
    assert sum(int(line.split()[-1]) for line in table) == len(FILES)
    record = load_result(tmp_path / "figures/predict_net.json")
    assert (record["abstain"], record["abstained"]) == (least - 1e-6, len(below))


def test_files_that_cant_be_read_are_listed_and_not_fatal(
    in_process, checkpoint, photos, tmp_path
):
    (photos / "b.png").write_bytes((photos / "a.PNG").read_bytes()[:100])
    done = in_process(
        "evaluate.py", "net.pt", "--predict", photos, photos / "notes.txt", photos / "z.bmp",
        "--output-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    listed = done.stderr.splitlines()
    assert len(listed) == 2
    assert all(
        str(photos / n) in line for n, line in zip(("b.png", "notes.txt"), listed, strict=True)
    )
    rows = read_rows(tmp_path / "figures/predict_net.csv")
    read = [name for name in FILES if name != "b.png"]  # z.bmp once, although given twice
    assert [row["file"] for row in rows] == [str(photos / name) for name in read]
    assert "== net on 4 images ==" in done.stdout


def test_several_checkpoints_have_a_file_each(in_process, checkpoint, photos, tmp_path):
    checkpoint.with_name("two.pt").write_bytes(checkpoint.read_bytes())
    in_process(
        "evaluate.py",
        "net.pt",
        "two.pt",
        "--predict",
        photos / "z.bmp",
        "--output-dir",
        tmp_path,
    )
    one, two = (read_rows(tmp_path / f"figures/predict_{name}.csv") for name in ("net", "two"))
    assert one == two
    assert [row["file"] for row in one] == [str(photos / "z.bmp")]


def test_a_folder_that_cannot_be_read_is_named(in_process, checkpoint, photos, monkeypatch):
    # Tests may run as root, whom no permission stops.
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("common.dataset.image_files.os.scandir", refuse)
    done = in_process("evaluate.py", "net.pt", "--predict", photos, "--output-dir", "o")
    assert done.returncode == 2
    assert is_one_line(done.stderr, f"--predict: {photos} can't be read (Permission denied)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--abstain", "0.5"], ["--abstain", "--predict; add that option"]),
        (["--predict", "photos", "--abstain", "1"], ["--abstain", "below 1"]),
        (["--predict", "nowhere"], ["--predict: nowhere: no such file or folder"]),
        (["--predict", "empty"], ["--predict: empty: no image files", "png, jpg"]),
        (["--predict", "photos/notes.txt"], ["no image can be read", "notes.txt: not a PNG"]),
        (["--predict", "photos", "net.pt"], ["--predict net.pt: a checkpoint; name it before"]),
        (["--predict", "photos", "--prior", "1", "1", "1"], ["--prior does nothing"]),
        (["--predict", "photos", "--cost", "c.csv"], ["--cost does nothing"]),
        (["--predict", "photos", "--ensemble"], ["--ensemble does nothing"]),
        (["--predict", "photos", "--export", "n.onnx"], ["--export does nothing"]),
        (["--predict", "photos", "--data", "synthetic"], ["--data does nothing"]),
        (["--predict", "photos", "--image-size", "64"], ["--image-size does nothing"]),
    ],
)
def test_bad_input_is_one_line(in_process, checkpoint, photos, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    done = in_process("evaluate.py", "net.pt", *arguments, "--output-dir", tmp_path / "o")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "evaluate.py", *words), done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "o").exists()
