"""THE LOADER: from a source of images to one `Split` in memory."""

DEFAULT_CLASSES = ("automobile", "truck", "cat")
