"""THE LOADER: from a source of images to one `Split` in memory."""

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
DEFAULT_CLASSES = ("automobile", "truck", "cat")
