"""Transfer: whether images that fool one network fool the others too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from common.attacks.gradients import logits_of
from common.attacks.pgd import pgd


class Transfer(NamedTuple):
    """How many of `images` fool a network: of those that both networks classify correctly."""

    fooled: int
    images: int

    def share(self) -> float | None:
        """Return the share of the images that fool, None without images."""
        return self.fooled / self.images if self.images else None


def transfer(
    networks: dict[str, nn.Module], x: torch.Tensor, labels: torch.Tensor, *, epsilon: float,
    steps: int, seed: int,
) -> dict[str, dict[str, Transfer]]:  # fmt: skip
    """Return, by the network that images are made on and the one they are tried on, Transfer.

    x: float32 (N, 3, S, S) in [0, 1]. The images are those of MI-FGSM within epsilon in
    L-infinity, made to transfer (Dong et al. 2018): PGD with momentum 1 that does not stop at
    the first success.
    """
    correct = {name: logits_of(each, x).argmax(1) == labels for name, each in networks.items()}
    table = {}
    for made_on, network in networks.items():
        images = pgd(
            network, x, labels, epsilon=epsilon, steps=steps, momentum=1.0, stop=False,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        table[made_on] = {}
        for tried_on, other in networks.items():
            both = correct[made_on] & correct[tried_on]
            fooled = both & (logits_of(other, images).argmax(1) != labels)
            table[made_on][tried_on] = Transfer(int(fooled.sum()), int(both.sum()))
    return table
