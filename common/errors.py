"""Errors that a script reports in one line, without a traceback."""


class InputError(Exception):
    """Input that can't be used; the message is one line that names it and the remedy."""


class OutputError(Exception):
    """A file that can't be written; the message is one line with its path and the cause."""


class DownloadError(Exception):
    """A file that can't be downloaded; the message is one line with the URL and the cause."""


class DivergedError(Exception):
    """A training loss that is not finite; the message is one line with step and rate."""
