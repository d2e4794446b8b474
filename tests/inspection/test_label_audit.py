import numpy as np
import pytest

from common.inspection.label_audit import Audit, against_truth, audit, ranking, suspects

CLASSES = ("car", "truck", "cat")


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


def test_joint_probabilities_and_suspects_are_close_to_the_planted_errors():
    logits, given, true = gaussians()
    found = audit(logits, given)
    planted = np.zeros((3, 3))
    np.add.at(planted, (given, true), 1)
    assert found.joint.sum() == pytest.approx(1)
    assert np.abs(found.joint * len(given) - planted).max() < 20  # of 3,500
    assert np.allclose(found.joint.sum(1), np.bincount(given) / len(given), atol=1e-6)
    # Bayes' rule: the densities are exact, so that calibration has nothing to change.
    for i in (0, 5, 3100, 3300, 3499):
        weights = np.exp(logits[i].astype(float)) * found.joint[given[i]]
        expected = weights / weights.sum()
        assert np.allclose(found.true_label_probabilities[i], expected, atol=0.05), i
    # The suspects are the expected number of the images that are most probably wrong.
    wrong, listed, bad = found.error_probabilities(given), found.suspects, given != true
    assert len(listed) == round(wrong.sum())
    assert list(wrong[listed]) == sorted(wrong, reverse=True)[: len(listed)]
    assert bad[listed].mean() > 0.7
    assert bad[listed].sum() > 0.7 * bad.sum()


def test_underconfident_logits_are_calibrated():
    logits, given, true = gaussians(distance=3)
    exact, halved = (audit(logits * t, given).error_probabilities(given) for t in (1, 0.5))
    assert halved.sum() == pytest.approx((given != true).sum(), rel=0.35)
    assert np.abs(halved - exact).mean() < 0.01


def test_clean_labels_have_few_suspects():
    logits, given, _ = gaussians(noise=(0, 0, 0), distance=8)
    assert len(audit(logits, given).suspects) <= 3


def test_suspects_name_the_most_probable_other_label():
    logits, given, _ = gaussians(distance=3)
    found = audit(logits, given)
    listed = suspects(found, given, CLASSES, [f"{i}.png" for i in range(len(given))])
    assert min(s.confidence for s in listed) < 0.4  # here the given label is more probable
    for i, *fields in listed:
        p = found.true_label_probabilities[i]
        others = {p[k]: CLASSES[k] for k in range(3) if k != given[i]}
        best = max(others)
        assert fields == [f"{i}.png", CLASSES[given[i]], others[best], pytest.approx(best), ""]


def test_ranking_holds_scores_and_places_of_every_image():
    logits, given, _ = gaussians(counts=(30, 20, 10))
    found = audit(logits, given)
    rows = ranking(found, given, CLASSES, ())
    assert sorted(row["index"] for row in rows) == list(range(60))
    scores = {name: getattr(found, name) for name in ("self_confidence", "normalized_margin")}
    for name, score in (scores | {"wrong": -found.error_probabilities(given)}).items():
        for row in rows:
            better = (score < score[row["index"]]).sum()
            same = (score == score[row["index"]]).sum()
            assert better < row[f"place_by_{name}"] <= better + same
    # cleanlab's scores by hand: p of the given label, and its margin over the best other label.
    for row in rows[:5]:
        p = np.exp(logits[row["index"]].astype(float))
        p /= p.sum()
        k = CLASSES.index(row["given"])
        expected = p[k], (p[k] - max(np.delete(p, k)) + 1) / 2
        assert [row[name] for name in scores] == pytest.approx(expected, abs=1e-3)


def test_planted_errors_by_hand():
    given = np.array([0, 0, 0, 0, 1, 1, 2, 0])
    true = np.array([0, 0, 0, 1, 1, 1, 2, 2])  # image 3 is a truck, image 7 a cat
    wrong = np.array([0.1, 0.9, 0.0, 0.8, 0.2, 0.0, 0.0, 0.3])
    p = np.zeros((8, 3))
    p[np.arange(8), given] = 1 - wrong
    found = Audit(np.eye(3) / 3, p, -wrong, wrong, np.array([1, 3]))
    table = against_truth(found, given, true, CLASSES)
    # The ranking begins with images 1, 3 and 7, of which 3 and 7 are wrong: (1/2 + 2/3) / 2.
    expected = {"planted": 2, "precision": 0.5, "self_confidence": 7 / 12}
    assert {name: table["all"][name] for name in expected} == pytest.approx(expected)
    # The row of a class leaves the errors of other classes out of the ranking.
    rows = {name: [row["wrong"], row["recall"]] for name, row in table.items()}
    expected = {"all": [7 / 12, 0.5], "truck": [1 / 2, 1], "cat": [1 / 2, 0]}
    assert rows == {name: pytest.approx(row) for name, row in expected.items()}
    assert against_truth(found, given, given, CLASSES) == {}
