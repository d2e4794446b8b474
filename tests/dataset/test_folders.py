"""Folders of a user's own images: formats, sizes, nested folders, and a split that holds."""

import csv
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from common.dataset import CIFAR10_CLASSES, duplicates, folders
from common.dataset import load as loader
from common.dataset.image_files import read_image
from common.errors import InputError

CLASSES = {"sea lion": 12, "boat": 20, "owl": 8}


def picture(seed, width=48, height=40):
    """Return an image that resembles no other: a smooth pattern."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """A folder with three classes, no split, images of many formats and sizes."""
    root = tmp_path / "photos"
    endings, seed = ["jpg", "png", "webp", "bmp", "tif", "gif", "JPEG"], 0
    for name, n in CLASSES.items():
        for i in range(n):
            folder = root / name / ("2024/june" if i % 3 == 0 else "")
            folder.mkdir(parents=True, exist_ok=True)
            picture(seed, 34 + 7 * i % 90, 40 + i).save(folder / f"{i}.{endings[i % 7]}")
            seed += 1
    (root / "boat" / "._0.jpg").write_bytes(b"macOS")
    (root / ".thumbnails").mkdir()
    (root / "owl" / "notes.txt").write_text("owls")
    (root / "README.md").write_text("photos")
    return root


@pytest.fixture
def load(tmp_path):
    def load(root, **options):
        options = {"image_size": 24, "cache": tmp_path / "cache"} | options
        return loader.load(str(root), **options)

    return load


def both_parts(split):
    return sorted([*split.train_files, *split.test_files])


def test_a_folder_without_a_split_gets_one(photos, load):
    split = load(photos)
    assert split.classes == ("boat", "sea lion", "owl")  # the largest first
    assert split.test.counts(3) == [4, 2, 2]
    assert split.train.counts(3) == [16, 10, 6]
    assert split.train.images.shape[1:] == (3, 24, 24)
    expected = [
        str(path.relative_to(photos))
        for path in photos.rglob("*.*")
        if path.is_file() and path.suffix not in (".txt", ".md") and path.name[0] != "."
    ]
    assert both_parts(split) == sorted(expected)
    for part, files in ((split.train, split.train_files), (split.test, split.test_files)):
        for image, label, file in zip(*part, files, strict=True):
            assert file.split("/")[0] == split.classes[label]
            pixels = torch.from_numpy(read_image(photos / file, 24)).permute(2, 0, 1)
            assert torch.equal(image, pixels)
    assert load(photos).record() == split.record()
    assert load(photos, seed=1).test_files != split.test_files
    assert load(photos, cache=photos.parent / "new").fingerprint == split.fingerprint
    assert load(photos, test_share=0.5).test.counts(3) == [10, 6, 4]
    assert load(photos, classes=["owl", "boat"]).test.counts(2) == [2, 4]
    assert load(photos, classes=["all"]).fingerprint == split.fingerprint
    assert load(photos, train_counts=["exp:4"], classes=["boat", "sea lion"]).train.counts(
        2
    ) == [16, 4]


def slow_resize(image, size):
    """Return the image as torchvision's composed transforms have it, uint8 (S, S, 3)."""
    transform = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    return np.asarray(transform(image))


@pytest.mark.parametrize(("width", "height"), [(200, 90), (64, 64), (20, 33), (16, 300)])
@pytest.mark.parametrize("size", [16, 32, 97])
def test_images_are_resized_as_torchvision_does(tmp_path, width, height, size):
    image = picture(1, width, height)
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", size), slow_resize(image, size))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_the_orientation_of_exif_is_honoured(tmp_path, orientation, ending):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # What each orientation asks for: the operations that make the stored image upright.
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path, exif=exif)
    expected = slow_resize(Image.fromarray(np.ascontiguousarray(upright)), 32).astype(int)
    assert np.abs(read_image(path, 32) - expected).mean() < 4  # JPEG's and WebP's losses


def test_transparent_and_cmyk_images_lie_on_white(tmp_path):
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    cases = {
        "rgba.png": (clear, {}, 255),
        "half.webp": (Image.new("RGBA", (40, 40), (0, 0, 0, 128)), {"lossless": True}, 127),
        "la.png": (Image.new("LA", (40, 40), (0, 0)), {}, 255),
        "p.png": (palette, {"transparency": 1}, 255),
        "p.gif": (palette, {"transparency": 1}, 255),
        "cmyk.jpg": (Image.new("CMYK", (40, 40), (0, 0, 0, 0)), {}, 255),
        "grey.tif": (Image.new("L", (40, 40), 90), {}, 90),
        "deep.tif": (Image.fromarray(np.full((40, 40), 90 * 256, np.uint16)), {}, 90),
    }
    for name, (image, options, grey) in cases.items():
        image.save(tmp_path / name, **options)
        assert np.abs(read_image(tmp_path / name, 20) - float(grey)).max() <= 1, name


def test_of_a_gif_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif", 20) == (255, 0, 0)).all()


def test_of_a_photograph_with_previews_the_photograph_is_read(tmp_path):
    photograph, preview = picture(1), picture(2, 24, 20)
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    photograph.save(tmp_path / "b.jpg", "JPEG")
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    a, b = (read_image(tmp_path / name, 20) for name in ("a.jpg", "b.jpg"))
    assert np.array_equal(a, b)


def test_exif_data_that_cannot_be_read_do_no_harm(tmp_path):
    image = picture(3)
    file = io.BytesIO()
    image.save(file, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(9))
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    assert read_image(tmp_path / "a.jpg", 20).shape == (20, 20, 3)


def test_near_duplicates_stay_on_one_side(photos, load):
    for k in range(4):  # four copies of each of four boats: mirrored, brighter, as JPEG, larger
        image = picture(100 + k, 60, 60)
        image.save(photos / f"boat/a{k}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / f"boat/b{k}.png")
        image.point(lambda value: min(255, value + 5)).save(photos / f"boat/c{k}.png")
        image.save(photos / f"boat/d{k}.jpg", quality=60)
        image.resize((130, 130)).save(photos / f"boat/e{k}.png")
    sides = set()
    for seed in range(8):
        split = load(photos, seed=seed)
        assert split.test.counts(3)[0] == 8
        for k in range(4):
            copies = {f"boat/{name}{k}" for name in "abcde"}
            inside = {f.rpartition(".")[0] for f in split.test_files} & copies
            assert inside in (set(), copies)
            sides.add(len(inside))
        held_out = load(photos, seed=seed, validation=0.3)
        groups = held_out.train_groups.tolist()
        assert len(groups) == len(held_out.train.labels)
        left = {f.rpartition(".")[0] for f in held_out.train_files}
        for k in range(4):
            copies = {f"boat/{name}{k}" for name in "abcde"}
            assert left & copies in (set(), copies)
    assert sides == {0, 5}


def test_frames_of_a_scene_are_not_all_compared_with_each_other(photos, load, monkeypatch):
    scene, rng, n = np.asarray(picture(100, 24, 24)), np.random.default_rng(0), 60
    for k in range(n):
        frame = scene + rng.normal(0, 4, scene.shape)
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(photos / f"boat/a{k}.png")
    compared, distances = [], duplicates._distances
    monkeypatch.setattr(
        duplicates, "_distances", lambda a, b: compared.append(len(a)) or distances(a, b)
    )
    split = load(photos)
    assert not any(file.startswith("boat/a") for file in split.test_files)
    assert n - 1 <= sum(compared) < 4 * n  # of 1,770 pairs


def write_groups(path, rows, columns=("file", "group")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def test_images_of_a_group_stay_on_one_side(photos, load, tmp_path):
    files = both_parts(load(photos))
    boats = [name for name in files if name.startswith("boat")]
    rows = [(name, f"trip {i % 5}") for i, name in enumerate(boats)]
    path = write_groups(tmp_path / "groups.csv", rows)
    found = set()
    for seed in range(5):
        split = load(photos, groups=path, seed=seed, test_share=0.25)
        trips = {trip for name, trip in rows if name in split.test_files}
        assert len(trips) == 1
        assert split.test.counts(3)[0] == 4
        found |= trips
    assert len(found) > 1
    assert load(photos, groups=path).fingerprint != load(photos).fingerprint


def test_a_file_of_a_group_may_be_spelled_in_any_way(photos, load, tmp_path):
    names = [name for name in both_parts(load(photos)) if name.startswith("boat")]
    spelled = [f"./{names[0]}", str(photos / names[1]), names[2].replace("/", "//")]
    spelled += [f"owl/../{names[3]}", *names[4:]]
    trips = [f"trip {i % 5}" for i in range(len(names))]
    plain, other = (
        write_groups(tmp_path / f"{k}.csv", zip(each, trips, strict=True))
        for k, each in enumerate((names, spelled))
    )
    found = [load(photos, groups=path, cache=tmp_path / path.stem) for path in (plain, other)]
    assert found[0].test_files == found[1].test_files
    assert found[0].train_groups.tolist() == found[1].train_groups.tolist()


def test_groups_may_name_files_that_are_not_asked_for(photos, load, tmp_path):
    names = both_parts(load(photos))
    path = write_groups(tmp_path / "groups.csv", [(name, name) for name in names])
    load(photos, groups=path, classes=["boat", "owl"])
    load(photos, groups=path, dry_run=True)


def test_parts_of_other_names_are_no_classes(photos, load):
    for part in ("Training", "Testing"):
        shutil.copytree(photos, photos.with_name("both") / part)
    with pytest.raises(InputError, match="folders Testing, Training are parts of a data set"):
        load(photos.with_name("both"))


def test_a_folder_may_have_the_classes_automobile_and_car(photos, load):
    for old, new in (("boat", "automobile"), ("owl", "car")):
        (photos / old).rename(photos / new)
    assert load(photos).classes == ("automobile", "sea lion", "car")


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([], ("file", "person"), "its columns are file, person; they must be file, group"),
        ([], ("file", "group", "more"), "they must be file, group"),
        ([("boat/none.png", "a")], ("file", "group"), "line 2: .* has no file boat/none.png"),
        ([("owl/notes.txt", "a")], ("file", "group"), "notes.txt is none of the images in"),
        ([("../groups.csv", "a")], ("file", "group"), "groups.csv is none of the images in"),
        ([("", "a")], ("file", "group"), "line 2: must have a file and a group"),
        ([("boat/1.png",)], ("file", "group"), "line 2: must have a file and a group"),
        ([("boat/1.png", "a", "b")], ("file", "group"), "line 2: must have a file and a group"),
        ([("a", "boat/1.png")], ("group", "file", "file"), "they must be file, group"),
        (
            [("boat/1.png", "a"), ("owl/1.png", "a")],
            ("file", "group"),
            "line 3: group a has images of boat and owl; a group must lie in one class",
        ),
    ],
)
def test_groups_that_cannot_be_used_are_named(photos, load, tmp_path, rows, columns, words):
    path = write_groups(tmp_path / "groups.csv", rows, columns)
    with pytest.raises(InputError, match=rf"--groups .*groups\.csv.*{words}"):
        load(photos, groups=path)


def test_the_columns_of_groups_come_in_any_order(photos, load, tmp_path):
    files = both_parts(load(photos))[:6]
    rows = [(name, "trip") for name in files if name.startswith("boat")]
    path = write_groups(tmp_path / "groups.csv", rows)
    turned = write_groups(tmp_path / "turned.csv", [r[::-1] for r in rows], ("group", "file"))
    assert load(photos, groups=path).test_files == load(photos, groups=turned).test_files


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'file,group\n"boat/1.png,a\n'])
def test_groups_that_are_no_table_are_named(photos, load, tmp_path, content):
    (tmp_path / "groups.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"groups\.csv: (its columns are none|not a CSV file)"):
        load(photos, groups=tmp_path / "groups.csv")
    with pytest.raises(InputError, match=r"none\.csv: can't be read"):
        load(photos, groups=tmp_path / "none.csv")


def test_other_sizes_are_refused_without_the_option(photos, load):
    with pytest.raises(InputError, match="not 32x32; --image-size N resizes the shorter"):
        load(photos, image_size=None)


def test_folders_beside_train_and_test_are_named(image_folder, tmp_path, capsys):
    (image_folder / "val/cat").mkdir(parents=True)
    loader.load(str(image_folder), dry_run=True, cache=tmp_path / "cache")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--data {image_folder}: not read, beside train and test: val;")


def test_a_folder_too_many_is_named(photos, load):
    with pytest.raises(InputError, match=f"one class, photos.* give --data {photos} if"):
        load(photos.parent)


def test_a_class_without_test_images_is_named(image_folder, tmp_path):
    for path in (image_folder / "test/cat").glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="class cat: has no test images; add some"):
        loader.load(str(image_folder), classes=["cat", "truck"], cache=tmp_path / "cache")


@pytest.mark.parametrize("ending", ["jfif", "JPE"])
def test_other_endings_of_jpeg_are_read(photos, load, ending):
    before = len(load(photos).train_files) + len(load(photos).test_files)
    picture(999, 50, 40).save(photos / "owl/more.jpg")
    (photos / "owl/more.jpg").rename(photos / f"owl/more.{ending}")
    assert len(load(photos).train_files) + len(load(photos).test_files) == before + 1


def test_damaged_images_are_named_or_left_out(photos, load):
    whole = load(photos)
    (photos / "owl/1.png").write_bytes((photos / "owl/1.png").read_bytes()[:200])
    (photos / "boat/new.jpg").write_text("no image")
    for _ in range(2):
        with pytest.raises(InputError, match=r"boat/new\.jpg: .*--skip-damaged leaves"):
            load(photos)
    for _ in range(2):  # read, then from the cache
        split = load(photos, skip_damaged=True)
        assert split.record()["damaged"] == ["boat/new.jpg", "owl/1.png"]
        assert both_parts(split) == sorted(set(both_parts(whole)) - {"owl/1.png"})
    with pytest.raises(InputError, match="pixels, not 32x32"):  # not damaged
        load(photos, skip_damaged=True, image_size=None)


def test_damaged_images_of_a_split_are_left_out_too(image_folder, load):
    (image_folder / "train/cat/0003.png").write_bytes(b"hello")
    (image_folder / "test/truck/0001.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"0003\.png: .*--skip-damaged"):
        load(image_folder)
    split = load(image_folder, skip_damaged=True)
    assert split.classes == ("car", "cat", "truck")
    assert (split.train.counts(3), split.test.counts(3)) == ([8, 7, 8], [4, 4, 3])
    assert sorted(split.changes["damaged"]) == ["test/truck/0001.png", "train/cat/0003.png"]


def test_classes_that_are_too_small_are_named(photos, load):
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match=r"class empty: 0 image.s., and the split .* least 2"):
        load(photos)
    assert load(photos, classes=["boat", "owl"]).classes == ("boat", "owl")
    (photos / "empty").rmdir()
    (photos / "twins").mkdir()
    for name in ("a.png", "b.png"):
        picture(7).save(photos / "twins" / name)
    with pytest.raises(InputError, match="class twins: all its images are near duplicates"):
        load(photos)
    (photos / "twins/b.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"class twins: 1 image.s., and the split .* least 2"):
        load(photos, skip_damaged=True)
    for name in ("sea lion", "owl", "twins"):
        (photos / name).rename(photos / f".{name}")
    with pytest.raises(InputError, match="one class, boat, and there must be two or more; put"):
        load(photos)


def test_a_validation_part_that_is_too_small_is_named(image_folder, load):
    with pytest.raises(
        InputError, match=r"--validation 0\.05: .* there are 8 train .* needs 20"
    ):
        load(image_folder, validation=0.05)


def test_half_a_split_is_explained(photos, load):
    whole = photos.rename(photos.with_name("train"))
    with pytest.raises(
        InputError, match=r"folder train, but none named test; give --data .*/tr"
    ):
        load(whole.parent)
    assert load(whole).classes == ("boat", "sea lion", "owl")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test_share": 0.3}, "--test-share: synthetic .* has test images of its own"),
        ({"groups": "a.csv"}, "--groups: synthetic .* has test images of its own"),
        ({"skip_damaged": True}, "--skip-damaged: synthetic .* has no image files"),
    ],
)
def test_options_that_do_nothing_are_refused(load, options, words):
    with pytest.raises(InputError, match=words):
        load("synthetic", **options)


def test_a_link_to_a_folder_is_not_followed(photos, load):
    (photos / "boat/more").symlink_to(photos / "owl")
    with pytest.raises(InputError, match=r"boat/more: a link to a folder"):
        load(photos)


def test_a_folder_of_cifar_10_is_the_exercise(tmp_path, load):
    for part, n in (("train", 3), ("test", 2)):
        for k, name in enumerate(CIFAR10_CLASSES):
            folder = tmp_path / "cifar" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                picture(100 * k + i, 32, 32).save(folder / f"{part}{i}.png")
    full = {"train_counts": ["full"], "test_counts": ["full"]}
    assert load(tmp_path / "cifar", **full).classes == ("car", "truck", "cat")
    every = load(tmp_path / "cifar", classes=["all"])
    assert every.classes == tuple(name.replace("automobile", "car") for name in CIFAR10_CLASSES)
    assert every.train.counts(10) == [3] * 10
    with pytest.raises(InputError, match="4949 images of automobile requested, there are 3"):
        load(tmp_path / "cifar")


def test_a_dry_run_reads_a_handful(photos, load, monkeypatch):
    monkeypatch.setattr(folders, "DRY_RUN", {"train": (8, 4), "test": (2, 1)})
    read = []
    reader = folders.read_images
    monkeypatch.setattr(
        folders, "read_images", lambda paths, size: read.extend(paths) or reader(paths, size)
    )
    split = load(photos, dry_run=True)
    assert len(read) == 10 + 5 + 5
    assert split.test.counts(3) == [2, 1, 1]


def test_many_images_stay_in_a_file(photos, load):
    whole = load(photos)
    for _ in range(2):
        split = load(photos, memory=1000, cache=photos.parent / "other")
        assert split.fingerprint == whole.fingerprint
        assert torch.equal(split.test.images[:], whole.test.images)


@pytest.mark.parametrize("size", [20, 48])
def test_other_sources_are_resized(load, size):
    counts = {"train_counts": [3, 2, 2], "test_counts": [2, 1, 1]}
    native, resized = (load("synthetic", **counts, image_size=n) for n in (None, size))
    assert (native.image_size, resized.image_size) == (32, size)
    for image, other in zip(native.train.images, resized.train.images, strict=True):
        assert torch.equal(v2.Resize(size, antialias=True)(image), other)
    assert native.fingerprint != resized.fingerprint
