"""What may follow the training: a classifier that is changed afterwards."""

from __future__ import annotations

from dataclasses import replace

import torch

from common import balance, losses, training
from common.dataset import Part
from common.models import Network
from common.recipes import Recipe


def apply(
    network: Network, examples: Part, validation: Part, recipe: Recipe, *, seed: int,
    device: torch.device, name: str,
) -> dict[str, list[float]]:  # fmt: skip
    """Change the trained classifier in place, as recipe.post_hoc says.

    Returns the arguments that the network has to be rebuilt with, beside those it had.

    - logit-adjustment (Menon et al. 2021): -tau log prior is added to the logits.
    - tau-normalisation (Kang et al. 2020): class weights w become w / |w|^tau, without bias.
    - crt (Kang et al. 2020): the last layer starts anew and is trained alone, on balanced
      draws with plain cross-entropy, for crt_epochs.
    """
    if recipe.post_hoc == "logit-adjustment":
        counts = torch.bincount(examples.labels, minlength=network.last.out_features)
        prior = balance.class_shares(counts, recipe, recipe.epochs - 1)
        network.offset = losses.prior_offset(recipe, prior).float().to(device)
        return {"logit_offset": network.offset.tolist()}
    if recipe.post_hoc == "tau-normalisation":
        with torch.no_grad():
            norms = network.last.weight.norm(dim=1, keepdim=True)
            network.last.weight.div_(norms**recipe.tau)
            if network.last.bias is not None:
                network.last.bias.zero_()
    if recipe.post_hoc == "crt":
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            network.last.reset_parameters()
        network.last.requires_grad_(True)
        balanced = replace(
            recipe,
            epochs=recipe.crt_epochs,
            sampler="balanced",
            sampler_weights=None,
            loss="cross-entropy",
            class_weights="none",
            ema=0.0,
            patience=0,
        )
        where = {"seed": seed, "device": device, "name": f"{name} crt"}
        training.fit(network, examples, validation, balanced, **where)
        network.requires_grad_(True)
    return {}
