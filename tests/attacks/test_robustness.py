"""How robust a network is: the table of attacks, noise, and which images are attacked."""

import pytest
import torch
from attack_cases import NETWORK, TARGETS, X, Y, generator
from conftest import random_part

from common.attacks import noise_robustness, robustness
from common.attacks.fgsm import fgsm
from common.attacks.gradients import logits_of
from common.attacks.robustness import class_pairs, make_targets, sample
from common.attacks.table import Attack, Settings
from common.dataset.split import LabelledImages
from common.errors import InputError
from common.metrics.intervals import wilson

CLASSES = ("car", "truck", "cat")
SETTINGS = Settings(epsilons=[0, 1], l2_epsilons=[0, 0.5], steps=3, restarts=1, seed=0)


def test_images_that_were_misclassified_are_not_attacked():
    labels = Y.clone()
    labels[:6] = TARGETS[:6]

    def attack(x, labels, targets):
        assert len(x) == 18
        assert targets is None
        yield x
        yield 1 - x

    clean, inverted = robustness.attack_results(NETWORK, X, labels, CLASSES, attack)
    assert clean.attacked == inverted.attacked == 18
    assert clean.report.accuracy == 18 / 24
    assert clean.flipped == 0
    assert clean.norms == {"L1": 0, "L2": 0, "Linf": 0}
    flipped = (logits_of(NETWORK, 1 - X[6:]).argmax(1) != Y[6:]).sum()
    assert inverted.flipped == flipped > 0
    assert inverted.report.accuracy == (18 - flipped) / 24
    noise = (1 - 2 * X[6:]).flatten(1)
    norms = {"L1": noise.abs().sum(1), "L2": noise.norm(dim=1), "Linf": noise.abs().amax(1)}
    expected = {name: float(values.mean()) for name, values in norms.items()}
    assert inverted.norms == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="none of the 24 test images"):
        robustness.correctly_classified(NETWORK, X, TARGETS)


def test_a_targeted_attack_counts_targets_reached():
    def attack(x, labels, targets):
        return [fgsm(NETWORK, x, labels, epsilon=4 / 255, targets=targets)]

    [result] = robustness.attack_results(NETWORK, X, Y, CLASSES, attack, TARGETS)
    predictions = logits_of(NETWORK, attack(X, Y, TARGETS)[0]).argmax(1)
    assert result.flipped == (predictions == TARGETS).sum()


def test_every_attack_of_the_table_gives_a_curve():
    table = robustness.attack_curves(NETWORK, X, Y, CLASSES, SETTINGS)
    curves = {curve.name: curve for curve in table}
    assert list(curves) == ["FGSM", "targeted FGSM", "PGD", "MI-FGSM", "PGD in L2"]
    for name, curve in curves.items():
        norm, epsilon, text = ("L2", 0.5, "0.5") if "L2" in name else ("Linf", 1 / 255, "1")
        assert curve.unit == ("epsilon" if norm == "L2" else "1/255")
        assert curve.targeted == (name == "targeted FGSM")
        assert list(curve.results) == ["0", text]
        assert curve.results["0"].report.accuracy == 1
        attacked = curve.results[text]
        assert 0.5 * epsilon < attacked.norms[norm] <= epsilon + 1e-6
        assert attacked.flipped > 0
        assert curve.as_dict()["results"][text]["flipped"] == attacked.flipped
    assert curves["MI-FGSM"].description == "momentum 1, 3 steps, random starts: 1"
    assert curves["MI-FGSM"].results["1"].norms != curves["PGD"].results["1"].norms


def test_a_new_row_of_the_table_is_all_that_a_new_attack_needs():
    def noise(network, x, labels, targets, *, epsilons, settings):
        assert torch.equal(targets, TARGETS)
        for epsilon in epsilons:
            signs = torch.randn(x.shape, generator=generator(settings.seed)).sign()
            yield (x + epsilon * signs).clamp(0, 1)

    row = Attack("noise", "random signs, {steps} steps", "linf", True, noise)
    [curve] = robustness.attack_curves(NETWORK, X, Y, CLASSES, SETTINGS, attacks=[row])
    assert (curve.name, curve.description) == ("noise", "random signs, 3 steps")
    assert list(curve.results) == ["0", "1"]
    assert curve.results["1"].norms["Linf"] == pytest.approx(1 / 255, rel=1e-4)


@pytest.mark.parametrize(("c", "evaluations"), [(None, 6 * 3 + 1), (0.05, 2 * 3)])
def test_optimised_noise_is_measured_for_two_starts_and_several_c(c, evaluations):
    x, y, targets = X[:4], Y[:4], TARGETS[:4]
    options = {"c": c, "norm": "l1", "steps": 3, "seed": 0}
    rows = dict(noise_robustness.measure_optimised_noise(NETWORK, x, y, targets, **options))
    assert [row["c"] for row in rows.values()] == [c, c, *noise_robustness.TRADEOFF]
    assert [row["evaluations"] for row in rows.values()] == [evaluations] * 2 + [6] * 6
    assert rows["zeros start"]["medians"] != rows["gaussian start"]["medians"]
    assert rows["C = 0.01"]["fooled"] > rows["C = 3"]["fooled"] == 0
    assert rows["C = 3"]["medians"] == {"L1": None, "L2": None, "Linf": None}
    assert rows["C = 3"]["interval"] == wilson(0, 4)


def test_universal_noise_is_measured_on_both_parts():
    train, test = random_part((9, 4, 3)), LabelledImages(X, Y)
    options = {"epsilon": 0.1, "steps": 2, "seed": 0}
    rows = list(
        noise_robustness.measure_universal_noise(NETWORK, train, test, CLASSES, **options)
    )
    assert [name for name, *_ in rows] == ["no noise", "label + 1", "balanced", "unbounded"]
    assert rows[0][1] is None
    assert rows[3][1].abs().max() > rows[1][1].abs().max()
    for _, noise, measured in rows:
        x = X if noise is None else (X + noise).clamp(0, 1)
        accuracy = float((logits_of(NETWORK, x).argmax(1) == Y).float().mean())
        assert measured["test"]["report"].accuracy == pytest.approx(accuracy)
        assert measured["test"]["fooling_rate"] == pytest.approx(1 - accuracy)
        assert sum(measured["train"]["report"].support) == 16


def test_a_sample_has_equal_numbers_of_all_classes():
    part, zeros = LabelledImages(X, Y), torch.zeros_like(Y)
    for seed in range(5):
        chosen = sample(NETWORK, part, zeros, 6, seed)
        assert torch.bincount(Y[chosen], minlength=3).tolist() == [0, 3, 3]
    chosen = sample(NETWORK, part, zeros, "all", 0)
    assert chosen.tolist() == (Y != 0).nonzero().flatten().tolist()
    fewest = min(torch.bincount(Y).tolist())
    n = 3 * fewest + 4
    counts = torch.bincount(Y[sample(NETWORK, part, TARGETS, n, 0)]).tolist()
    assert (sum(counts), min(counts)) == (n, fewest)
    with pytest.raises(InputError, match="target"):
        sample(NETWORK, part, Y, 6, 0)


def test_pairs_and_targets_are_the_named_classes_or_by_default_the_others():
    assert class_pairs(None, CLASSES) == [(0, 1), (0, 2)]
    assert class_pairs(["cat:car"], CLASSES) == [(2, 0)]
    labels = torch.tensor([0, 1, 2])
    assert make_targets(None, labels, CLASSES).tolist() == [1, 2, 0]
    assert make_targets("cat", labels, CLASSES).tolist() == [2, 2, 2]
    errors = {"cat:cat": "true class", "cat": "TRUE:TARGET", "dog:cat": "of car"}
    for text, words in errors.items():
        with pytest.raises(InputError, match=words):
            class_pairs([text], CLASSES)
    with pytest.raises(InputError, match="dog"):
        make_targets("dog", labels, CLASSES)
