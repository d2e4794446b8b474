"""A user's own folder of images through all five scripts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL_IMAGES, is_one_line
from PIL import Image

from common.dataset import CIFAR10_CLASSES

NAMES = ("sea lions", "Möwen", "boats", "piers")
SCRIPTS = {
    "inspect_data.py": [],
    "train.py": ["sampler", "resnet9", "--validation", 0.2],
    "evaluate.py": ["out/models/sampler.pt", "out/models/resnet9.pt", "--validation", 0.2],
    "lr_sweep.py": ["original", "--learning-rates", 0.001, 0.01],
    "adversarial.py": ["out/models/resnet9.pt"],
}


@pytest.fixture
def photos(tmp_path):
    """Photographs of 24 to 90 pixels in four classes, of several formats, without a split."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        for i in range(40 - 9 * k):
            folder = tmp_path / "photos" / name / ("more" if i % 4 == 0 else "")
            folder.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            image = small.resize((24 + 11 * i % 67, 30 + 7 * i % 61), Image.Resampling.BICUBIC)
            image.save(folder / f"IMG {i}.{('jpg', 'PNG', 'webp', 'bmp', 'gif')[i % 5]}")
    return tmp_path / "photos"


# What turns an image so that the orientation in its EXIF data turns it back.
TURNED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
COUNTS = (400, 300, 230, 170, 120, 90, 65, 45, 30, 20)


@pytest.fixture
def real_photos(tmp_path):
    """Photographs of ten classes, as a user's folder might hold them.

    Twenty to 400 of each class, of 64 to 200 pixels, in several formats and colour modes, some
    of them turned, with names and folders of all kinds, and no split.
    """
    if not REAL_IMAGES:
        pytest.skip("needs real images: set CIFAR10_DIR to a CIFAR-10 folder")
    rng = np.random.default_rng(0)
    root = tmp_path / "My photos (2024)"
    for name, n in zip(CIFAR10_CLASSES, COUNTS, strict=True):
        files = sorted(Path(REAL_IMAGES, "train", name).iterdir())[:n]
        for i, file in enumerate(files):
            folder = root / f"{name} \u732b" / ("", "summer/2023", "IMG_ 01")[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                size = rng.integers(64, 201, 2).tolist()
                image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
            _save(image, folder / f"{('IMG_', 'photo ', 'DSC', 'фото-')[i % 4]}{i}", i % 9)
    (root / ".DS_Store").write_bytes(b"macOS")
    (root / "notes.txt").write_text("mine")
    return root


def _save(image, path, kind):
    """Save an image in one of nine ways."""
    endings = ["png", "webp", "BMP", "tiff", "gif", "jpeg", "jpg", "JPG", "png"]
    path = path.with_name(f"{path.name}.{endings[kind]}")
    if kind == 7:
        orientation = (3, 6, 8)[image.width % 3]
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.transpose(TURNED[orientation]).save(path, exif=exif)
    else:
        image.convert({5: "CMYK", 6: "L", 8: "RGBA"}.get(kind, "RGB")).save(path)


def test_photographs_of_ones_own_go_through_all_scripts(in_process, real_photos, tmp_path):
    options = ["--data", real_photos.name, "--image-size", 40, "--output-dir", "out"]
    commands = {
        "inspect_data.py": [],
        "train.py": ["original", "sampler", "--epochs", 1, "--batch-size", 16],
        "evaluate.py": ["out/models/original+epochs=1+batch-size=16.pt"],
        "lr_sweep.py": ["--epochs", 1, "--batch-size", 16, "--learning-rates", 0.001, 0.01],
        "adversarial.py": [
            "out/models/original+epochs=1+batch-size=16.pt", "--images", 4, "--noise-steps", 3,
            "--steps", 2, "--epsilons", 0, 8, "--universal-steps", 2,
            "--ensemble-epsilons", 8, "--ensemble-steps", 2, "--queries", 5,
        ],
    }  # fmt: skip
    for name, more in commands.items():
        done = in_process(name, *more, *options)
        assert (done.returncode, done.stderr) == (0, ""), name
        assert max(map(len, done.stdout.splitlines())) <= 80, name
    data = json.loads((tmp_path / "out/figures/inspect_data.json").read_text())["data"]
    assert data["train_counts"] == [round(0.8 * n) for n in COUNTS]
    assert data["test_counts"] == [round(0.2 * n) for n in COUNTS]
    assert data["classes"] == [f"{name} \u732b" for name in CIFAR10_CLASSES]


def test_all_scripts_take_a_folder_of_ones_own(in_process, photos, tmp_path):
    options = ["--data", "photos", "--image-size", 24, "--dry-run", "--output-dir", "out"]
    for name, more in SCRIPTS.items():
        done = in_process(name, *more, *options, "--threads", 1)
        assert done.returncode == 0, (name, done.stderr)
        assert max(map(len, done.stdout.splitlines())) <= 80, name
        assert "image folder photos" in done.stdout, name
    results = [json.loads(path.read_text()) for path in tmp_path.glob("out/*/*.json")]
    assert len(results) > 5
    for result in results:
        assert result["data"]["image_size"] == 24
        assert result["data"]["classes"] == list(NAMES)
        assert result["data"]["test_share"] == 0.2
    predicted = in_process(
        "evaluate.py", "out/models/resnet9.pt", "--predict", photos, "--output-dir", "out"
    )
    assert predicted.returncode == 0, predicted.stderr
    rows = (tmp_path / "out/figures/predict_resnet9.csv").read_text().splitlines()
    assert len(rows) == 1 + 40 + 31 + 22 + 13


def test_images_that_take_too_much_memory_stay_in_a_file(in_process, photos, tmp_path):
    options = ["--data", "photos", "--image-size", 24, "--dry-run", "--memory", "0.01M"]
    in_memory = [each for each in options if each not in ("--memory", "0.01M")]
    for name in ("inspect_data.py", "train.py", "evaluate.py", "adversarial.py"):
        more = {
            "train.py": ["original"],
            "evaluate.py": ["a/models/original.pt"],
            "adversarial.py": ["a/models/original.pt"],
        }.get(name, [])
        for folder, given in (("a", options), ("b", in_memory)):
            done = in_process(name, *more, *given, "--threads", 1, "--output-dir", folder)
            assert done.returncode == 0, (name, done.stderr)
    a, b = (tmp_path / each / "models/original.pt" for each in "ab")
    assert a.read_bytes() == b.read_bytes()
    refused = in_process("train.py", "smote", *options, "--output-dir", "a")
    assert refused.returncode == 2
    assert is_one_line(refused.stderr, "--memory")


@pytest.mark.parametrize("name", ["inspect_data.py", "train.py", "lr_sweep.py"])
def test_a_damaged_image_is_named(in_process, photos, name):
    (photos / "boats/IMG 1.PNG").write_bytes((photos / "boats/IMG 1.PNG").read_bytes()[:99])
    done = in_process(name, "--data", "photos", "--image-size", 24, "--output-dir", "out")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "boats/IMG 1.PNG: ", "--skip-damaged leaves such")


def test_what_was_left_out_is_listed(in_process, photos, tmp_path):
    (photos / "boats/IMG 1.PNG").write_bytes(b"no image")
    options = ["--data", "photos", "--image-size", 24, "--output-dir", "out", "--skip-damaged"]
    done = in_process("inspect_data.py", *options)
    assert done.returncode == 0, done.stderr
    assert "Left out, can't be read: 1: boats/IMG 1.PNG" in done.stdout
    result = json.loads((tmp_path / "out/figures/inspect_data.json").read_text())
    assert result["data"]["damaged"] == ["boats/IMG 1.PNG"]
    assert "--skip-damaged" in done.stdout.split("Next:")[1]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train.py", ["original"], ["pixels, not 32x32", "--image-size N resizes"]),
        ("train.py", ["original", "--image-size", 8], ["--image-size", "of at least 16"]),
        ("train.py", ["original", "--image-size", 300], ["--image-size", "at most 224"]),
        ("train.py", ["original", "--test-share", 1], ["--test-share", "below 1"]),
        ("train.py", ["original", "--memory", "2"], ["--memory", "2G or 500M"]),
        ("train.py", ["original", "--train-counts", "exp:0"], ["--train-counts", "at least 1"]),
        ("train.py", ["original", "--train-counts", "log:9"], ["exp:RATIO or step:RATIO"]),
    ],
)
def test_bad_input_is_one_line(in_process, photos, name, arguments, words):
    done = in_process(name, *arguments, "--data", photos, "--output-dir", "out")
    assert done.returncode == 2
    assert is_one_line(done.stderr, *words), done.stderr
