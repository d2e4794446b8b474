import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.training import losses
from common.training.recipe import Recipe

COUNTS = [4949, 466, 210]
PRIORS = [n / sum(COUNTS) for n in COUNTS]
ROWS = [[2.0, 0.5, -1.0], [0.3, -0.2, 1.5], [1.0, 4.0, 0.0], [-0.7, 0.1, 0.2]]
LABELS, PARTNERS, SHARES = [0, 1, 2, 2], [1, 2, 0, 2], [0.25, 1.0, 0.0, 0.6]
WEIGHTS = [0.5, 2.0, 7.0]
LABEL_AWARE = "label-aware-smoothing"
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


def scaled(gamma, tau, prior=PRIORS):
    """Return the logits of VS loss (Kini et al. 2021, equation 2) by hand."""
    factors = torch.tensor([(n / 4949) ** gamma for n in COUNTS])
    return factors * torch.tensor(ROWS) + torch.tensor([tau * math.log(p) for p in prior])


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
        ("vs", {}, scaled(0.15, 1.0)),
        ("vs", {"vs_gamma": 0.3, "tau": 0.5}, scaled(0.3, 0.5)),
        ("vs", {"vs_gamma": 0.0}, plus([math.log(p) for p in PRIORS])),
        ("vs", {"counts": [100] * 3}, torch.tensor(ROWS)),
        ("vs", {"prior": [1 / 3] * 3}, scaled(0.15, 0.0)),
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


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        # class_imbalance/losses.py of orparask/VS-Loss at 7ade9c9
        ("vs", {"vs_gamma": 0.15}, [0.020958, 2.934625, 4.622857, 2.597828]),
        ("vs", {"vs_gamma": 0.3, "tau": 1.5}, [0.005788, 3.973085, 5.81611, 4.039334]),
        # methods.py of dvlab-research/MiSLAS at 0fc381e, with its default shape
        (LABEL_AWARE, {}, [0.691311, 2.076013, 4.065884, 0.837856]),
        (
            LABEL_AWARE,
            {"smoothing_head": 0.1, "smoothing_tail": 0.02},
            [0.391311, 2.07502, 4.032551, 0.844523],
        ),
    ],
)
def test_losses_have_the_numbers_of_their_authors_code(loss, options, expected):
    found = make_loss(loss, **options)(*batch()[:2])
    assert found.tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("counts", "head", "tail", "expected"),
    [
        # The middle count is a third of the way, and the sine of 30 degrees is a half.
        ([400, 200, 100], 0.3, 0.0, [0.3, 0.15, 0.0]),
        ([100, 400, 200], 0.3, 0.1, [0.1, 0.3, 0.2]),
        ([400, 200, 100], 0.0, 0.2, [0.0, 0.1, 0.2]),
        ([7, 7, 7], 0.3, 0.1, [0.1, 0.1, 0.1]),
    ],
)
def test_label_aware_smoothing_by_hand(counts, head, tail, expected):
    recipe = Recipe(smoothing_head=head, smoothing_tail=tail)
    found = losses.label_aware_smoothing(recipe, torch.tensor(counts))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    # The draws play no part: crt draws the classes equally.
    per_example = make_loss(
        LABEL_AWARE, counts, [1 / 3] * 3, smoothing_head=head, smoothing_tail=tail
    )
    for row, label, loss in zip(ROWS, LABELS, per_example(*batch()[:2]), strict=True):
        smoothed = F.cross_entropy(
            torch.tensor(row), torch.tensor(label), label_smoothing=expected[label]
        )
        torch.testing.assert_close(loss, smoothed)


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


@st.composite
def examples(draw):
    """Draw logits (N, K) in float64, labels, partners and shares (N,), and counts (K,)."""
    n, k = draw(st.integers(1, 5)), draw(st.integers(2, 4))

    def tensor(elements, *shape):
        size = math.prod(shape)
        values = draw(st.lists(elements, min_size=size, max_size=size))
        return torch.tensor(values).view(shape)

    logits = tensor(st.integers(-60, 60).map(lambda v: v / 10), n, k).double()
    labels, partners = (tensor(st.integers(0, k - 1), n) for _ in range(2))
    shares = tensor(st.integers(0, 8).map(lambda v: v / 8), n).double()
    counts = tensor(st.integers(1, 6000), k)
    return logits, labels, partners, shares, counts


FEW = settings(max_examples=50)
CASES = st.tuples(st.sampled_from(list(OPTIONS)), examples())


def loss_for(loss, counts, **options):
    recipe = Recipe(loss=loss, **OPTIONS[loss] | options)
    return losses.make_loss(recipe, counts, counts.double() / counts.sum())


def loss_by_loop(loss, row, label, counts):
    """Return one example's loss with the defaults of OPTIONS, from Python numbers."""
    if loss == "ldam":
        row = list(row)
        row[label] -= 30 * 0.5 * (min(counts) / counts[label]) ** 0.25
    tau = {"balanced-softmax": 1.0, "logit-adjusted": 1.5}.get(loss, 0.0)
    if loss == "vs":
        tau = 1.0
        row = [v * (n / max(counts)) ** 0.15 for v, n in zip(row, counts, strict=True)]
    terms = [math.exp(v) * n**tau for v, n in zip(row, counts, strict=True)]
    p = terms[label] / sum(terms)
    if loss == LABEL_AWARE:
        spread = max(counts) - min(counts)
        turn = (counts[label] - min(counts)) / spread if spread else 0.0
        s = 0.3 * math.sin(math.pi / 2 * turn)
        mean = sum(-math.log(term / sum(terms)) for term in terms) / len(terms)
        return (1 - s) * -math.log(p) + s * mean
    return -math.log(p) * ((1 - p) ** 2 if loss == "focal" else 1)


@FEW
@given(CASES)
def test_each_loss_equals_its_formula_for_one_example(case):
    loss, (logits, labels, _, _, counts) = case
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    expected = [loss_by_loop(loss, row, label, counts.tolist()) for row, label in rows]
    # The margins of ldam are float32, like the factors of vs and the smoothing.
    assert loss_for(loss, counts)(logits, labels).tolist() == pytest.approx(
        expected, 1e-5, 1e-9
    )


@FEW
@given(CASES, st.floats(-50, 50), st.randoms(use_true_random=False))
def test_a_loss_depends_on_differences_of_logits_and_not_on_the_order_of_classes(
    case, constant, random
):
    loss, (logits, labels, _, _, counts) = case
    expected = loss_for(loss, counts)(logits, labels)
    # VS loss scales each class's logit: what it does not depend on is scaled inversely.
    shift = constant / (counts / counts.max()) ** (0.15 if loss == "vs" else 0.0)
    found = loss_for(loss, counts)(logits + shift, labels)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if loss == "vs" else {}  # its factors are float32
    torch.testing.assert_close(found, expected, **tolerance)
    order = list(range(len(counts)))
    random.shuffle(order)  # position j now holds class order[j]
    new_labels = torch.tensor([order.index(label) for label in labels])
    found = loss_for(loss, counts[order])(logits[:, order], new_labels)
    torch.testing.assert_close(found, expected)


@FEW
@given(examples(), st.sampled_from([0.0, 0.3]))
def test_balanced_softmax_is_the_logit_adjusted_loss_with_tau_1(case, smoothing):
    logits, labels, _, _, counts = case
    balanced, adjusted = (
        loss_for(loss, counts, tau=tau, label_smoothing=smoothing)(logits, labels)
        for loss, tau in (("balanced-softmax", 3.0), ("logit-adjusted", 1.0))
    )
    assert torch.equal(balanced, adjusted)


@FEW
@given(examples(), st.floats(0, 5), st.floats(0, 5))
def test_focal_falls_with_gamma_from_the_cross_entropy(case, gamma, larger):
    logits, labels, *_ = case
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses.focal(logits, labels, gamma=0.0), cross_entropy)
    gamma, larger = sorted((gamma, larger))
    values = [losses.focal(logits, labels, gamma=g) for g in (larger, gamma, 0.0)]
    assert (values[0] >= 0).all()
    assert (values[0] <= values[1]).all()
    assert (values[1] <= values[2]).all()


@FEW
@given(CASES, st.booleans(), st.booleans())
def test_a_gradient_is_that_of_finite_differences(case, mixes, weighted):
    loss, (logits, labels, partners, shares, counts) = case
    weights = 5625 / counts.double() if weighted else None
    mixed = (partners, shares) if mixes else ()

    def scalar(x):
        return losses.batch_loss(loss_for(loss, counts), weights, x, labels, *mixed)

    x = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(x), x)
    h = 1e-5
    for position in range(min(x.numel(), 4)):
        step = torch.zeros_like(x).view(-1).index_fill(0, torch.tensor(position), h).view_as(x)
        slope = (scalar(x + step) - scalar(x - step)).item() / (2 * h)
        assert float(gradient.view(-1)[position]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@FEW
@given(examples(), st.floats(0.01, 100))
def test_a_weighted_mean_is_a_mean(case, factor):
    logits, labels, partners, shares, counts = case
    values, weights = logits[:, 0], 1 / counts.double()
    found = losses.weighted_mean(values, labels, weights)
    assert values.min() - 1e-9 <= found <= values.max() + 1e-9
    torch.testing.assert_close(losses.weighted_mean(values, labels, factor * weights), found)
    ones = torch.ones_like(values)
    torch.testing.assert_close(losses.weighted_mean(values, labels, weights, ones), found)
    plain = losses.weighted_mean(values, labels, None)
    torch.testing.assert_close(losses.weighted_mean(values, labels, None, 0.3 * ones), plain)
    # A partner with the share 0 does not count.
    per_example = loss_for("cross-entropy", counts)
    unmixed = losses.batch_loss(per_example, weights, logits, labels)
    mixed = losses.batch_loss(per_example, weights, logits, labels, partners, ones)
    torch.testing.assert_close(mixed, unmixed)
    swapped = losses.batch_loss(per_example, weights, logits, partners, labels, 1 - shares)
    mixed = losses.batch_loss(per_example, weights, logits, labels, partners, shares)
    torch.testing.assert_close(swapped, mixed)


@FEW
@given(examples(), st.floats(0, 1 - 1e-9))
def test_class_weights_have_their_sums(case, beta):
    counts = case[-1]
    inverse = losses.class_weights(Recipe(class_weights="inverse"), counts)
    assert (inverse * counts).tolist() == pytest.approx([sum(counts.tolist())] * len(counts))
    effective = losses.class_weights(Recipe(**EFFECTIVE, beta=beta), counts)
    assert float(effective.sum()) == pytest.approx(len(counts), rel=1e-5)
    # The effective number of n examples is 1 + beta + ... + beta^(n - 1).
    sums = [math.fsum(beta**i for i in range(n)) for n in counts.tolist()]
    products = [w * s for w, s in zip(effective.tolist(), sums, strict=True)]
    assert products == pytest.approx([products[0]] * len(products), rel=1e-4)


@FEW
@given(examples(), st.floats(0, 3))
def test_the_post_hoc_offset_divides_probabilities_by_the_prior(case, tau):
    logits, *_, counts = case
    prior = counts.double() / counts.sum()
    offset = losses.post_hoc_offset(Recipe(tau=tau), prior)
    corrected = (logits + offset).exp()
    torch.testing.assert_close(corrected, logits.exp() / prior**tau)


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({}, "cross-entropy"),
        ({"loss": "balanced-softmax"}, "balanced softmax loss"),
        ({"loss": "focal", "class_weights": "inverse"}, "class-weighted focal loss"),
        ({"loss": "vs"}, "VS loss"),
        ({"adversarial": 4.0, "trades": 6.0}, "cross-entropy with the penalty of TRADES"),
    ],
)
def test_the_title_names_the_loss_and_its_weights(options, title):
    assert losses.loss_title(Recipe(**options)) == title
