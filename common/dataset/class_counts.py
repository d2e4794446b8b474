"""How many images of each class are drawn."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import InputError

# The images of each class in the reports' data set, in label order.
EXERCISE = {"train": (4949, 466, 210), "test": (551, 51, 23)}
# In a dry run: the images of the first class, and of each other class.
DRY_RUN = {"train": (60, 20), "test": (20, 6)}
Counts = Sequence[int | str]


def class_counts(
    part: str,
    requested: Counts | None,
    available: Sequence[int],
    classes: Sequence[str],
    *,
    is_cifar10: bool,
    dry_run: bool,
) -> list[int]:
    """Return how many images of each class to draw for a part, "train" or "test".

    requested: a number or "full" for each class; or a single "full", "exp:RATIO" or
    "step:RATIO" for all of them; or None, the default: the reports' numbers for three classes
    of CIFAR-10, otherwise all images. available: the images of each class. In a dry run each
    number is at least 1, and at most the images that there are. Raises InputError for a wrong
    number of counts, and for a class with too few images.
    """
    option = f"--{part}-counts"
    if requested is None and dry_run:
        first, other = DRY_RUN[part]
        requested = [first] + [other] * (len(classes) - 1)
    elif requested is None:
        is_exercise = is_cifar10 and len(classes) == len(EXERCISE[part])
        requested = EXERCISE[part] if is_exercise else ["full"]
    kind, _, ratio = str(requested[0]).partition(":")
    if len(requested) == 1 and ratio:
        largest = min(available[0], DRY_RUN[part][0]) if dry_run else available[0]
        requested = imbalanced_counts(kind, float(ratio), largest, len(classes))
    elif list(requested) == ["full"]:
        requested = ["full"] * len(classes)
    if len(requested) != len(classes):
        raise InputError(f"{option}: {len(requested)} numbers for {len(classes)} classes")
    if any(isinstance(count, str) and count != "full" for count in requested):
        raise InputError(f"{option}: exp:RATIO or step:RATIO stands alone, for all classes")
    counts = []
    for name, count, n in zip(classes, requested, available, strict=True):
        count = n if count == "full" else count
        if dry_run:
            count = min(max(count, 1), n)
        if n == 0:
            raise InputError(
                f"class {name}: has no {part} images; add some, or name the other classes with"
                " --classes"
            )
        if not 0 < count <= n:
            raise InputError(f"{option}: {count} images of {name} requested, there are {n}")
        counts.append(count)
    return counts


def imbalanced_counts(kind: str, ratio: float, largest: int, classes: int) -> list[int]:
    """Return the images of each class in the imbalanced data sets of the field.

    exp: n_k = n_0 * ratio^(-k / (K - 1)), rounded down, long-tailed (Cui et al. 2019). step:
    the first half of the classes has n_0 images, the others n_0 / ratio (Buda et al. 2018); of
    an odd number of classes the larger half is small. largest: n_0.

    >>> imbalanced_counts("exp", 100, 5000, 10)
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    >>> imbalanced_counts("step", 10, 5000, 3)
    [5000, 500, 500]
    """
    if kind == "step":
        large = classes // 2
        return [largest] * large + [int(largest / ratio)] * (classes - large)
    exponents = (k / (classes - 1) for k in range(classes))
    # The rounding error of the power must not take an image away.
    return [int(largest * ratio**-x + 1e-9) for x in exponents]
