from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import random_part

from common.errors import InputError
from common.inspection import label_audit
from common.inspection.label_audit import Audit, against_truth, audit, ranking, suspects
from common.training import recipe as recipe_module
from common.training.recipe import Recipe

CLASSES = ("car", "truck", "cat")
RECIPE = Recipe(epochs=1, learning_rate=0.01)


def gaussians(counts=(3000, 300, 200), noise=(0.0, 0.1, 0.2), distance=4.0, seed=0):
    """Return points of three classes: exact log p(x | class), given labels and true labels."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(3), counts)
    centres = distance * np.array([[0, 0], [1, 0], [0.5, 0.87]])
    x = centres[true] + rng.normal(size=(len(true), 2))
    logits = -((x[:, None] - centres) ** 2).sum(2) / 2
    given = true.copy()
    for k, share in enumerate(noise):
        chosen = rng.choice(np.flatnonzero(true == k), round(share * counts[k]), replace=False)
        given[chosen] = rng.choice([j for j in range(3) if j != k], len(chosen))
    return logits.astype(np.float32), given, true


def test_joint_is_close_to_the_planted_one():
    logits, given, true = gaussians()
    found = audit(logits, given)
    planted = np.zeros((3, 3))
    np.add.at(planted, (given, true), 1)
    assert found.joint.sum() == pytest.approx(1)
    assert np.abs(found.joint * len(given) - planted).max() < 20  # of 3,500
    assert np.allclose(found.joint.sum(1), np.bincount(given) / len(given), atol=1e-6)


def test_true_label_probabilities_follow_bayes_rule():
    logits, given, _ = gaussians()
    found = audit(logits, given)
    # The densities are exact, so that calibration has nothing to change.
    for i in (0, 5, 3100, 3300, 3499):
        weights = [np.exp(float(logits[i, k])) * found.joint[given[i], k] for k in range(3)]
        expected = np.array(weights) / sum(weights)
        assert np.allclose(found.true_label_probabilities[i], expected, atol=0.05), i


def test_underconfident_logits_are_calibrated():
    logits, given, true = gaussians(distance=3)
    exact, halved = (audit(logits * t, given).error_probabilities(given) for t in (1, 0.5))
    assert halved.sum() == pytest.approx((given != true).sum(), rel=0.35)
    assert np.abs(halved - exact).mean() < 0.01


def test_suspects_are_the_expected_number_of_the_most_suspect_images():
    logits, given, true = gaussians()
    found = audit(logits, given)
    wrong, listed = found.error_probabilities(given), found.suspects
    assert len(listed) == round(wrong.sum())
    assert list(wrong[listed]) == sorted(wrong, reverse=True)[: len(listed)]
    bad = given != true
    assert bad[listed].mean() > 0.7
    assert bad[listed].sum() > 0.7 * bad.sum()


def test_clean_labels_have_few_suspects():
    logits, given, _ = gaussians(noise=(0, 0, 0), distance=8)
    assert len(audit(logits, given).suspects) <= 3


def test_suspects_name_the_most_probable_other_label():
    logits, given, _ = gaussians(distance=3)
    found = audit(logits, given)
    listed = suspects(found, given, CLASSES, [f"{i}.png" for i in range(len(given))])
    assert min(s.confidence for s in listed) < 0.4  # here the given label is more probable
    for suspect in listed:
        i = suspect.index
        p = found.true_label_probabilities[i]
        others = {CLASSES[k]: p[k] for k in range(3) if k != given[i]}
        assert suspect.file == f"{i}.png"
        assert suspect.given == CLASSES[given[i]]
        assert suspect.suggested == max(others, key=others.get)
        assert suspect.confidence == pytest.approx(max(others.values()))


def test_ranking_holds_scores_and_places_of_every_image():
    logits, given, _ = gaussians(counts=(30, 20, 10))
    found = audit(logits, given)
    rows = ranking(found, given, CLASSES, ())
    assert sorted(row["index"] for row in rows) == list(range(60))
    for name, score in (
        ("wrong", -found.error_probabilities(given)),
        ("self_confidence", found.self_confidence),
        ("normalized_margin", found.normalized_margin),
    ):
        for row in rows:
            better = (score < score[row["index"]]).sum()
            same = (score == score[row["index"]]).sum()
            assert better < row[f"place_by_{name}"] <= better + same
    # cleanlab's scores by hand: p of the given label, and its margin over the best other label.
    for row in rows[:5]:
        p = np.exp(logits[row["index"]].astype(float))
        p /= p.sum()
        k = CLASSES.index(row["given"])
        margin = (p[k] - max(np.delete(p, k)) + 1) / 2
        assert row["self_confidence"] == pytest.approx(p[k], abs=1e-3)
        assert row["normalized_margin"] == pytest.approx(margin, abs=1e-3)


def test_planted_errors_by_hand():
    given = np.array([0, 0, 0, 0, 1, 1, 2, 0])
    true = np.array([0, 0, 0, 1, 1, 1, 2, 2])  # image 3 is a truck, image 7 a cat
    wrong = np.array([0.1, 0.9, 0.0, 0.8, 0.2, 0.0, 0.0, 0.3])
    p = np.zeros((8, 3))
    p[np.arange(8), given] = 1 - wrong
    found = Audit(np.eye(3) / 3, p, -wrong, wrong, np.array([1, 3]))
    table = against_truth(found, given, true, CLASSES)
    # The ranking begins with images 1, 3 and 7, of which 3 and 7 are wrong: (1/2 + 2/3) / 2.
    expected = {"planted": 2, "recall": 0.5, "precision": 0.5, "wrong": 7 / 12}
    assert {name: table["all"][name] for name in expected} == pytest.approx(expected)
    assert table["all"]["self_confidence"] == pytest.approx(7 / 12)
    # The row of a class leaves the errors of other classes out of the ranking.
    assert (table["truck"]["wrong"], table["truck"]["recall"]) == (pytest.approx(1 / 2), 1)
    assert (table["cat"]["wrong"], table["cat"]["recall"]) == (pytest.approx(1 / 2), 0)
    assert "car" not in table
    assert against_truth(found, given, given, CLASSES) == {}


# Out-of-fold logits


@pytest.fixture
def run_folds(tmp_path):
    """Run `out_of_fold` on 26 random images, with small defaults."""
    defaults = {
        "part": random_part((12, 8, 6)), "fingerprint": "abc", "recipe": RECIPE, "folds": 3,
        "classes": CLASSES, "seed": 0, "device": torch.device("cpu"), "jobs": 1, "threads": 1,
        "cache": tmp_path,
    }  # fmt: skip
    return lambda **options: label_audit.out_of_fold(**defaults | options)


@pytest.fixture
def trained(monkeypatch):
    """Return the list of the names of the folds that are trained from now on."""
    names, fit = [], label_audit.fit
    monkeypatch.setattr(
        label_audit, "fit", lambda *a, **k: names.append(k["name"]) or fit(*a, **k)
    )
    return names


def test_no_network_is_trained_on_the_images_that_it_judges(run_folds, monkeypatch):
    seen, judged = [], []
    fit, predict = label_audit.fit, label_audit.predict
    monkeypatch.setattr(
        label_audit, "fit", lambda n, part, *a, **k: seen.append(part) or fit(n, part, *a, **k)
    )
    monkeypatch.setattr(label_audit, "predict", lambda n, x: judged.append(x) or predict(n, x))
    run_folds()
    assert len(seen) == 3
    for part, images in zip(seen, judged, strict=True):
        examples = {image.numpy().tobytes() for image in part.images}
        assert not examples & {image.numpy().tobytes() for image in images}
        assert len(part.labels) + len(images) == 26
        assert torch.bincount(part.labels).tolist() == pytest.approx([8, 5.3, 4], abs=0.8)
    assert len({image.numpy().tobytes() for images in judged for image in images}) == 26


def test_logits_have_the_order_of_the_images(run_folds, monkeypatch):
    brightness = random_part((12, 8, 6)).images.float().mean((1, 2, 3))
    monkeypatch.setattr(
        label_audit, "predict", lambda _, x: x.float().mean((1, 2, 3))[:, None].expand(-1, 3)
    )
    assert np.array_equal(run_folds(), brightness[:, None].expand(-1, 3).numpy())


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_second_audit_trains_nothing(run_folds, trained, jobs):
    first = run_folds(jobs=jobs)  # with two jobs the folds are trained in other processes
    trained.clear()
    assert np.array_equal(run_folds(), first)
    assert trained == []


def test_an_interrupted_audit_keeps_its_finished_folds(run_folds, trained, monkeypatch):
    whole = run_folds()
    fit = label_audit.fit

    def interrupted(*args, name, **options):
        if name == "fold 3":
            raise KeyboardInterrupt
        return fit(*args, name=name, **options)

    monkeypatch.setattr(label_audit, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_folds(fingerprint="interrupted")
    monkeypatch.setattr(label_audit, "fit", fit)
    trained.clear()
    assert np.array_equal(run_folds(fingerprint="interrupted"), whole)
    assert trained == ["fold 3"]


@pytest.mark.parametrize("content", [b"", b"not a pickle", None], ids=["empty", "other", "cut"])
def test_a_damaged_cache_file_is_computed_again(run_folds, trained, tmp_path, content):
    whole = run_folds()
    damaged = next(tmp_path.rglob("output.pkl"))
    damaged.write_bytes(damaged.read_bytes()[:-10] if content is None else content)
    for expected in (1, 0):  # the second time the file is whole again
        trained.clear()
        assert np.array_equal(run_folds(), whole)
        assert len(trained) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": replace(RECIPE, epochs=2)},
        {"seed": 1},
        {"folds": 2},
        {"fingerprint": "def"},
        {"device": torch.device("cpu", 0)},
        {"threads": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_audit_trains_again(run_folds, trained, change):
    run_folds()
    trained.clear()
    threads = torch.get_num_threads()
    run_folds(**change)
    torch.set_num_threads(threads)
    assert len(trained) == change.get("folds", 3)


def test_another_version_of_a_library_trains_again(run_folds, trained, monkeypatch):
    run_folds()
    monkeypatch.setattr(label_audit, "versions", lambda: {"torch": "0"})
    run_folds()
    assert len(trained) == 2 * 3


def test_a_field_that_is_added_to_recipe_keeps_the_cache_valid(run_folds, trained, monkeypatch):
    first = run_folds()
    trained.clear()

    @dataclass(frozen=True)
    class LaterRecipe(Recipe):
        new_option: int = 0

    for module in (recipe_module, label_audit):
        monkeypatch.setattr(module, "Recipe", LaterRecipe)
    later = LaterRecipe(**RECIPE.changes())
    assert np.array_equal(run_folds(recipe=later), first)
    assert trained == []
    run_folds(recipe=replace(later, new_option=1))
    assert len(trained) == 3


def test_a_class_smaller_than_the_folds_is_named(run_folds):
    with pytest.raises(InputError, match="2 train images of cat, fewer than 3 folds"):
        run_folds(part=random_part((5, 5, 2)))
