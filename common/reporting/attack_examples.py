"""Examples of an attack for the results page: a few images at each epsilon, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import to_pil_image

from common.attacks.gradients import logits_of
from common.attacks.pgd import pgd
from common.attacks.rounding import fool_in_8_bits
from common.attacks.table import Settings
from common.files import atomic_write
from common.reporting.attack_pictures import MOST_ROWS, Subject
from common.reporting.figures import spread

IMAGES_OF_A_CLASS = 2


def save_examples(path: Path, subject: Subject, settings: Settings) -> dict[str, Any]:
    """Save what PGD makes of a few test images at each epsilon; return their record.

    The images are the first two of each class that the network gets right; of more than
    MOST_ROWS classes, of so many from the first to the last. `path` is a PNG of their own size
    of pixels, a sprite: a row for each image, a column for each epsilon, 0 first. The record
    names the sprite, the side "size" of an image in pixels, the "epsilons" in 1/255, and for
    each image its "label" and at each epsilon the predicted class with its probability. The
    predictions are of the images in 8 bits, which the sprite shows.
    """
    classes = subject.classes
    at = [
        i
        for k in spread(len(classes), MOST_ROWS)
        for i in subject.correct_positions(k, IMAGES_OF_A_CLASS)
    ]
    x, labels = subject.test.images[at], subject.test.labels[at]
    epsilons = sorted({0, *settings.epsilons})
    generator = torch.Generator().manual_seed(settings.seed)
    columns, predictions = [], []
    for epsilon in epsilons:
        given = (subject.network, x, labels)
        bound = {"epsilon": epsilon / 255, "norm": "linf", "generator": generator}
        images = pgd(*given, **bound, steps=settings.steps, restarts=settings.restarts)
        columns.append(fool_in_8_bits(*given, images, **bound))
        probabilities, predicted = logits_of(subject.network, columns[-1]).softmax(1).max(1)
        predictions.append(
            [[classes[k], p] for k, p in zip(predicted, probabilities.tolist(), strict=True)]
        )
    rows = torch.cat(columns, 3)  # (n, 3, S, epsilons x S)
    with atomic_write(path) as temporary:
        to_pil_image(torch.cat([*rows], 1).cpu()).save(temporary, "PNG")
    return {
        "sprite": path.name,
        "size": x.shape[-1],
        "epsilons": epsilons,
        "images": [
            {"label": classes[label], "predictions": list(of_image)}
            for label, of_image in zip(labels, zip(*predictions, strict=True), strict=True)
        ],
    }
