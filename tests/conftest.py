from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from common.dataset.load import load
from common.dataset.split import LabelledImages
from common.files import ROOT
from common.terminal import ENDING_SIGNALS

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
# For make mutants: a test that fails need not look for its smallest example, which takes long.
settings.register_profile(
    "mutants",
    settings.get_profile("repeatable"),
    phases=[
        phase for phase in settings.default.phases if phase.name in ("explicit", "generate")
    ],
)
# Batches are small here: two threads would wait for each other longer than they compute.
torch.set_num_threads(1)
REAL_IMAGES = os.environ.get("CIFAR10_DIR")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "microsoft-edge")
SIZES = {"desktop": (1200, 900), "phone": (360, 740)}


@pytest.fixture
def real_split():
    """The default split of the photographs in CIFAR10_DIR."""
    if not REAL_IMAGES:
        pytest.skip("needs real images: set CIFAR10_DIR to a CIFAR-10 folder")
    return load(REAL_IMAGES)


@pytest.fixture
def image_folder(tmp_path):
    """train/ and test/ of automobile, truck and cat: 8 and 4 PNGs each, of random pixels."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for part, count in (("train", 8), ("test", 4)):
        for name in ("automobile", "truck", "cat"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:04}.png")
    return root


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A new folder to be in, no CIFAR10_DIR, and nothing that answers a download."""
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    monkeypatch.setenv("CIFAR10_URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def script(offline):
    """Run a script as a user does: script(name, argument, ..., VARIABLE=value)."""

    def run(name: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, ROOT / name, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | variables,
            check=False,
        )

    return run


@pytest.fixture
def in_process(offline, monkeypatch, capsys):
    """The same without a new process, which spends seconds on imports."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code, threads = 0, torch.get_num_threads()
        handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())

    return run


def random_part(counts: tuple[int, ...], seed: int = 0) -> LabelledImages:
    """Return random images with these numbers of labels 0, 1, ..."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shape = (len(labels), 3, 32, 32)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return LabelledImages(images, labels)


def check_seed(draw: Callable[[int], torch.Tensor]) -> None:
    """Check that draw(seed) depends on its seed, and not on the global random states.

    The global states of PyTorch and NumPy must stay unchanged.
    """
    results = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 2)):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        states = torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].copy())
        results.append(draw(seed))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert torch.equal(torch.from_numpy(np.random.get_state()[1]), states[1])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def numbers_of(text: str) -> set[str]:
    """Return all numbers that a text prints with three decimals."""
    return set(re.findall(r"(?<![\d.])\d+\.\d{3}(?!\d)", text))


def saved_numbers(value: object) -> set[str]:
    """Return all numbers of a result file, as they would be printed."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*map(saved_numbers, value))
    return {f"{value:.3f}"} if isinstance(value, int | float) else set()


def is_one_line(text: str, *words: object) -> bool:
    """Return whether text is a single line that contains all words."""
    return text.count("\n") == 1 and all(str(word) in text for word in words)


EMPTY = LabelledImages(torch.empty(0, 3, 32, 32, dtype=torch.uint8), torch.empty(0).long())


class Parsed(HTMLParser):
    """The page's tags as (name, attributes), and its text without scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem is None:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def tab():
    """A tab of a browser without a network, and the list of the browser's complaints."""
    needed = "needs a browser to drive: apt install chromium, and pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=needed)
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"{needed} (none of {', '.join(BROWSERS)} is on the PATH)")
    complaints = []

    def report_request(request):
        inline = request.url.startswith(("data:", "blob:"))
        if not inline and not request.is_navigation_request():
            complaints.append(request.url)

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.on("request", report_request)
        page.on("dialog", lambda dialog: dialog.accept())  # leave a page with unsaved changes
        yield page, complaints
        browser.close()


def fits(page):
    """Return whether the page is no wider than the window."""
    return page.locator("html").evaluate("html => html.scrollWidth <= html.clientWidth")
