from __future__ import annotations

import base64
import csv
import io
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import random_part
from PIL import Image

from common import review
from common.relabel import Suspect

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "microsoft-edge")
SIZES = {"desktop": (1200, 900), "phone": (360, 740)}
CLASSES = ("car", "truck", "cat")
IMAGES = random_part((10, 0, 0)).images
HOSTILE = (
    """a, "b" 'é猫' </script><script>console.error(1)</script><b>&lt;&amp; {{ 7 * 7 }}.png"""
)
LONG = "a-folder/" + 30 * "wide" + ".png"
HEADER = ["index", "file", "given", "suggested", "confidence", "accept", "data"]


SUSPECTS = (
    Suspect(7, HOSTILE, "car", "truck", 0.98765, ""),
    Suspect(2, "", "truck", "cat", 0.9, ""),
    Suspect(5, "two\nlines.png", "cat", "car", 0.95, "yes"),
    Suspect(1, LONG, "car", "cat", 0.94, "drop"),
    Suspect(3, "", "car", "cat", 0.93, "no"),
    Suspect(4, "with, comma.png", "cat", "truck", 0.89, ""),
)
UNTOUCHED = [
    ["7", HOSTILE, "car", "truck", "0.9877", "", "abc-def"],
    ["2", "", "truck", "cat", "0.9000", "", "abc-def"],
    ["5", "two\nlines.png", "cat", "car", "0.9500", "yes", "abc-def"],
    ["1", LONG, "car", "cat", "0.9400", "drop", "abc-def"],
    ["3", "", "car", "cat", "0.9300", "no", "abc-def"],
    ["4", "with, comma.png", "cat", "truck", "0.8900", "", "abc-def"],
]


@pytest.fixture
def write(tmp_path):
    """Write a page with two figures; arguments take the place of its usual ones."""
    drawn = []
    for name, size in (("wide", (900, 400)), ("high", (700, 800))):
        drawn.append((f"A {name} figure", tmp_path / f"{name}.png"))
        Image.new("RGB", size, "white").save(drawn[-1][1])

    def write(**changed):
        usual = {
            "title": "What is in the data",
            "facts": [("Images", "photographs"), ("Fingerprint", "abc-def")],
            "figures": drawn,
            "suspects": SUSPECTS,
            "images": IMAGES,
            "classes": CLASSES,
            "fingerprint": "abc-def",
            "csv_name": "label_suspects.csv",
        }
        path = tmp_path / "figures" / "page.html"
        assert review.write(path, **usual | changed) == path
        return path

    return write


class Parsed(HTMLParser):
    """The page's tags as (name, attributes), and its text outside of style and script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.style = [], "", ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem is None:
            self.text += data
        elif self.cdata_elem == "style":
            self.style += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_needs_no_other_file(write):
    page = Parsed(write())
    for tag, attributes in page.tags:
        for name in {"src", "srcset", "href", "action", "data", "poster"} & attributes.keys():
            assert attributes[name].startswith("data:"), tag
    assert not page.all("link")
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("meta")[0] == {"charset": "utf-8"}  # which a browser may not guess
    assert page.style
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_pictures_are_the_suspects(write):
    uris = [image["src"] for image in Parsed(write()).all("img")][2:]
    assert len(uris) == len(SUSPECTS)
    for uri, suspect in zip(uris, SUSPECTS, strict=True):
        kind, data = uri.split(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert np.array_equal(image, IMAGES[suspect.index].permute(1, 2, 0).numpy())


def test_figures_are_embedded_as_they_are(write, tmp_path):
    wide, high = Parsed(write()).all("img")[:2]
    assert (wide["alt"], high["alt"]) == ("A wide figure", "A high figure")
    assert base64.b64decode(wide["src"].split(",")[1]) == (tmp_path / "wide.png").read_bytes()
    assert base64.b64decode(high["src"].split(",")[1]) == (tmp_path / "high.png").read_bytes()


@pytest.mark.parametrize("where", ["title", "label", "value", "caption", "file", "class"])
def test_hostile_text_stays_text(write, tmp_path, where):
    def with_text(text):
        suspect = Suspect(1, "plain.png", "car", "truck", 0.9, "")
        changed = {
            "title": {"title": text},
            "label": {"facts": [(text, "a value")]},
            "value": {"facts": [("a label", text)]},
            "caption": {"figures": [(text, tmp_path / "wide.png")]},
            "file": {"suspects": [suspect._replace(file=text)]},
            "class": {"suspects": [suspect._replace(given=text)], "classes": (text, "cat")},
        }
        return Parsed(write(**{"suspects": [suspect]} | changed[where]))

    hostile, harmless = with_text(HOSTILE), with_text("harmless")
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert [list(names) for _, names in hostile.tags] == [list(n) for _, n in harmless.tags]
    assert HOSTILE in hostile.text


def test_without_suspects_names_the_audit(write):
    page = Parsed(write(suspects=[]))
    assert "No audit yet: python inspect_data.py --audit-labels" in page.text
    assert "Download" not in page.text
    assert "No audit yet" not in Parsed(write()).text


def test_says_what_the_suspects_are_and_what_comes_next(write):
    page = Parsed(write())
    assert page.text.count(review.CAUTION) == 1
    assert "python train.py --label-fixes data/label_suspects.csv" in page.text
    assert page.text.count("photographs") == page.text.count("abc-def") == 1


def test_a_failure_leaves_the_page_that_was_there(write):
    path = write()
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write(title="\ud800")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture(scope="module")
def tab():
    """A browser's tab without a network, and the list of what the browser complains about."""
    needed = "needs a browser to drive: apt install chromium, and pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=needed)
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"{needed} (none of {', '.join(BROWSERS)} is on the PATH)")
    complaints = []

    def requested(request):
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
        page.on("request", requested)
        page.on("dialog", lambda dialog: dialog.accept())  # leave what a test has changed
        yield page, complaints
        browser.close()


@pytest.fixture
def opened(tab, write):
    """Open a page of `write`; the test fails for what the browser complains about."""
    page, complaints = tab
    complaints.clear()

    def opened(size="desktop", color_scheme="light", **changed):
        width, height = SIZES[size]
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=color_scheme)
        page.goto(write(**changed).as_uri())
        return page

    yield opened
    assert complaints == []


def card(page, index):
    return page.get_by_role("article", name=f"Image {index}", exact=True)


def accept(page, index):
    return card(page, index).get_by_label("accept: relabel")


def drop(page, index):
    return card(page, index).get_by_label("drop the image")


def downloaded(page):
    """The bytes of the file that the button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the CSV").click()
    assert download.value.suggested_filename == "label_suspects.csv"
    return download.value.path().read_bytes()


def rows(page):
    """The rows of that file, after its header."""
    header, *rows = csv.reader(io.StringIO(downloaded(page).decode(), newline=""))
    assert header == HEADER
    return rows


def decided(page):
    return [row[HEADER.index("accept")] for row in rows(page)]


def fits(page):
    """Whether nothing has to be scrolled sideways to be read."""
    width, seen = page.evaluate(
        "(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(document.documentElement)"
    )
    return width <= seen


@pytest.mark.parametrize("size", SIZES)
def test_all_is_shown_at_any_size(opened, size):
    page = opened(size)
    assert page.evaluate("innerWidth") == SIZES[size][0]
    assert fits(page)
    assert page.get_by_role("article").count() == len(SUSPECTS)
    widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert widths == [900, 700] + [32] * len(SUSPECTS)
    picture = card(page, 2).get_by_role("img")
    assert picture.bounding_box()["width"] >= 96
    assert picture.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
    small = """controls => controls.map((control) => control.getBoundingClientRect())
        .filter(({width, height}) => Math.min(width, height) < 44).length"""
    assert page.locator("button, select, [type=number], label").evaluate_all(small) == 0


def test_a_phone_gets_one_column_in_its_own_width(opened):
    page = opened("phone")
    # Without it a phone lays the page out 980 pixels wide; a narrow window doesn't.
    viewport = page.locator("meta[name=viewport]").get_attribute("content")
    assert "width=device-width" in viewport
    places = """elements => elements.map((element) => element.getBoundingClientRect())
        .map(({x, width}) => [x, width])"""
    for kind, count in (("article", len(SUSPECTS)), ("figure", 2)):
        assert page.locator(kind).evaluate_all(places) == [[16, 360 - 2 * 16]] * count


@pytest.mark.parametrize("size", SIZES)
def test_a_figure_is_enlarged_and_made_to_fit_again(opened, size):
    page = opened(size)
    button = page.get_by_role("button", name="A wide figure")
    image = button.get_by_role("img")
    fitting = image.bounding_box()["width"]
    assert fitting < 900
    button.click()
    assert image.bounding_box()["width"] == 900
    assert button.get_attribute("aria-expanded") == "true"
    assert fits(page)
    around = page.locator("figure > div").first
    assert around.evaluate("div => getComputedStyle(div).overflowX") == "auto"
    button.press("Enter")
    assert image.bounding_box()["width"] == fitting
    assert button.get_attribute("aria-expanded") == "false"


def test_dark_where_the_reader_likes_it_dark(opened):
    brightness = """() => ["backgroundColor", "color"].map((name) =>
        Number(getComputedStyle(document.body)[name].match(/\\d+/)[0]))"""
    page, text = opened().evaluate(brightness)
    assert page > 200 > 50 > text
    page, text = opened(color_scheme="dark").evaluate(brightness)
    assert page < 50 < 200 < text


def test_untouched_saves_what_the_csv_module_would(opened):
    page = opened()
    expected = io.StringIO()
    csv.writer(expected).writerows([HEADER, *UNTOUCHED])
    assert downloaded(page) == expected.getvalue().encode()
    assert page.get_by_role("status").inner_text() == "1 accepted, 1 dropped of 6"


def test_a_suspect_is_shown_as_it_is(opened):
    page = opened()
    assert card(page, 7).locator(".file").text_content() == HOSTILE
    shown = card(page, 2).inner_text().split("\n")
    assert shown[:3] == ["Image 2", "given truck", "confidence 0.9000"]  # and no file
    assert card(page, 2).get_by_label("suggested").input_value() == "cat"
    assert [accept(page, i).is_checked() for i in (2, 5, 1)] == [False, True, False]
    assert [drop(page, i).is_checked() for i in (2, 5, 1)] == [False, False, True]


def test_saves_what_was_decided(opened):
    page = opened()
    accept(page, 2).check()
    card(page, 2).get_by_label("suggested").select_option("car")
    drop(page, 4).check()
    card(page, 3).get_by_label("suggested").select_option("truck")
    assert page.get_by_role("status").inner_text() == "2 accepted, 2 dropped of 6"
    assert rows(page) == [
        ["7", HOSTILE, "car", "truck", "0.9877", "", "abc-def"],
        ["2", "", "truck", "car", "0.9000", "yes", "abc-def"],
        ["5", "two\nlines.png", "cat", "car", "0.9500", "yes", "abc-def"],
        ["1", LONG, "car", "cat", "0.9400", "drop", "abc-def"],
        ["3", "", "car", "truck", "0.9300", "no", "abc-def"],
        ["4", "with, comma.png", "cat", "truck", "0.8900", "drop", "abc-def"],
    ]


def test_accept_and_drop_exclude_each_other(opened):
    page = opened()
    drop(page, 5).check()
    assert not accept(page, 5).is_checked()
    accept(page, 1).check()
    assert not drop(page, 1).is_checked()
    assert decided(page) == ["", "", "drop", "yes", "no", ""]


def test_what_is_taken_back_is_no_only_where_it_was_decided(opened):
    page = opened()
    accept(page, 5).uncheck()
    drop(page, 1).uncheck()
    for index in (2, 3):
        accept(page, index).check()
        accept(page, index).uncheck()
    assert page.get_by_role("status").inner_text() == "0 accepted, 0 dropped of 6"
    assert decided(page) == ["", "", "no", "no", "no", ""]


def test_accept_above_takes_the_undecided_with_that_confidence(opened):
    page = opened()
    accept(page, 5).uncheck()
    button = page.get_by_role("button", name="Accept all")
    button.click()
    assert page.get_by_role("status").inner_text() == "2 accepted, 1 dropped of 6"
    assert decided(page) == ["yes", "yes", "no", "drop", "no", ""]
    least = page.get_by_label("Accept all undecided")
    assert least.input_value() == "0.90"
    least.fill("")
    button.click()
    assert decided(page) == ["yes", "yes", "no", "drop", "no", ""]
    least.fill("0.885")
    least.press("Enter")
    assert decided(page) == ["yes", "yes", "no", "drop", "no", "yes"]


def test_the_filter_hides_and_still_saves_all(opened):
    page = opened()
    show = page.get_by_label("Show")
    assert show.locator("option").all_inner_texts() == ["all given labels", *CLASSES]
    accept(page, 7).check()
    names = page.get_by_role("article").locator("h3")
    for given, shown in (("cat", [5, 4]), ("truck", [2]), ("car", [7, 1, 3])):
        show.select_option(given)
        assert names.all_inner_texts() == [f"Image {index}" for index in shown]
    show.select_option("truck")
    assert decided(page) == ["yes", "", "yes", "drop", "no", ""]
    page.get_by_label("Accept all undecided").fill("0")
    page.get_by_role("button", name="Accept all").click()
    assert decided(page) == ["yes", "yes", "yes", "drop", "no", "yes"]  # as its label says
    show.select_option("")
    assert names.count() == len(SUSPECTS)


def test_the_keyboard_decides_and_enter_loses_nothing(opened):
    page = opened()
    card(page, 7).get_by_label("suggested").focus()
    for key in ("Tab", "Space", "Enter", *["Tab"] * 4, "Space"):
        page.keyboard.press(key)
    # What Enter does in a box is left to browsers; some submit the form, which would reload.
    submit = "form => form.dispatchEvent(new Event('submit', {cancelable: true}))"
    assert not page.locator("#decisions").evaluate(submit)
    assert decided(page) == ["yes", "drop", "yes", "drop", "no", ""]


def test_warns_of_changes_that_were_not_saved(opened):
    page = opened()
    warnings = []
    page.on("dialog", lambda dialog: warnings.append(dialog.type))
    page.get_by_role("heading", name="Figures").click()  # a browser warns of no untouched page
    page.reload()
    accept(page, 2).check()
    downloaded(page)
    page.reload()
    accept(page, 2).check()
    accept(page, 2).uncheck()
    page.reload()
    assert warnings == []
    accept(page, 2).check()
    page.reload()
    assert warnings == ["beforeunload"]


def test_starts_with_the_files_decisions_whenever_it_is_opened(opened):
    page = opened()
    accept(page, 2).check()
    card(page, 2).get_by_label("suggested").select_option("car")
    page.get_by_label("Show").select_option("cat")
    page.goto("about:blank")
    page.go_back()
    assert rows(page) == UNTOUCHED
    assert page.get_by_label("Show").input_value() == ""


def test_without_suspects_the_figures_can_be_enlarged(opened):
    page = opened(suspects=[])
    button = page.get_by_role("button", name="A wide figure")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    assert page.get_by_role("article").count() == 0
