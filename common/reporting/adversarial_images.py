"""Adversarial images as files, for other programs and for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.transforms.functional import to_pil_image

from common.attacks.gradients import logits_of
from common.dataset.split import LabelledImages
from common.files import atomic_write, save_table
from common.reporting.network_attacks import NetworkAttacks

COLUMNS = ("file", "network", "norm", "epsilon", "image", "label", "prediction", "fools")


def save_adversarial_images(
    folder: Path,
    networks: dict[str, nn.Module],
    attacks: dict[str, NetworkAttacks],
    test: LabelledImages,
    positions: torch.Tensor,
    classes: Sequence[str],
) -> Path:
    """Save the ensemble's images as PNG files in `folder`; return the path of their table.

    The images that a network classifies correctly without noise, at each epsilon, are in
    NETWORK-NORM-EPSILON/CLASS/, which is a folder of images as --data takes it. CLASS is the
    label, and the file's name the position among the test images, from `positions` (N,). Images
    of an earlier run are removed from these folders. The table, images.csv, has a row for each:
    prediction is the network's for the saved image.
    """
    rows, earlier = [], set()
    for name, network in networks.items():
        for strength in attacks[name].strengths.values():
            attacked = (strength.radii > 0).nonzero().flatten().tolist()
            for epsilon, result in strength.results.items():
                predictions = logits_of(network, result.rounded).argmax(1).tolist()
                subfolder = f"{name}-{strength.norm}-{epsilon}"
                earlier |= set((folder / subfolder).glob("*/*[0-9].png"))
                for i in attacked:
                    label, prediction = classes[test.labels[i]], classes[predictions[i]]
                    position = int(positions[i])
                    file = Path(subfolder, label, f"{position:05d}.png")
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    with atomic_write(folder / file) as temporary:
                        to_pil_image(result.rounded[i].cpu()).save(temporary, "PNG")
                    values = (file.as_posix(), name, strength.norm, epsilon, position, label)
                    values += (prediction, "yes" if prediction != label else "no")
                    rows.append(dict(zip(COLUMNS, values, strict=True)))
    for path in earlier - {folder / row["file"] for row in rows}:
        path.unlink()
    return save_table(folder / "images.csv", rows, COLUMNS)
