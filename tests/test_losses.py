from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common import losses
from common.recipes import Recipe

COUNTS = torch.tensor([4949, 466, 210])
PRIORS = [4949 / 5625, 466 / 5625, 210 / 5625]
ROWS = [[2.0, 0.5, -1.0], [0.3, -0.2, 1.5], [1.0, 4.0, 0.0], [-0.7, 0.1, 0.2]]
LABELS = [0, 1, 2, 2]
OPTIONS = {
    "cross-entropy": {},
    "focal": {},
    "ldam": {"classifier": "cosine"},
    "balanced-softmax": {},
    "logit-adjusted": {"tau": 1.5},
}


def recipe(loss: str, **options) -> Recipe:
    return Recipe(loss=loss, **OPTIONS[loss] | options)


def batch(**kind) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(ROWS, **kind), torch.tensor(LABELS)


def make(recipe, counts):
    """The loss where classes are drawn as they come."""
    return losses.make(recipe, counts, counts / counts.sum())


def values(loss: str, counts: torch.Tensor = COUNTS, **options) -> list[float]:
    return make(recipe(loss, **options), counts)(*batch()).tolist()


def slow_log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def slow_cross_entropy(rows: list[list[float]], smoothing: float = 0.0) -> list[float]:
    """(1 - smoothing) * loss of the label + smoothing * mean loss over all labels."""
    result = []
    for row, label in zip(rows, LABELS, strict=True):
        logs = slow_log_softmax(row)
        result.append(-(1 - smoothing) * logs[label] - smoothing * sum(logs) / len(logs))
    return result


def plus(offset: list[float]) -> list[list[float]]:
    return [[a + b for a, b in zip(row, offset, strict=True)] for row in ROWS]


def less_margin(margins: list[float]) -> list[list[float]]:
    rows = [list(row) for row in ROWS]
    for row, label in zip(rows, LABELS, strict=True):
        row[label] -= 30 * margins[label]  # 30: models.COSINE_SCALE
    return rows


def hand_margins(greatest: float) -> list[float]:
    return [greatest * (210 / n) ** 0.25 for n in COUNTS.tolist()]


# Class weights and margins


def test_class_weights_by_hand():
    assert losses.class_weights(Recipe(class_weights="none"), COUNTS) is None
    inverse = losses.class_weights(Recipe(class_weights="inverse"), COUNTS)
    assert inverse.tolist() == pytest.approx([5625 / 4949, 5625 / 466, 5625 / 210])
    effective = Recipe(class_weights="effective-number", beta=0.9999)
    weights = losses.class_weights(effective, COUNTS)
    assert weights.tolist() == pytest.approx([0.106, 0.907, 1.987], abs=5e-4)
    assert weights.dtype == inverse.dtype == torch.float32
    raw = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS.tolist()]
    assert weights.tolist() == pytest.approx([3 * w / sum(raw) for w in raw], rel=1e-5)


def test_effective_number_lies_between_no_weights_and_inverse_ones():
    def weights(beta):
        effective = Recipe(class_weights="effective-number", beta=beta)
        return losses.class_weights(effective, COUNTS).tolist()

    assert weights(0.0) == pytest.approx([1, 1, 1])
    inverse = [1 / n for n in COUNTS.tolist()]
    inverse = [3 * w / sum(inverse) for w in inverse]
    assert weights(1 - 1e-9) == pytest.approx(inverse, rel=1e-4)  # beta is 1 in float32


def test_ldam_margins_by_hand():
    margins = losses.ldam_margins(recipe("ldam", margin=0.5), COUNTS).tolist()
    assert margins == pytest.approx([0.227, 0.410, 0.500], abs=5e-4)
    margins = losses.ldam_margins(recipe("ldam", margin=0.3), COUNTS).tolist()
    assert margins == pytest.approx(hand_margins(0.3))


def test_prior_offset_by_hand():
    offset = losses.prior_offset(Recipe(tau=2.0), COUNTS / COUNTS.sum())
    assert offset.tolist() == pytest.approx([-2 * math.log(p) for p in PRIORS])
    assert offset.argmax() == 2  # it lifts the rarest class


# Per-example losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        ("cross-entropy", ROWS),
        ("ldam", less_margin(hand_margins(0.5))),
        ("balanced-softmax", plus([math.log(n) for n in COUNTS.tolist()])),
        ("logit-adjusted", plus([1.5 * math.log(p) for p in PRIORS])),
    ],
)
def test_loss_by_hand(loss, rows, smoothing):
    expected = slow_cross_entropy(rows, smoothing)
    assert values(loss, label_smoothing=smoothing) == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )


def test_focal_by_hand():
    # Label probabilities 0.9 and 0.25: (0.1)^2 * -log 0.9 and (0.75)^2 * -log 0.25.
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.25, 0.25]]).log()
    loss = make(recipe("focal", focal_gamma=2.0), COUNTS)(logits, torch.tensor([0, 2]))
    expected = [0.01 * -math.log(0.9), 0.5625 * -math.log(0.25)]  # 0.00105, 0.780
    assert loss.tolist() == pytest.approx(expected, rel=1e-4)


def test_focal_at_gamma_0_is_cross_entropy():
    assert values("focal", focal_gamma=0.0) == pytest.approx(slow_cross_entropy(ROWS))


def test_class_weights_leave_the_probability_in_focal_alone():
    logits, labels = batch()
    weighting = Recipe(loss="focal", focal_gamma=2.0, class_weights="inverse")
    weights = losses.class_weights(weighting, COUNTS)
    loss = losses.weighted_mean(make(weighting, COUNTS)(logits, labels), labels, weights)
    w = [5625 / COUNTS.tolist()[label] for label in LABELS]
    ce = slow_cross_entropy(ROWS)
    terms = [w * (1 - math.exp(-ce)) ** 2 * ce for w, ce in zip(w, ce, strict=True)]
    assert loss.item() == pytest.approx(sum(terms) / sum(w), rel=1e-5)


def test_focal_has_a_gradient_where_the_label_is_certain():
    logits = torch.tensor([[100.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    loss = losses.focal(logits, torch.tensor([0, 0]), gamma=0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[1].abs().min() > 0


def test_balanced_softmax_is_logit_adjustment_at_tau_1():
    balanced = values("balanced-softmax", tau=3.0)  # tau is not its option
    assert balanced == pytest.approx(values("logit-adjusted", tau=1.0))


def test_logit_adjustment_at_equal_counts_is_cross_entropy():
    equal = torch.tensor([100, 100, 100])
    assert values("logit-adjusted", equal) == pytest.approx(slow_cross_entropy(ROWS))


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        ("focal", "focal_gamma", 1.0),
        ("ldam", "margin", 0.2),
        ("logit-adjusted", "tau", 0.5),
        ("cross-entropy", "label_smoothing", 0.1),
        ("ldam", "label_smoothing", 0.1),
        ("balanced-softmax", "label_smoothing", 0.1),
        ("logit-adjusted", "label_smoothing", 0.1),
    ],
)
def test_every_option_changes_the_loss(loss, name, value):
    pairs = zip(values(loss), values(loss, **{name: value}), strict=True)
    assert min(abs(a - b) for a, b in pairs) > 1e-3


def test_every_loss_is_another_one():
    first = [values(loss)[0] for loss in OPTIONS]
    assert len({round(value, 3) for value in first}) == len(OPTIONS)


def test_every_weighting_option_changes_the_mean():
    logits, labels = batch()
    each = make(recipe("cross-entropy"), COUNTS)(logits, labels)

    def mean(**options):
        weights = losses.class_weights(Recipe(**options), COUNTS)
        return losses.weighted_mean(each, labels, weights).item()

    means = [
        mean(class_weights="none"),
        mean(class_weights="inverse"),
        mean(class_weights="effective-number", beta=0.9999),
        mean(class_weights="effective-number", beta=0.99),
    ]
    assert len({round(value, 3) for value in means}) == len(means)


@pytest.mark.parametrize("loss", OPTIONS)
def test_gradients_flow(loss):
    logits, labels = batch(dtype=torch.float64, requires_grad=True)
    each = make(recipe(loss), COUNTS)
    shares = torch.tensor([0.3, 1.0, 0.0, 0.6])
    weights = torch.tensor([0.5, 1.0, 3.0])
    partners = labels.flip(0)

    def mean(x):
        return losses.mixed(each, x, labels, partners, shares, weights)

    assert torch.autograd.gradcheck(lambda x: each(x, labels), logits)
    assert torch.autograd.gradcheck(mean, logits)
    (gradient,) = torch.autograd.grad(mean(logits), logits)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("loss", OPTIONS)
@pytest.mark.parametrize("weights", [None, torch.ones(3, device="meta")])
def test_no_step_waits_for_the_device(loss, weights):
    # Tensors on the meta device have no values: whatever asks for one fails.
    logits, labels = (tensor.to("meta") for tensor in batch())
    each = make(recipe(loss), COUNTS.to("meta"))
    assert each(logits, labels).shape == labels.shape
    assert losses.weighted_mean(each(logits, labels), labels, weights).shape == ()
    shares = torch.rand(len(labels), device="meta")
    assert losses.mixed(each, logits, labels, labels, shares, weights).shape == ()


# Means


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 7.0])])
def test_weighted_mean_is_that_of_torch(weights):
    logits, labels = batch()
    each = make(recipe("cross-entropy"), COUNTS)(logits, labels)
    expected = nn.CrossEntropyLoss(weight=weights)(logits, labels).item()
    assert losses.weighted_mean(each, labels, weights).item() == pytest.approx(expected)


def test_weighted_mean_by_hand():
    mean = losses.weighted_mean(
        torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 1]), torch.tensor([1.0, 3.0])
    )
    assert mean.item() == pytest.approx((1 * 1 + 3 * 2 + 3 * 4) / (1 + 3 + 3))


@pytest.mark.parametrize("loss", OPTIONS)
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 7.0])])
def test_mixed_at_share_1_and_0_is_unmixed(loss, weights):
    logits, labels = batch()
    partners = torch.tensor([1, 2, 0, 1])
    each = make(recipe(loss), COUNTS)
    for share, unmixed in ((1.0, labels), (0.0, partners)):
        shares = torch.full((4,), share)
        mixed = losses.mixed(each, logits, labels, partners, shares, weights).item()
        expected = losses.weighted_mean(each(logits, unmixed), unmixed, weights).item()
        assert mixed == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("w", [None, [0.5, 2.0, 7.0]])
def test_mixed_by_hand(w):
    logits, labels = batch()
    partners, shares = [1, 2, 0, 2], [0.25, 0.7, 0.5, 0.9]
    each = make(recipe("cross-entropy"), COUNTS)
    top = bottom = 0.0
    for row, a, b, share in zip(ROWS, LABELS, partners, shares, strict=True):
        for label, part in ((a, share), (b, 1 - share)):
            part *= 1 if w is None else w[label]
            top -= part * slow_log_softmax(row)[label]
            bottom += part
    weights = None if w is None else torch.tensor(w)
    mixed = losses.mixed(
        each, logits, labels, torch.tensor(partners), torch.tensor(shares), weights
    )
    assert mixed.item() == pytest.approx(top / bottom, rel=1e-5)


@pytest.mark.parametrize("loss", ["balanced-softmax", "logit-adjusted"])
def test_the_adjustment_is_for_the_classes_as_they_are_drawn(loss):
    """On balanced draws there is nothing to adjust, whatever the training images are."""
    drawn = torch.ones(3) / 3
    balanced = losses.make(recipe(loss), COUNTS, drawn)(*batch())
    plain = make(recipe("cross-entropy"), COUNTS)(*batch())
    assert torch.allclose(balanced, plain)
