"""Loss functions for imbalanced classes.

A loss takes logits (N, K) and labels (N,) and returns one loss per example, (N,). `batch_loss`
reduces these to the scalar of a step; class weights apply only there. No function that runs in
every step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from common.networks.heads import COSINE_SCALE
from common.training.recipe import Recipe

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# To add a loss: a branch of `make_loss`, its title here, and its name in recipe.py.
TITLES = {
    "cross-entropy": "cross-entropy",
    "focal": "focal loss",
    "ldam": "LDAM loss",
    "balanced-softmax": "balanced softmax loss",
    "logit-adjusted": "logit-adjusted loss",
    "vs": "VS loss",
    "label-aware-smoothing": "cross-entropy with label-aware smoothing",
}


def loss_title(recipe: Recipe) -> str:
    """Return the name of the loss that the recipe minimises, for figures.

    >>> loss_title(Recipe(loss="focal", class_weights="inverse"))
    'class-weighted focal loss'
    """
    title = ("" if recipe.class_weights == "none" else "class-weighted ") + TITLES[recipe.loss]
    return f"{title} with the penalty of TRADES" if recipe.trades else title


def class_weights(recipe: Recipe, counts: torch.Tensor) -> torch.Tensor | None:
    """Return the classes' weights (K,) in the loss, from their image counts (K,), all above 0.

    none: None. inverse: N / n_k, not normalised. effective-number: 1 / (1 - beta^n_k),
    normalised to the sum K (Cui et al. 2019; their factor 1 - beta cancels).

    >>> recipe = Recipe(class_weights="effective-number", beta=0.9999)
    >>> class_weights(recipe, torch.tensor([4949, 466, 210]))
    tensor([0.1058, 0.9070, 1.9872])
    """
    if recipe.class_weights == "none":
        return None
    # In float32 a beta near 1 would be rounded to 1. The CPU, unlike some devices, has float64.
    n = counts.double()
    if recipe.class_weights == "inverse":
        weights = n.sum() / n
    else:
        weights = 1 / (1 - recipe.beta**n)
        weights *= len(n) / weights.sum()
    return weights.float()


def post_hoc_offset(recipe: Recipe, prior: torch.Tensor) -> torch.Tensor:
    """Return -tau log prior (K,), the offset of post-hoc logit adjustment (Menon et al. 2021).

    The offset is added to the logits of a network that was trained with an unadjusted loss on
    classes with the shares `prior`.
    """
    return -recipe.tau * prior.log()


def ldam_margins(recipe: Recipe, counts: torch.Tensor) -> torch.Tensor:
    """Return margins (K,) proportional to n_k^(-1/4), the largest `margin` (Cao et al. 2019).

    >>> recipe = Recipe(loss="ldam", classifier="cosine", margin=0.5)
    >>> ldam_margins(recipe, torch.tensor([4949, 466, 210]))
    tensor([0.2269, 0.4097, 0.5000])
    """
    margins = counts**-0.25
    return recipe.margin / margins.max() * margins


def label_aware_smoothing(recipe: Recipe, counts: torch.Tensor) -> torch.Tensor:
    """Return the share (K,) of each class's labels that is spread (MiSLAS, Zhong et al. 2021).

    From `smoothing_tail` for the smallest class to `smoothing_head` for the largest, with the
    sine of a quarter turn between: the concave form, the default of the authors' code. Classes
    of equal counts all have `smoothing_tail`.

    >>> recipe = Recipe(loss="label-aware-smoothing", smoothing_head=0.3, smoothing_tail=0.0)
    >>> label_aware_smoothing(recipe, torch.tensor([4949, 466, 210]))
    tensor([0.3000, 0.0254, 0.0000])
    """
    smallest = counts.min()
    turn = (counts - smallest) / (counts.max() - smallest).clamp(min=1)  # 0 to 1
    rise = recipe.smoothing_head - recipe.smoothing_tail
    return recipe.smoothing_tail + rise * (turn * (torch.pi / 2)).sin()


def smoothed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: torch.Tensor
) -> torch.Tensor:
    """Return (1 - s) * -log p_y - s * mean(log p) for labels y, with s the smoothing of y.

    smoothing: (K,). With the same s for all classes this is PyTorch's `label_smoothing`.
    """
    log_p = logits.log_softmax(1)
    s = smoothing[labels]
    return (1 - s) * F.nll_loss(log_p, labels, reduction="none") - s * log_p.mean(1)


def focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return (1 - p)^gamma * -log p, with p the label's softmax probability (Lin et al. 2017).

    p carries no class weight: a weighted cross-entropy is not the logarithm of a probability.
    """
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    one_minus_p = -torch.expm1(-cross_entropy)
    # For gamma < 1 the derivative of the power is infinite at 0, and the gradient would be NaN.
    return one_minus_p.clamp(min=torch.finfo(one_minus_p.dtype).tiny) ** gamma * cross_entropy


def make_loss(recipe: Recipe, counts: torch.Tensor, prior: torch.Tensor) -> Loss:
    """Return the recipe's loss, with its constants on the device of `counts` and `prior`.

    counts: training images per class (K,), all above 0. prior: the share (K,) of each class in
    the draws of the epoch, which depends on the sampler. CE is the cross-entropy, smoothed by
    `label_smoothing`:

    - cross-entropy: CE(logits)
    - focal: `focal`
    - ldam: CE(logits'), where the label's logit is reduced by scale times the label's margin
      (`ldam_margins`). The logits themselves are scale * cosine.
    - balanced-softmax: CE(logits + log n) with n the number of draws of each class (Ren et al.
      2020), which equals logit-adjusted with tau 1
    - logit-adjusted: CE(logits + tau * log prior) (Menon et al. 2021)
    - vs: CE((n_k / n_max)^vs_gamma * logits + tau * log prior), vector scaling, with n_k the
      counts (Kini et al. 2021)
    - label-aware-smoothing: `smoothed_cross_entropy`, by `label_aware_smoothing`
    """
    if recipe.loss == "focal":
        return partial(focal, gamma=recipe.focal_gamma)
    if recipe.loss == "label-aware-smoothing":
        smoothing = label_aware_smoothing(recipe, counts)
        return partial(smoothed_cross_entropy, smoothing=smoothing)
    cross_entropy = partial(
        F.cross_entropy, reduction="none", label_smoothing=recipe.label_smoothing
    )
    if recipe.loss == "cross-entropy":
        return cross_entropy
    if recipe.loss == "ldam":
        # Row y is subtracted from the logits of an example of class y.
        label_margins = torch.diag(COSINE_SCALE * ldam_margins(recipe, counts))
        return lambda logits, labels: cross_entropy(logits - label_margins[labels], labels)
    # log n and log prior differ by a constant, to which a softmax is invariant.
    tau = 1.0 if recipe.loss == "balanced-softmax" else recipe.tau
    adjustment = tau * prior.log()
    if recipe.loss == "vs":
        factors = (counts / counts.max()) ** recipe.vs_gamma
        return lambda logits, labels: cross_entropy(factors * logits + adjustment, labels)
    return lambda logits, labels: cross_entropy(logits + adjustment, labels)


def weighted_mean(
    losses: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return sum(s w_y l) / sum(s w_y), a scalar, for losses l and labels y, both (N,).

    weights: w (K,), or None for all 1. shares: how much each example counts, s (N,), or None
    for all 1; then the result is that of CrossEntropyLoss(weight=w) on unsmoothed losses.
    Weights act between the classes of a batch: a batch of one class is not affected.
    """
    if weights is None and shares is None:
        # One operator instead of four: at batch size 4 the overhead is measurable.
        return losses.mean()
    example_weights = torch.ones_like(losses) if weights is None else weights[labels]
    if shares is not None:
        example_weights = shares * example_weights
    return (example_weights * losses).sum() / example_weights.sum()


def batch_loss(
    loss: Loss,
    weights: torch.Tensor | None,
    logits: torch.Tensor,
    labels: torch.Tensor,
    partners: torch.Tensor | None = None,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean loss of a batch, a scalar, from logits (N, K) and labels (N,).

    weights: class weights (K,) or None. partners, shares: for mixed images (mixup, Zhang et al.
    2018; CutMix, Yun et al. 2019), (N,) each. A mixed image counts as an example of its label
    with its share s, in [0, 1], and as an example of its partner's label with 1 - s.
    """
    if partners is None:
        return weighted_mean(loss(logits, labels), labels, weights)
    losses = torch.cat([loss(logits, labels), loss(logits, partners)])
    return weighted_mean(
        losses, torch.cat([labels, partners]), weights, torch.cat([shares, 1 - shares])
    )
