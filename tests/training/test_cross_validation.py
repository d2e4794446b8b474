"""Networks of folds: who judges what, and what an interrupted call keeps."""

from dataclasses import dataclass, replace
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from conftest import is_one_line, random_part

from common.dataset.cache_file import write_arrays
from common.dataset.split import LabelledImages
from common.dataset.stored_images import gather
from common.errors import InputError
from common.training import cross_validation
from common.training import recipe as recipe_module
from common.training.recipe import Recipe

CLASSES = ("car", "truck", "cat")
RECIPE = Recipe(epochs=1, learning_rate=0.01)


@pytest.fixture
def run_folds(tmp_path):
    """Run `out_of_fold` on 26 random images, with small defaults."""
    defaults = {
        "part": random_part((12, 8, 6)), "fingerprint": "abc", "recipe": RECIPE, "folds": 3,
        "classes": CLASSES, "seed": 0, "device": torch.device("cpu"), "jobs": 1, "threads": 1,
        "cache": tmp_path,
    }  # fmt: skip
    return lambda **options: cross_validation.out_of_fold(**defaults | options)


@pytest.fixture
def watched_fit(monkeypatch):
    """Return a mock that records the calls of `fit` and passes them on."""
    watched_fit = Mock(wraps=cross_validation.fit)
    monkeypatch.setattr(cross_validation, "fit", watched_fit)
    return watched_fit


def test_no_network_is_trained_on_images_that_it_judges(run_folds, watched_fit, monkeypatch):
    def brightness(images):
        return images.float().mean((1, 2, 3))[:, None].expand(-1, 3)

    predict = Mock(side_effect=lambda _, images: brightness(images))
    monkeypatch.setattr(cross_validation, "predict", predict)
    part = random_part((12, 8, 6))
    # The logits have the order of the images, and each fold judges other images.
    assert np.array_equal(run_folds(), brightness(part.images).numpy())
    assert watched_fit.call_count == 3
    for fit_call, predict_call in zip(watched_fit.mock_calls, predict.mock_calls, strict=True):
        (_, train, *_), (_, judged) = fit_call.args, predict_call.args
        assert not (train.images[:, None] == judged).flatten(2).all(2).any()
        assert len(train.labels) + len(judged) == 26
        assert torch.bincount(train.labels).tolist() == pytest.approx([8, 5.3, 4], abs=0.8)


def test_images_of_a_group_are_judged_together(run_folds, watched_fit):
    part = random_part((12, 8, 6))
    groups = torch.arange(26) // 2
    labels = part.labels[2 * groups]  # of one class
    part = LabelledImages(part.images, labels)
    for seed in range(3):
        folds = cross_validation.stratified_folds(labels, groups, CLASSES, 3, seed)
        assert sorted(np.concatenate(folds).tolist()) == list(range(26))
        for fold in folds:
            others = np.setdiff1d(np.arange(26), fold)
            assert not set(groups[fold].tolist()) & set(groups[others].tolist())
    run_folds(part=part)
    run_folds(part=part, groups=groups)
    assert watched_fit.call_count == 6  # with groups the folds are others
    of_one = torch.where(labels == 2, 99, groups)
    with pytest.raises(InputError, match="images of cat are of one group"):
        run_folds(part=part, groups=of_one)


def test_shifted_images_are_judged_by_their_average(run_folds, monkeypatch):
    def first_row(_, images):  # what a shift changes
        return images[:, 0, 0, :3].float()

    monkeypatch.setattr(cross_validation, "predict_shifted", lambda *a: 2 * first_row(*a))
    monkeypatch.setattr(cross_validation, "predict", first_row)
    assert np.array_equal(run_folds(shifted=True), 2 * run_folds())


@pytest.mark.parametrize("jobs", [1, 2])
def test_only_other_versions_train_the_folds_again(run_folds, watched_fit, monkeypatch, jobs):
    first = run_folds(jobs=jobs)  # with two jobs the folds are trained in other processes
    watched_fit.reset_mock()
    assert np.array_equal(run_folds(), first)
    watched_fit.assert_not_called()
    monkeypatch.setattr(cross_validation, "versions", lambda: {"torch": "0"})
    run_folds()
    assert watched_fit.call_count == 3


def test_an_interrupted_call_keeps_its_finished_folds(run_folds, watched_fit):
    whole = run_folds()
    watched_fit.side_effect = [
        DEFAULT,
        DEFAULT,
        KeyboardInterrupt,
    ]  # DEFAULT: the mock calls fit
    with pytest.raises(KeyboardInterrupt):
        run_folds(fingerprint="interrupted")
    watched_fit.reset_mock(side_effect=True)
    assert np.array_equal(run_folds(fingerprint="interrupted"), whole)
    assert [call.kwargs["name"] for call in watched_fit.mock_calls] == ["fold 3"]


@pytest.mark.parametrize("damage", ["empty", "other", "cut", "a changed bit", "other shape"])
def test_a_damaged_cache_file_is_computed_again(
    run_folds, watched_fit, tmp_path, capfd, damage
):
    whole = run_folds()
    damaged, *_ = sorted(tmp_path.glob("folds-*.npz"))
    content = damaged.read_bytes()
    if damage == "other shape":
        write_arrays(damaged, logits=np.zeros((2, 3), np.float32))
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        contents = {"empty": b"", "other": b"not a cache", "cut": content[:-10]}
        damaged.write_bytes(contents.get(damage, changed))
    for expected in (1, 0):  # the second time the file is whole again
        watched_fit.reset_mock()
        assert np.array_equal(run_folds(), whole)
        assert watched_fit.call_count == expected
    assert damaged.read_bytes() == content
    assert capfd.readouterr() == ("", "")


def test_no_cache_is_needed(run_folds, tmp_path, capfd):
    (tmp_path / "file").touch()
    found = run_folds(cache=tmp_path / "file/data")  # not even root can write there
    assert is_one_line(capfd.readouterr().err, "file/data: can't be written")
    assert np.array_equal(run_folds(), found)


def test_folds_that_end_in_another_order_keep_their_places(run_folds, monkeypatch):
    def call_in_processes(function, arguments, jobs):
        assert (len(arguments), jobs) == (3, 2)
        yield from reversed([(i, function(*call)) for i, call in enumerate(arguments)])

    one_by_one = run_folds(fingerprint="other")
    monkeypatch.setattr(cross_validation, "call_in_processes", call_in_processes)
    assert np.array_equal(run_folds(jobs=2), one_by_one)
    assert np.array_equal(run_folds(jobs=2), one_by_one)  # nothing is left to train


@pytest.mark.parametrize(
    ("option", "value"),
    [("recipe", replace(RECIPE, epochs=2)), ("seed", 1), ("folds", 2), ("fingerprint", "def"),
     ("device", torch.device("cpu", 0)), ("threads", 2), ("shifted", True)],
)  # fmt: skip
def test_other_settings_train_again(run_folds, watched_fit, option, value):
    run_folds()
    watched_fit.reset_mock()
    threads = torch.get_num_threads()
    run_folds(**{option: value})
    torch.set_num_threads(threads)
    assert watched_fit.call_count == (2 if option == "folds" else 3)


def test_a_new_field_of_recipe_keeps_the_cache_valid(run_folds, watched_fit, monkeypatch):
    first = run_folds()
    watched_fit.reset_mock()

    @dataclass(frozen=True)
    class LaterRecipe(Recipe):
        new_option: int = 0

    for module in (recipe_module, cross_validation):
        monkeypatch.setattr(module, "Recipe", LaterRecipe)
    later = LaterRecipe(**RECIPE.changes())
    assert np.array_equal(run_folds(recipe=later), first)
    watched_fit.assert_not_called()
    run_folds(recipe=replace(later, new_option=1))
    assert watched_fit.call_count == 3


def test_larger_images_in_a_file_have_the_logits_of_images_in_memory(run_folds, tmp_path):
    part = random_part((12, 8, 6))
    larger = LabelledImages(part.images.repeat(1, 1, 2, 2)[..., :48, :48], part.labels)
    in_file = gather([larger.images.numpy()], 26, 48, 0, tmp_path / "images")
    found = run_folds(part=LabelledImages(in_file, part.labels), fingerprint="file")
    assert np.array_equal(found, run_folds(part=larger, fingerprint="memory"))


def test_a_class_smaller_than_the_folds_is_named(run_folds):
    with pytest.raises(
        InputError, match=r"^3 folds need 3 train images of each class, and of cat there are 2;"
    ):
        run_folds(part=random_part((5, 5, 2)))
