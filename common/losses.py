"""Loss functions for imbalanced classes.

A loss takes logits (N, K) and labels (N,) and returns one loss per example (N,), in the
logits' precision or better. `weighted_mean` and `mixed` make a step's scalar of them; class
weights enter only there. Nothing that runs at every step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from common.models import COSINE_SCALE
from common.recipes import Recipe

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def class_weights(recipe: Recipe, counts: torch.Tensor) -> torch.Tensor | None:
    """Weights (K,) of the classes in the loss, from their images `counts` (K,), all above 0.

    none: None. inverse: |train set| / |class|, not normalised. effective-number:
    1 / (1 - beta^n), normalised to sum K (Cui et al. 2019; their factor 1 - beta cancels).

    >>> recipe = Recipe(class_weights="effective-number", beta=0.9999)
    >>> class_weights(recipe, torch.tensor([4949, 466, 210]))
    tensor([0.1058, 0.9070, 1.9872])
    """
    if recipe.class_weights == "none":
        return None
    # Float32 would round a beta near 1 to 1; on the CPU, as not every device has float64.
    n = counts.cpu().double()
    if recipe.class_weights == "inverse":
        weights = n.sum() / n
    else:
        weights = 1 / (1 - recipe.beta**n)
        weights *= len(n) / weights.sum()
    return weights.float().to(counts.device)


def prior_offset(recipe: Recipe, prior: torch.Tensor) -> torch.Tensor:
    """-tau * log prior (K,): what post-hoc logit adjustment adds to the logits of a network
    trained with an unadjusted loss on classes of these shares (Menon et al. 2021)."""
    return -recipe.tau * prior.log()


def ldam_margins(recipe: Recipe, counts: torch.Tensor) -> torch.Tensor:
    """Margins (K,) proportional to n^(-1/4), the greatest recipe.margin (Cao et al. 2019).

    >>> recipe = Recipe(loss="ldam", classifier="cosine", margin=0.5)
    >>> ldam_margins(recipe, torch.tensor([4949, 466, 210]))
    tensor([0.2269, 0.4097, 0.5000])
    """
    margins = counts**-0.25
    return recipe.margin / margins.max() * margins


def focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    """(1 - p)^gamma * -log p, with p the label's softmax probability (Lin et al. 2017).

    p carries no class weight: a weighted cross-entropy is not the logarithm of a probability.
    """
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    wrong = -torch.expm1(-cross_entropy)  # 1 - p
    # At 0 the power's derivative is infinite for gamma < 1, and the gradient not a number.
    return wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** gamma * cross_entropy


def make(recipe: Recipe, counts: torch.Tensor, prior: torch.Tensor) -> Loss:
    """The recipe's loss, for training images `counts` (K,) per class, all above 0, of which
    the classes are drawn with shares `prior` (K,), which differ from theirs with a sampler.

    Its constants lie on the device of both. With CE the cross-entropy, smoothed by
    recipe.label_smoothing:

    cross-entropy: CE(logits).
    focal: see `focal`.
    ldam: CE(logits - scale * margin, at the label only), see `ldam_margins`. Its logits are
    scale * cosine already.
    balanced-softmax: CE(logits + log n) (Ren et al. 2020), n the classes' numbers of draws;
    logit-adjusted at tau 1.
    logit-adjusted: CE(logits + tau * log prior) (Menon et al. 2021).
    """
    if recipe.loss == "focal":
        return partial(focal, gamma=recipe.focal_gamma)
    cross_entropy = partial(
        F.cross_entropy, reduction="none", label_smoothing=recipe.label_smoothing
    )
    if recipe.loss == "cross-entropy":
        return cross_entropy
    if recipe.loss == "ldam":
        # Row y is what a label y takes from the logits: its own margin, from its own logit.
        taken = torch.diag(COSINE_SCALE * ldam_margins(recipe, counts))
        return lambda logits, labels: cross_entropy(logits - taken[labels], labels)
    tau = {"balanced-softmax": 1.0, "logit-adjusted": recipe.tau}[recipe.loss]
    # For balanced-softmax too: a softmax doesn't see that log n - log prior is a constant.
    added = tau * prior.log()
    return lambda logits, labels: cross_entropy(logits + added, labels)


def of_each(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The losses (..., N) of one or more networks' logits (..., N, K), for labels (..., N)."""
    repeated = labels.expand(logits.shape[:-1])
    return loss(logits.flatten(0, -2), repeated.flatten()).view(repeated.shape)


def weighted_mean(
    losses: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    shares: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """sum(s w_y l) / sum(s w_y), (...), for losses l and labels y, both (..., N).

    weights: w (K,), or None for all 1. shares: how much of an example counts, s (N,). With
    shares 1 it is what CrossEntropyLoss(weight=w) makes of unsmoothed losses: weights act
    between the classes of a batch, and a batch of one class doesn't feel them.
    """
    if weights is None and isinstance(shares, float):
        return losses.mean(-1)  # the same in one operator, not four, which a small batch feels
    w = shares * (torch.ones_like(losses) if weights is None else weights[labels])
    return (w * losses).sum(-1) / w.sum(-1)


def mixed(
    loss: Loss,
    logits: torch.Tensor,
    labels: torch.Tensor,
    partners: torch.Tensor,
    shares: torch.Tensor,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    """Mean losses (...) for logits (..., N, K) of images mixed from two (mixup, Zhang et al.
    2018; CutMix, Yun et al. 2019): each counts as an example of `labels` with its share and of
    `partners` with the rest. labels, partners, shares (in [0, 1]): (..., N). weights: as in
    `weighted_mean`.
    """
    losses = torch.cat([of_each(loss, logits, y) for y in (labels, partners)], -1)
    both, counted = torch.cat([labels, partners], -1), torch.cat([shares, 1 - shares], -1)
    return weighted_mean(losses, both, weights, counted)
