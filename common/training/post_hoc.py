"""Changes to the classifier of a trained network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from common.dataset.split import LabelledImages
from common.networks.build import torch_seed
from common.training.fit import fit, require_finite
from common.training.losses import post_hoc_offset
from common.training.progress import StateFile
from common.training.recipe import Recipe
from common.training.sampling import class_shares


def apply(
    network: nn.Module, examples: LabelledImages, validation: LabelledImages, recipe: Recipe,
    *, seed: int, device: torch.device, name: str, state_file: StateFile | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Change the trained classifier in place, as `recipe.post_hoc` says.

    - logit-adjustment (Menon et al. 2021): adds -tau log prior to the logits.
    - tau-normalisation (Kang et al. 2020): replaces class weights w by w / |w|^tau, and drops
      the bias.
    - crt (Kang et al. 2020): initialises the last layer again and trains it alone, for
      `crt_epochs` on balanced draws with `crt_loss`. Mixing, adversarial images, SAM and label
      smoothing end with the training before; augmentation and `max_norm` stay. Training with
      mixup, and crt with label-aware smoothing, are the two parts of MiSLAS (Zhong et al.
      2021), whose second stage goes on from the trained last layer and learns a factor of each
      class's logit as well.

    state_file: that of crt's training, as `fit` takes it. Returns the arguments that the
    network must be rebuilt with, beside those it had. Raises DivergedError if the training of
    crt diverges.
    """
    head = network.head
    if recipe.post_hoc == "logit-adjustment":
        counts = torch.bincount(examples.labels, minlength=head.out_features)
        prior = class_shares(counts, recipe, recipe.epochs - 1)
        head.logit_offset = post_hoc_offset(recipe, prior).float().to(device)
        return {"logit_offset": head.logit_offset.tolist()}
    if recipe.post_hoc == "tau-normalisation":
        with torch.no_grad():
            norms = head.weight.norm(dim=1, keepdim=True)
            head.weight.div_(norms**recipe.tau)
            if head.bias is not None:
                head.bias.zero_()
    if recipe.post_hoc == "crt":
        network.requires_grad_(False)
        with torch_seed(seed, device):
            head.reset_parameters()
        head.requires_grad_(True)
        balanced = replace(
            recipe,
            epochs=recipe.crt_epochs,
            sampler="balanced",
            sampler_weights=None,
            loss=recipe.crt_loss,
            label_smoothing=0.0,
            class_weights="none",
            mix="none",
            adversarial=0.0,
            trades=0.0,
            sam=0.0,
            sam_class_weighted=False,
            ema=0.0,
            patience=0,
        )
        history = fit(
            network, examples, validation, balanced,
            seed=seed, device=device, name=f"{name} crt", state_file=state_file,
        )  # fmt: skip
        network.requires_grad_(True)
        require_finite(history, balanced, "the loss of crt")
    return {}
