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
def watched_fit(monkeypatch):
    """Return a mock that records the calls of `fit` and passes them on."""
    watched_fit = Mock(wraps=label_audit.fit)
    monkeypatch.setattr(label_audit, "fit", watched_fit)
    return watched_fit


def test_no_network_is_trained_on_images_that_it_judges(run_folds, watched_fit, monkeypatch):
    def brightness(images):
        return images.float().mean((1, 2, 3))[:, None].expand(-1, 3)

    predict = Mock(side_effect=lambda _, images: brightness(images))
    monkeypatch.setattr(label_audit, "predict", predict)
    part = random_part((12, 8, 6))
    # The logits have the order of the images, and each fold judges other images.
    assert np.array_equal(run_folds(), brightness(part.images).numpy())
    assert watched_fit.call_count == 3
    for fit_call, predict_call in zip(watched_fit.mock_calls, predict.mock_calls, strict=True):
        (_, train, *_), (_, judged) = fit_call.args, predict_call.args
        assert not (train.images[:, None] == judged).flatten(2).all(2).any()
        assert len(train.labels) + len(judged) == 26
        assert torch.bincount(train.labels).tolist() == pytest.approx([8, 5.3, 4], abs=0.8)


@pytest.mark.parametrize("jobs", [1, 2])
def test_only_other_versions_make_audits_train_again(run_folds, watched_fit, monkeypatch, jobs):
    first = run_folds(jobs=jobs)  # with two jobs the folds are trained in other processes
    watched_fit.reset_mock()
    assert np.array_equal(run_folds(), first)
    watched_fit.assert_not_called()
    monkeypatch.setattr(label_audit, "versions", lambda: {"torch": "0"})
    run_folds()
    assert watched_fit.call_count == 3


def test_an_interrupted_audit_keeps_its_finished_folds(run_folds, watched_fit):
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
    damaged, *_ = sorted(tmp_path.glob("audit-*.npz"))
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


def test_an_audit_needs_no_cache(run_folds, tmp_path, capfd):
    (tmp_path / "file").touch()
    found = run_folds(cache=tmp_path / "file/data")  # not even root can write there
    assert is_one_line(capfd.readouterr().err, "file/data: can't be written")
    assert np.array_equal(run_folds(), found)


def test_folds_that_end_in_another_order_keep_their_places(run_folds, monkeypatch):
    def call_in_processes(function, arguments, jobs):
        assert (len(arguments), jobs) == (3, 2)
        yield from reversed([(i, function(*call)) for i, call in enumerate(arguments)])

    one_by_one = run_folds(fingerprint="other")
    monkeypatch.setattr(label_audit, "call_in_processes", call_in_processes)
    assert np.array_equal(run_folds(jobs=2), one_by_one)
    assert np.array_equal(run_folds(jobs=2), one_by_one)  # nothing is left to train


@pytest.mark.parametrize(
    ("option", "value"),
    [("recipe", replace(RECIPE, epochs=2)), ("seed", 1), ("folds", 2), ("fingerprint", "def"),
     ("device", torch.device("cpu", 0)), ("threads", 2)],
)  # fmt: skip
def test_another_audit_trains_again(run_folds, watched_fit, option, value):
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

    for module in (recipe_module, label_audit):
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
    with pytest.raises(InputError, match="2 train images of cat, fewer than 3 folds"):
        run_folds(part=random_part((5, 5, 2)))
