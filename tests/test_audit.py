"""The label audit, against labels whose errors are known and Bayes' rule by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_part

from common import audit, models
from common.options import InputError
from common.recipes import Recipe

CLASSES = ("car", "truck", "cat")
RECIPE = Recipe(epochs=1, learning_rate=0.01)


def gaussians(counts=(3000, 300, 200), noise=(0.0, 0.1, 0.2), distance=4.0, seed=0):
    """Points of three classes: their exact log p(x | class), given and true labels."""
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


def test_the_joint_comes_near_the_planted_one():
    logits, given, true = gaussians()
    found = audit.audit(logits, given)
    planted = np.zeros((3, 3))
    np.add.at(planted, (given, true), 1)
    assert found.joint.sum() == pytest.approx(1)
    assert np.abs(found.joint * len(given) - planted).max() < 20  # of 3,500
    assert np.allclose(found.joint.sum(1), np.bincount(given) / len(given), atol=1e-6)


def test_probabilities_of_true_labels_are_those_of_bayes_rule():
    logits, given, _ = gaussians()
    found = audit.audit(logits, given)
    # Of exact densities nothing is to be calibrated.
    for i in (0, 5, 3100, 3300, 3499):
        weights = [np.exp(float(logits[i, k])) * found.joint[given[i], k] for k in range(3)]
        assert np.allclose(found.true[i], np.array(weights) / sum(weights), atol=0.05), i


def test_networks_that_are_not_sure_enough_are_calibrated():
    logits, given, true = gaussians(distance=3)
    exact, doubtful = (audit.audit(logits * t, given).wrong(given) for t in (1, 0.5))
    assert doubtful.sum() == pytest.approx((given != true).sum(), rel=0.35)
    assert np.abs(doubtful - exact).mean() < 0.01  # as of the logits that are right


def test_as_many_are_listed_as_are_expected_and_the_most_suspect_first():
    logits, given, true = gaussians()
    found = audit.audit(logits, given)
    wrong = found.wrong(given)
    assert len(found.suspects) == round(wrong.sum())
    assert list(wrong[found.suspects]) == sorted(wrong, reverse=True)[: len(found.suspects)]
    bad = given != true
    assert bad[found.suspects].mean() > 0.7
    assert bad[found.suspects].sum() > 0.7 * bad.sum()


def test_clean_labels_have_few_suspects():
    logits, given, _ = gaussians(noise=(0, 0, 0), distance=8)
    assert len(audit.audit(logits, given).suspects) <= 3


def test_suspects_name_the_likeliest_other_label():
    logits, given, _ = gaussians(distance=3)
    found = audit.audit(logits, given)
    files = [f"{i}.png" for i in range(len(given))]
    listed = audit.suspects(found, given, CLASSES, files)
    assert min(suspect.confidence for suspect in listed) < 0.4  # the given label is likelier
    for suspect in listed:
        i = suspect.index
        others = {CLASSES[k]: found.true[i, k] for k in range(3) if k != given[i]}
        assert suspect.file == f"{i}.png"
        assert suspect.given == CLASSES[given[i]]
        assert suspect.suggested == max(others, key=others.get)
        assert suspect.confidence == pytest.approx(max(others.values()))


def test_the_ranking_holds_every_image_and_its_three_places():
    logits, given, _ = gaussians(counts=(30, 20, 10))
    found = audit.audit(logits, given)
    rows = audit.ranking(found, given, CLASSES, ())
    assert sorted(row["index"] for row in rows) == list(range(60))
    for name, score in (
        ("wrong", -found.wrong(given)),
        ("self_confidence", found.self_confidence),
        ("normalized_margin", found.normalized_margin),
    ):
        for row in rows:
            better = (score < score[row["index"]]).sum()
            same = (score == score[row["index"]]).sum()
            assert better < row[f"place_by_{name}"] <= better + same
    # By hand: the balanced probabilities of the given label, and less the greatest other.
    for row in rows[:5]:
        p = np.exp(logits[row["index"]].astype(float))
        p /= p.sum()
        k = CLASSES.index(row["given"])
        margin = (p[k] - max(np.delete(p, k)) + 1) / 2
        assert row["self_confidence"] == pytest.approx(p[k], abs=1e-3)
        assert row["normalized_margin"] == pytest.approx(margin, abs=1e-3)


def test_planted_errors_are_counted_by_hand():
    given = np.array([0, 0, 0, 0, 1, 1, 2, 0])
    true = np.array([0, 0, 0, 1, 1, 1, 2, 2])  # image 3, a truck, and 7, a cat, are wrong
    wrong = np.array([0.1, 0.9, 0.0, 0.8, 0.2, 0.0, 0.0, 0.3])
    p = np.zeros((8, 3))
    p[np.arange(8), given] = 1 - wrong
    found = audit.Audit(np.eye(3) / 3, p, -wrong, wrong, np.array([1, 3]))
    table = audit.against_truth(found, given, true, CLASSES)
    assert table["all"]["planted"] == 2
    assert table["all"]["recall"] == 0.5
    assert table["all"]["precision"] == 0.5
    # In order: 1, 3*, 7*, ...: (1/2 + 2/3) / 2.
    assert table["all"]["wrong"] == pytest.approx(7 / 12)
    assert table["all"]["self_confidence"] == pytest.approx(7 / 12)
    assert table["truck"]["wrong"] == pytest.approx(1 / 2)
    assert table["cat"]["wrong"] == pytest.approx(1 / 2)  # the truck is left out
    assert (table["truck"]["recall"], table["cat"]["recall"]) == (1.0, 0.0)
    assert "car" not in table
    assert audit.against_truth(found, given, given, CLASSES) == {}


@pytest.fixture
def folds(tmp_path):
    part = random_part((12, 8, 6))

    def run(recipe=RECIPE, part=part, **options):
        usual = {"folds": 3, "classes": CLASSES, "seed": 0, "device": torch.device("cpu")}
        usual |= {"jobs": 1, "threads": 1, "cache": tmp_path}
        return audit.out_of_fold(part, "fingerprint", recipe, **(usual | options))

    return run


def test_no_network_sees_the_images_that_it_judges(folds, monkeypatch):
    seen, judged = [], []
    fit, predict = audit.training.fit, models.predict
    monkeypatch.setattr(
        audit.training,
        "fit",
        lambda n, part, *a, **k: seen.append(part) or fit(n, part, *a, **k),
    )
    monkeypatch.setattr(audit.models, "predict", lambda n, x: judged.append(x) or predict(n, x))
    folds()
    assert len(seen) == 3
    for part, images in zip(seen, judged, strict=True):
        trained = {image.numpy().tobytes() for image in part.images}
        assert not trained & {image.numpy().tobytes() for image in images}
        assert len(part.labels) + len(images) == 26
        assert torch.bincount(part.labels).tolist() == pytest.approx([8, 5.3, 4], abs=0.8)
    everyone = {image.numpy().tobytes() for images in judged for image in images}
    assert len(everyone) == 26


def test_logits_stand_at_their_images_places(folds, monkeypatch):
    brightness = random_part((12, 8, 6)).images.float().mean((1, 2, 3))
    monkeypatch.setattr(
        audit.models, "predict", lambda _, x: x.float().mean((1, 2, 3))[:, None].expand(-1, 3)
    )
    assert np.array_equal(folds(), brightness[:, None].expand(-1, 3).numpy())


def test_a_second_audit_trains_nothing(folds, monkeypatch):
    first = folds()
    monkeypatch.setattr(audit.training, "fit", None)  # training again would fail
    assert np.array_equal(first, folds())


def test_an_interrupted_audit_goes_on_where_it_was(folds, monkeypatch, tmp_path):
    whole = folds()
    (tmp_path / sorted(p.name for p in tmp_path.iterdir())[1]).unlink()
    trained = []
    fit = audit.training.fit
    monkeypatch.setattr(
        audit.training, "fit", lambda *a, **k: trained.append(k["name"]) or fit(*a, **k)
    )
    assert np.array_equal(whole, folds())
    assert trained == ["fold 2"]


@pytest.mark.parametrize(
    "change", [{"recipe": replace(RECIPE, epochs=2)}, {"seed": 1}, {"folds": 2}]
)
def test_another_audit_does_not_take_these_predictions(folds, change, monkeypatch):
    folds()
    trained = []
    fit = audit.training.fit
    monkeypatch.setattr(
        audit.training, "fit", lambda *a, **k: trained.append(k["name"]) or fit(*a, **k)
    )
    folds(**change)
    assert len(trained) == change.get("folds", 3)


def test_a_class_smaller_than_the_folds_is_named(folds):
    with pytest.raises(InputError, match="2 train images of cat, fewer than 3 folds"):
        folds(part=random_part((5, 5, 2)))
