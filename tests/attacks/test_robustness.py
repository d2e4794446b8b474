"""How robust a network is: the table of attacks, noise, and which images are attacked."""

import time

import pytest
import torch
from attack_cases import NETWORK, TARGETS, X, Y, generator
from conftest import check_seed, random_part

from common.attacks import noise_robustness, robustness
from common.attacks.fgsm import fgsm
from common.attacks.gradients import logits_of
from common.attacks.optimised_noise import minimise, optimise
from common.attacks.pgd import pgd
from common.attacks.robustness import class_pairs, make_targets, sample, sample_per_class
from common.attacks.table import ATTACKS, Attack, Settings
from common.attacks.universal_noise import universal
from common.dataset.split import LabelledImages
from common.errors import InputError
from common.metrics.intervals import proportion_interval
from common.metrics.report import report
from common.networks.prediction import to_pixel_space

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
    message = (
        "^the network classifies none of the 24 test images correctly, so there is nothing to"
        " attack; choose another checkpoint$"
    )
    with pytest.raises(InputError, match=message):
        robustness.correctly_classified(NETWORK, X, TARGETS)
    with pytest.raises(InputError, match=r"^best\.pt classifies none"):
        robustness.correctly_classified(NETWORK, X, TARGETS, "best.pt")
    assert (
        robustness.correctly_classified(NETWORK, X, labels).tolist()
        == [False] * 6 + [True] * 18
    )


def test_a_targeted_attack_counts_targets_reached():
    labels, calls = Y.clone(), []
    labels[:6] = TARGETS[:6]  # misclassified, so not attacked

    def attack(x, labels, targets):
        assert torch.equal(targets, TARGETS[6:])
        yield x
        assert len(calls) == 1  # the logits of unchanged images are known
        yield 1 - x

    with NETWORK.register_forward_hook(lambda *_: calls.append(1)):
        results = robustness.attack_results(NETWORK, X, labels, CLASSES, attack, TARGETS)
        unchanged, inverted = results
    predictions = logits_of(NETWORK, 1 - X[6:]).argmax(1)
    assert unchanged.flipped == 0
    assert inverted.flipped == (predictions == TARGETS[6:]).sum()
    assert 0 < inverted.flipped < (predictions != Y[6:]).sum()


def test_every_attack_of_the_table_gives_a_curve():
    begin = time.perf_counter()
    table = robustness.attack_curves(NETWORK, X, Y, CLASSES, SETTINGS)
    curves = {curve.name: curve for curve in table}
    seconds = [curve.seconds for curve in curves.values()]
    assert 0 < min(seconds) < sum(seconds) < time.perf_counter() - begin
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
        assert curve.as_dict() == {
            "description": curve.description,
            "unit": curve.unit,
            "seconds": curve.seconds,
            "results": {
                key: {
                    "report": result.report.as_dict(),
                    "flipped": result.flipped,
                    "attacked": 24,
                    "norms": result.norms,
                }
                for key, result in curve.results.items()
            },
        }
    assert curves["MI-FGSM"].description == "momentum 1, 3 steps, random starts: 1"
    assert curves["MI-FGSM"].results["1"].norms != curves["PGD"].results["1"].norms


def test_a_new_row_of_the_table_is_all_that_a_new_attack_needs():
    def noise(network, x, labels, targets, *, epsilons, settings):
        assert torch.equal(targets, TARGETS)
        for epsilon in epsilons:
            signs = torch.randn(x.shape, generator=generator(settings.seed)).sign()
            yield (x + epsilon * signs).clamp(0, 1)

    def untargeted_noise(network, x, labels, targets, **options):
        assert targets is None
        return noise(network, x, labels, TARGETS, **options)

    row = Attack("untargeted", "random signs", "linf", False, untargeted_noise)
    list(robustness.attack_curves(NETWORK, X, Y, CLASSES, SETTINGS, attacks=[row]))
    row = Attack("noise", "random signs, {steps} steps", "linf", True, noise)
    [curve] = robustness.attack_curves(NETWORK, X, Y, CLASSES, SETTINGS, attacks=[row])
    assert (curve.name, curve.description) == ("noise", "random signs, 3 steps")
    assert list(curve.results) == ["0", "1"]
    assert curve.results["1"].norms["Linf"] == pytest.approx(1 / 255, rel=1e-4)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["untargeted", "targeted"])
def test_the_attacks_of_the_table_have_its_settings(targets):
    settings = Settings(epsilons=[], l2_epsilons=[], steps=2, restarts=2, seed=5)
    given, epsilons = (NETWORK, X[:6], Y[:6]), [0.0, 1 / 255, 2 / 255]
    targets = None if targets is None else targets[:6]
    for row in ATTACKS:
        if "FGSM" in row.name and "MI" not in row.name:
            attack, options = fgsm, {}
        else:
            attack = pgd
            options = {"steps": 2, "restarts": 2, "generator": generator(5), "norm": row.norm}
            options["momentum"] = 1.0 if row.name == "MI-FGSM" else 0.0
        batches = row.run(*given, targets, epsilons=epsilons, settings=settings)
        for epsilon, moved in zip(epsilons, batches, strict=True):
            expected = attack(*given, epsilon=epsilon, targets=targets, **options)
            assert torch.equal(moved, expected), row.name


@pytest.mark.parametrize(("c", "norm"), [(None, "l1"), (0.05, "l2")])
def test_optimised_noise_is_measured_for_two_starts_and_several_c(monkeypatch, c, norm):
    monkeypatch.setattr(noise_robustness, "ROUNDS", 2)
    x, y, targets = X[:5], Y[:5], TARGETS[:5]
    begin = time.perf_counter()
    options = {"c": c, "norm": norm, "steps": 4, "seed": 3}
    rows = dict(noise_robustness.measure_optimised_noise(NETWORK, x, y, targets, **options))
    seconds = [row.pop("seconds") for row in rows.values()]
    assert 0 < sum(seconds) < time.perf_counter() - begin
    tradeoff = {f"C = {value:g}": ("zeros", value) for value in (0.01, 0.03, 0.1, 0.3, 1, 3)}
    starts = {f"{start} start": (start, c) for start in ("zeros", "gaussian")}
    assert list(rows) == [*starts, *tradeoff]
    for name, (start, value) in (starts | tradeoff).items():
        shared = {"targets": targets, "norm": norm, "start": start, "generator": generator(3)}
        if value is None:
            moved = minimise(NETWORK, x, y, steps=4, rounds=2, **shared)
        else:
            moved = optimise(NETWORK, x, y, steps=8, c=value, **shared)
        fooled = logits_of(NETWORK, moved).argmax(1) == targets
        noise, n = (moved - x)[fooled].flatten(1), int(fooled.sum())
        powers = {"L1": 1, "L2": 2, "Linf": torch.inf}
        sizes = {name: noise.norm(p, dim=1).sort().values for name, p in powers.items()}
        medians = {name: float(v[(n - 1) // 2]) for name, v in sizes.items() if n}
        row = rows[name]
        expected = pytest.approx(medians, rel=1e-5) if n else dict.fromkeys(powers)
        assert row.pop("medians") == expected
        assert row == {
            "fooled": n,
            "images": 5,
            "interval": proportion_interval(n, 5),
            "c": value,
            "evaluations": 2 * 4 + 1 if value is None else 8,
        }
    assert rows["C = 0.01"]["fooled"] > rows["C = 3"]["fooled"] == 0


@pytest.mark.parametrize(("per_class", "measured_of_train"), [("all", 16), (4, 11)])
def test_universal_noise_is_measured_on_both_parts(per_class, measured_of_train):
    train, test = random_part((9, 4, 3)), LabelledImages(X, Y)
    options = {"epsilon": 0.1, "steps": 2, "per_class": per_class, "seed": 3}
    seen = []
    with NETWORK.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0])):
        rows = list(
            noise_robustness.measure_universal_noise(NETWORK, train, test, CLASSES, **options)
        )
    assert all(0 <= x.min() <= x.max() <= 1 for x in seen)
    labels = train.labels
    arguments = {
        "no noise": None,
        "label + 1": {"epsilon": 0.1, "targets": (labels + 1) % 3},
        "balanced": {"epsilon": 0.1, "balanced": True},
        "unbounded": {"epsilon": 1.0, "targets": (labels + 1) % 3},
    }
    assert [name for name, *_ in rows] == list(arguments)
    for name, noise, measured in rows:
        if arguments[name] is None:
            assert noise is None
        else:
            options = arguments[name] | {"steps": 2, "generator": generator(3)}
            assert torch.equal(noise, universal(NETWORK, *train, **options))
        of_train = train.select(sample_per_class(labels, per_class, 3))
        assert len(of_train.labels) == measured_of_train
        for part_name, part in (("train", of_train), ("test", test)):
            x = to_pixel_space(part.images)
            before = logits_of(NETWORK, x).argmax(1)
            after = logits_of(NETWORK, x if noise is None else (x + noise).clamp(0, 1)).argmax(
                1
            )
            r, rate = measured[part_name]["report"], measured[part_name]["fooling_rate"]
            assert r == report(part.labels, after, CLASSES)
            assert rate == pytest.approx(float((after != before).float().mean()))
    assert measured["test"]["fooling_rate"] > 0


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
    message = "every correctly classified image is of its target class; choose another --target"
    with pytest.raises(InputError, match=f"^{message}$"):
        sample(NETWORK, part, Y, 6, 0)
    check_seed(lambda seed: sample(NETWORK, part, TARGETS, 12, seed))


def test_a_sample_per_class_has_at_most_so_many_of_each():
    labels = torch.tensor([0] * 30 + [2] * 3 + [1] * 7 + [0] * 30)
    for most, counts in ((5, [5, 5, 3]), (1, [1, 1, 1]), (59, [59, 7, 3]), (60, [60, 7, 3])):
        chosen = sample_per_class(labels, most, 0)
        assert torch.bincount(labels[chosen]).tolist() == counts
        assert (chosen.diff() > 0).all()
    assert sample_per_class(labels, "all", 0).tolist() == list(range(70))
    # Each image of a class is as likely as the others.
    drawn = torch.cat([sample_per_class(labels, 6, seed) for seed in range(500)])
    times = torch.bincount(drawn, minlength=70)
    assert 25 < min(times[labels == 0]) <= max(times[labels == 0]) < 85  # 50 expected
    assert set(times[labels == 2].tolist()) == {500}
    check_seed(lambda seed: sample_per_class(labels, 5, seed))


def test_images_to_attack_are_in_pixel_space_and_channels_last():
    part = random_part((3, 2, 1))
    x, labels = robustness.to_attack(part, torch.device("cpu"))
    assert torch.equal(x, part.images.float() / 255)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, part.labels)
    moved = robustness.to_attack(part, torch.device("meta"))
    assert {each.device.type for each in moved} == {"meta"}


def test_pairs_and_targets_are_the_named_classes_or_by_default_the_others():
    assert class_pairs(None, CLASSES) == [(0, 1), (0, 2)]
    assert class_pairs(["cat:car"], CLASSES) == [(2, 0)]
    labels = torch.tensor([0, 1, 2])
    assert make_targets(None, labels, CLASSES).tolist() == [1, 2, 0]
    assert make_targets("cat", labels, CLASSES).tolist() == [2, 2, 2]
    assert class_pairs(["cat:car", "car:cat"], CLASSES[::2]) == [(1, 0), (0, 1)]
    known = "car, truck, cat"
    errors = {
        "cat:cat": "the target is the true class; choose another",
        "cat": f"give TRUE:TARGET, each one of {known}",
        "dog:cat": f"give TRUE:TARGET, each one of {known}",
        "car:cat:car": f"give TRUE:TARGET, each one of {known}",
    }
    for text, words in errors.items():
        with pytest.raises(InputError, match=f"^--pairs {text}: {words}$"):
            class_pairs([text], CLASSES)
    message = f"^--target dog: there is no such class; choose from {known}$"
    with pytest.raises(InputError, match=message):
        make_targets("dog", labels, CLASSES)
