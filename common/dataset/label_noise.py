"""Wrong labels planted into the train images."""

from collections.abc import Sequence

import numpy as np
import torch


def plant_noise(
    labels: torch.Tensor, shares: Sequence[tuple[int, float]], classes: int, seed: int
) -> torch.Tensor:
    """Return labels (N,) with a share of the labels of each named class replaced.

    shares: (class, share); of the n images of a class, round(share * n) are drawn at random
    and get one of the other labels with equal probability. The draw of a class depends only
    on the seed and the class.
    """
    noisy = labels.clone()
    for k, share in shares:
        rng = np.random.default_rng([seed, k])
        positions = (labels == k).nonzero().flatten().numpy()
        chosen = rng.choice(positions, round(share * len(positions)), replace=False)
        wrong = rng.choice([j for j in range(classes) if j != k], len(chosen))
        noisy[torch.from_numpy(chosen)] = torch.from_numpy(wrong)
    return noisy
