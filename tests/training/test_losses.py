from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common.training import losses
from common.training.recipe import Recipe

COUNTS = [4949, 466, 210]
PRIORS = [n / sum(COUNTS) for n in COUNTS]
ROWS = [[2.0, 0.5, -1.0], [0.3, -0.2, 1.5], [1.0, 4.0, 0.0], [-0.7, 0.1, 0.2]]
LABELS, PARTNERS, SHARES = [0, 1, 2, 2], [1, 2, 0, 2], [0.25, 1.0, 0.0, 0.6]
WEIGHTS = [0.5, 2.0, 7.0]
OPTIONS = {
    "cross-entropy": {},
    "focal": {},
    "ldam": {"classifier": "cosine"},
    "balanced-softmax": {},
    "logit-adjusted": {"tau": 1.5},
}


def batch(device="cpu", **options):
    """Return logits (4, 3), labels, partners and shares, (4,) each."""
    return (
        torch.tensor(ROWS, device=device, **options),
        *(torch.tensor(values, device=device) for values in (LABELS, PARTNERS, SHARES)),
    )


def make_loss(loss, counts=COUNTS, prior=None, device="cpu", **options):
    """Return a loss; by default the classes are drawn with their shares in the training set."""
    counts = torch.tensor(counts, device=device)
    prior = counts / counts.sum() if prior is None else torch.tensor(prior)
    return losses.make_loss(Recipe(loss=loss, **OPTIONS[loss] | options), counts, prior)


def values(loss, **options):
    return make_loss(loss, **options)(*batch()[:2]).tolist()


def weights_of(counts=COUNTS, **options):
    return losses.class_weights(Recipe(**options), torch.tensor(counts)).tolist()


def slow_log_softmax(row):
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def slow_cross_entropy(rows, smoothing=0.0):
    """Return (1 - smoothing) * loss of the label + smoothing * mean loss over all labels."""
    result = []
    for row, label in zip(rows, LABELS, strict=True):
        logs = slow_log_softmax(row)
        result.append(-(1 - smoothing) * logs[label] - smoothing * sum(logs) / len(logs))
    return result


def plus(offset):
    return [[a + b for a, b in zip(row, offset, strict=True)] for row in ROWS]


def margins_by_hand(largest):
    return [largest * (210 / n) ** 0.25 for n in COUNTS]


def minus_margins(margins, scale=30):  # heads.COSINE_SCALE
    return [
        [value - scale * margins[k] * (k == label) for k, value in enumerate(row)]
        for row, label in zip(ROWS, LABELS, strict=True)
    ]


# Class weights, margins and offsets


def test_class_weights_by_hand():
    counts = torch.tensor(COUNTS)
    assert losses.class_weights(Recipe(class_weights="none"), counts) is None
    inverse = Recipe(class_weights="inverse")
    assert losses.class_weights(inverse, counts).dtype == torch.float32
    assert weights_of(class_weights="inverse") == pytest.approx([5625 / n for n in COUNTS])
    raw = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS]
    weights = weights_of(class_weights="effective-number", beta=0.9999)
    assert weights == pytest.approx([3 * w / sum(raw) for w in raw], rel=1e-5)
    assert weights == pytest.approx([0.106, 0.907, 1.987], abs=5e-4)


def test_effective_number_is_between_equal_and_inverse_weights():
    equal, inverse = (
        weights_of(class_weights="effective-number", beta=beta) for beta in (0.0, 1 - 1e-9)
    )
    assert equal == pytest.approx([1, 1, 1])
    total = sum(1 / n for n in COUNTS)
    # In float32 this beta is 1.
    assert inverse == pytest.approx([3 / n / total for n in COUNTS], rel=1e-4)


@pytest.mark.parametrize("margin", [0.5, 0.3])
def test_ldam_margins_by_hand(margin):
    recipe = Recipe(loss="ldam", classifier="cosine", margin=margin)
    margins = losses.ldam_margins(recipe, torch.tensor(COUNTS)).tolist()
    assert margins == pytest.approx(margins_by_hand(margin))


def test_post_hoc_offset_by_hand():
    offset = losses.post_hoc_offset(Recipe(tau=2.0), torch.tensor(PRIORS))
    assert offset.tolist() == pytest.approx([-2 * math.log(p) for p in PRIORS])
    assert offset.argmax() == 2  # the rarest class


# Per-example losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("loss", "options", "rows"),
    [
        ("cross-entropy", {}, ROWS),
        ("ldam", {}, minus_margins(margins_by_hand(0.5))),
        ("ldam", {"margin": 0.2}, minus_margins(margins_by_hand(0.2))),
        ("balanced-softmax", {}, plus([math.log(n) for n in COUNTS])),
        ("balanced-softmax", {"tau": 3.0}, plus([math.log(n) for n in COUNTS])),
        ("logit-adjusted", {}, plus([1.5 * math.log(p) for p in PRIORS])),
        ("logit-adjusted", {"tau": 0.5}, plus([0.5 * math.log(p) for p in PRIORS])),
        ("logit-adjusted", {"counts": [100] * 3}, ROWS),
        # The prior is that of the draws: there is nothing to adjust in balanced draws.
        ("balanced-softmax", {"prior": [1 / 3] * 3}, ROWS),
        ("logit-adjusted", {"prior": [1 / 3] * 3}, ROWS),
    ],
)
def test_loss_by_hand(loss, options, rows, smoothing):
    expected = slow_cross_entropy(rows, smoothing)
    found = values(loss, label_smoothing=smoothing, **options)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_by_hand(gamma):
    # The probabilities of the labels are 0.9 and 0.25.
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.25, 0.25]]).log()
    found = make_loss("focal", focal_gamma=gamma)(logits, torch.tensor([0, 2]))
    expected = [0.1**gamma * -math.log(0.9), 0.75**gamma * -math.log(0.25)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_focal_has_a_gradient_where_the_label_is_certain():
    logits = torch.tensor([[100.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    loss = losses.focal(logits, torch.tensor([0, 0]), gamma=0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[1].abs().min() > 0


# The loss of a batch


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_weighted_mean_equals_that_of_torch(weights):
    weights = None if weights is None else torch.tensor(weights)
    logits, labels = batch()[:2]
    found = losses.weighted_mean(make_loss("cross-entropy")(logits, labels), labels, weights)
    torch.testing.assert_close(found, nn.CrossEntropyLoss(weight=weights)(logits, labels))


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("loss", OPTIONS)
def test_batch_loss_equals_a_loop(loss, weights, mixes):
    per_example = make_loss(loss)
    top = bottom = 0.0
    for row, label, partner, share in zip(ROWS, LABELS, PARTNERS, SHARES, strict=True):
        for target, s in ((label, share), (partner, 1 - share)) if mixes else ((label, 1),):
            weight = s * (1 if weights is None else weights[target])
            top += weight * per_example(torch.tensor([row]), torch.tensor([target])).item()
            bottom += weight
    weights = None if weights is None else torch.tensor(weights)
    found = losses.batch_loss(per_example, weights, *batch()[: 4 if mixes else 2])
    assert found.item() == pytest.approx(top / bottom, rel=1e-5)


def test_class_weights_do_not_change_the_probability_in_focal():
    logits, labels = batch()[:2]
    weights = torch.tensor(weights_of(class_weights="inverse"))
    found = losses.batch_loss(make_loss("focal", focal_gamma=2.0), weights, logits, labels)
    w, ce = [5625 / COUNTS[label] for label in LABELS], slow_cross_entropy(ROWS)
    terms = [w * (1 - math.exp(-ce)) ** 2 * ce for w, ce in zip(w, ce, strict=True)]
    assert found.item() == pytest.approx(sum(terms) / sum(w), rel=1e-5)


@pytest.mark.parametrize("loss", OPTIONS)
def test_gradients_are_those_of_finite_differences(loss):
    logits, *targets = batch(dtype=torch.float64, requires_grad=True)
    per_example, weights = make_loss(loss), torch.tensor(WEIGHTS)

    def mixed_loss(x):
        return losses.batch_loss(per_example, weights, x, *targets)

    assert torch.autograd.gradcheck(lambda x: per_example(x, targets[0]), logits)
    assert torch.autograd.gradcheck(mixed_loss, logits)
    (gradient,) = torch.autograd.grad(mixed_loss(logits), logits)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("loss", OPTIONS)
@pytest.mark.parametrize("weights", [None, torch.ones(3, device="meta")])
def test_no_step_waits_for_the_device(loss, weights):
    # Tensors on the meta device have no values: an operation that needs one fails.
    tensors = batch(device="meta")
    per_example = make_loss(loss, device="meta")
    assert per_example(*tensors[:2]).shape == (4,)
    assert losses.batch_loss(per_example, weights, *tensors[:2]).shape == ()
    assert losses.batch_loss(per_example, weights, *tensors).shape == ()
