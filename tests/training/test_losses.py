import math

import pytest
import torch
import torch.nn.functional as F

from common.training import losses
from common.training.recipe import Recipe

COUNTS = [4949, 466, 210]
PRIORS = [n / sum(COUNTS) for n in COUNTS]
ROWS = [[2.0, 0.5, -1.0], [0.3, -0.2, 1.5], [1.0, 4.0, 0.0], [-0.7, 0.1, 0.2]]
LABELS, PARTNERS, SHARES = [0, 1, 2, 2], [1, 2, 0, 2], [0.25, 1.0, 0.0, 0.6]
WEIGHTS = [0.5, 2.0, 7.0]
EFFECTIVE = {"class_weights": "effective-number"}
EFFECTIVE_WEIGHTS = [1 / (1 - 0.9999**n) for n in COUNTS]  # not normalised
OPTIONS = {name: {} for name in losses.TITLES} | {
    "ldam": {"classifier": "cosine"},
    "logit-adjusted": {"tau": 1.5},
}


def batch(**options):
    """Return logits (4, 3), labels, partners and shares, (4,) each."""
    return torch.tensor(ROWS, **options), *map(torch.tensor, (LABELS, PARTNERS, SHARES))


def make_loss(loss, counts=COUNTS, prior=None, **options):
    """Return a loss; by default the classes are drawn with their shares in the training set."""
    counts = torch.tensor(counts)
    prior = counts / counts.sum() if prior is None else torch.tensor(prior)
    return losses.make_loss(Recipe(loss=loss, **OPTIONS[loss] | options), counts, prior)


def plus(offset):
    return torch.tensor(ROWS) + torch.tensor(offset)


def minus_margins(largest, scale=30):  # heads.COSINE_SCALE
    margins = torch.tensor([largest * (210 / n) ** 0.25 for n in COUNTS])
    return torch.tensor(ROWS) - scale * margins * F.one_hot(torch.tensor(LABELS), 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"class_weights": "inverse"}, [5625 / n for n in COUNTS]),
        (EFFECTIVE, [3 * w / sum(EFFECTIVE_WEIGHTS) for w in EFFECTIVE_WEIGHTS]),
        (EFFECTIVE | {"beta": 0.0}, [1, 1, 1]),
        # In float32 this beta is 1.
        (EFFECTIVE | {"beta": 1 - 1e-9}, [3 / n / sum(1 / m for m in COUNTS) for n in COUNTS]),
    ],
)
def test_class_weights_by_hand(options, expected):
    weights = losses.class_weights(Recipe(**options), torch.tensor(COUNTS))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(expected, rel=1e-4)


def test_without_class_weights_there_are_none():
    assert losses.class_weights(Recipe(class_weights="none"), torch.tensor(COUNTS)) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("loss", "options", "rows"),
    [
        ("cross-entropy", {}, torch.tensor(ROWS)),
        ("ldam", {}, minus_margins(0.5)),
        ("ldam", {"margin": 0.2}, minus_margins(0.2)),
        ("balanced-softmax", {}, plus([math.log(n) for n in COUNTS])),
        ("balanced-softmax", {"tau": 3.0}, plus([math.log(n) for n in COUNTS])),
        ("logit-adjusted", {}, plus([1.5 * math.log(p) for p in PRIORS])),
        ("logit-adjusted", {"tau": 0.5}, plus([0.5 * math.log(p) for p in PRIORS])),
        ("logit-adjusted", {"counts": [100] * 3}, torch.tensor(ROWS)),
        # The prior is that of the draws: there is nothing to adjust in balanced draws.
        ("balanced-softmax", {"prior": [1 / 3] * 3}, torch.tensor(ROWS)),
        ("logit-adjusted", {"prior": [1 / 3] * 3}, torch.tensor(ROWS)),
    ],
)
def test_loss_by_hand(loss, options, rows, smoothing):
    log_p = rows.log_softmax(1)
    # (1 - smoothing) times the loss of the label + smoothing times the mean loss of all labels
    expected = -(1 - smoothing) * log_p[range(4), LABELS] - smoothing * log_p.mean(1)
    per_example = make_loss(loss, label_smoothing=smoothing, **options)
    torch.testing.assert_close(per_example(*batch()[:2]), expected)


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
