import base64
import csv
import io

import numpy as np
import pytest
from conftest import SIZES, Parsed, fits, random_part
from PIL import Image

from common.dataset.label_fixes import COLUMNS, Suspect
from common.inspection import review_page
from common.inspection.label_audit import CAUTION

CLASSES = ("car", "truck", "cat")
IMAGES = random_part((10, 0, 0)).images
SCRIPT = "</script><script>console.error(1)</script>"
HOSTILE = f"""a, "b" 'é猫' {SCRIPT}<b>&lt;&amp; {{{{ 7 * 7 }}}}.png"""
SUSPECTS = (
    Suspect(7, HOSTILE, "car", "truck", 0.98765, ""),
    Suspect(2, "", "truck", "cat", 0.9, ""),
    Suspect(5, "two\nlines.png", "cat", "car", 0.95, "yes"),
    Suspect(1, "a-folder/" + 30 * "wide" + ".png", "car", "cat", 0.94, "drop"),
    Suspect(3, "", "car", "cat", 0.93, "no"),
    Suspect(4, "with, comma.png", "cat", "truck", 0.89, ""),
)
CONFIDENCES = ("0.9877", "0.9000", "0.9500", "0.9400", "0.9300", "0.8900")
ROWS = [  # of the CSV file
    [
        str(s.index),
        s.file,
        s.given,
        s.suggested,
        confidence,
        s.accept,
        "abc-def",
        s.check("abc-def"),
    ]
    for s, confidence in zip(SUSPECTS, CONFIDENCES, strict=True)
]


@pytest.fixture
def write(tmp_path):
    """Write a page with two figures; the arguments replace those of `review_page.write`."""
    figures = []
    for name, size in (("wide", (900, 400)), ("high", (700, 800))):
        figures.append((f"A {name} figure", tmp_path / f"{name}.png"))
        Image.new("RGB", size, "white").save(figures[-1][1])
    facts = [("Images", "photographs"), ("Fingerprint", "abc-def")]
    defaults = {
        "title": "What is in the data", "facts": facts, "figures": figures,
        "suspects": SUSPECTS, "images": IMAGES, "classes": CLASSES, "fingerprint": "abc-def",
        "csv_name": "label_suspects.csv",
    }  # fmt: skip

    def write(**options):
        path = tmp_path / "figures" / "page.html"
        assert review_page.write(path, **defaults | options) == path
        return path

    return write


def test_page_needs_no_other_file(write, tmp_path):
    path = write()
    page, source = Parsed(path), path.read_text(encoding="utf-8")
    for tag, attributes in page.tags:
        for name in {"src", "srcset", "href", "action", "data", "poster"} & attributes.keys():
            assert attributes[name].startswith("data:"), tag
    assert not [word for word in ("<link", "url(", "@import") if word in source]
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("meta")[0] == {"charset": "utf-8"}  # without it a browser guesses
    images = page.all("img")
    assert [image["alt"] for image in images[:2]] == ["A wide figure", "A high figure"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    wide, high, *suspects = (base64.b64decode(image["src"].split(",")[1]) for image in images)
    assert wide == (tmp_path / "wide.png").read_bytes()
    assert high == (tmp_path / "high.png").read_bytes()
    for png, suspect in zip(suspects, SUSPECTS, strict=True):
        with Image.open(io.BytesIO(png)) as image:
            assert np.array_equal(image, IMAGES[suspect.index].permute(1, 2, 0).numpy())


def test_hostile_text_stays_text(write, tmp_path):
    def pages(text):
        suspect = Suspect(1, "plain.png", "car", "truck", 0.9, "")
        for options in (
            {"title": text},
            {"facts": [(text, "a value")]},
            {"facts": [("a label", text)]},
            {"figures": [(text, tmp_path / "wide.png")]},
            {"suspects": [suspect._replace(file=text)]},
            {"suspects": [suspect._replace(given=text)], "classes": (text, "cat")},
        ):
            page = Parsed(write(**{"suspects": [suspect]} | options))
            yield page.text, [(tag, list(attributes)) for tag, attributes in page.tags]

    for (text, tags), (_, expected) in zip(pages(HOSTILE), pages("harmless"), strict=True):
        assert HOSTILE in text
        assert tags == expected


def test_text_explains_the_suspects_and_the_next_step(write):
    page = Parsed(write())
    assert page.text.count(CAUTION) == 1
    assert "python train.py --label-fixes data/label_suspects.csv" in page.text
    assert page.text.count("photographs") == page.text.count("abc-def") == 1
    assert "No suspects" not in page.text
    page = Parsed(write(suspects=[]))
    assert "No suspects yet" in page.text
    assert "run python inspect_data.py --audit-labels" in page.text
    assert "Download" not in page.text


def test_a_failure_keeps_the_earlier_page(write):
    path = write()
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write(title="\ud800")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# The page in a browser


@pytest.fixture
def opened(tab, write):
    """Open a page that `write` writes; the test fails if the browser complains."""
    page, complaints = tab
    complaints.clear()

    def opened(size="desktop", color_scheme="light", **options):
        width, height = SIZES[size]
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=color_scheme)
        page.goto(write(**options).as_uri())
        return page

    yield opened
    assert complaints == []


def card(page, index):
    return page.get_by_role("article", name=f"Image {index}", exact=True)


def field(page, label, index):
    return card(page, index).get_by_label(label)


ACCEPT, DROP, SUGGESTED = "accept label", "drop image", "suggested"  # the labels of the fields


def download(page):
    """Return the bytes of the CSV file."""
    with page.expect_download() as file:
        page.get_by_role("button", name="Download CSV").click()
    assert file.value.suggested_filename == "label_suspects.csv"
    return file.value.path().read_bytes()


def saved(page, column="accept"):
    """Return the values of a column of the CSV file, with - for an empty value."""
    rows = csv.DictReader(io.StringIO(download(page).decode(), newline=""))
    return " ".join(row[column] or "-" for row in rows)


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_visible_at_any_size(opened, size):
    page = opened(size)
    # A phone lays a page without this tag out 980 pixels wide; a narrow window does not.
    viewport = page.locator("meta[name=viewport]").get_attribute("content")
    assert "width=device-width" in viewport
    assert page.evaluate("innerWidth") == SIZES[size][0]
    assert fits(page)
    assert page.get_by_role("article").count() == len(SUSPECTS)
    widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert widths == [900, 700] + [32] * len(SUSPECTS)
    image = card(page, 2).get_by_role("img")
    assert image.bounding_box()["width"] >= 96
    assert image.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
    for control in page.locator("button, select, [type=number], label").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 44, control
    if size == "phone":  # a single column
        for element in page.locator("article, figure").all():
            assert element.bounding_box().items() >= {"x": 16, "width": 360 - 2 * 16}.items()
    assert card(page, 7).locator(".file").text_content() == HOSTILE
    shown = card(page, 2).inner_text().split("\n")
    assert shown[:3] == ["Image 2", "given truck", "confidence 0.9000"]  # no file
    assert field(page, SUGGESTED, 2).input_value() == "cat"
    for label, checked in ((ACCEPT, 5), (DROP, 1)):
        assert [i for i in (2, 5, 1) if field(page, label, i).is_checked()] == [checked]


@pytest.mark.parametrize(
    ("size", "suspects"), [("desktop", SUSPECTS), ("phone", SUSPECTS), ("phone", ())]
)
def test_a_click_enlarges_a_figure_and_another_fits_it(opened, size, suspects):
    page = opened(size, suspects=suspects)
    button = page.get_by_role("button", name="A wide figure")
    image = button.get_by_role("img")
    fitted = image.bounding_box()["width"]
    assert fitted < 900
    button.click()
    assert image.bounding_box()["width"] == 900
    assert button.get_attribute("aria-expanded") == "true"
    assert fits(page)
    frame = page.locator("figure > div").first
    assert frame.evaluate("div => getComputedStyle(div).overflowX") == "auto"
    button.press("Enter")
    assert image.bounding_box()["width"] == fitted
    assert button.get_attribute("aria-expanded") == "false"
    assert page.get_by_role("article").count() == len(suspects)


def test_dark_colour_scheme_is_followed(opened):
    brightness = """() => ["backgroundColor", "color"].map((name) =>
        Number(getComputedStyle(document.body)[name].match(/\\d+/)[0]))"""
    background, text = opened().evaluate(brightness)
    assert background > 200 > 50 > text
    background, text = opened(color_scheme="dark").evaluate(brightness)
    assert background < 50 < 200 < text


@pytest.mark.parametrize(
    ("clicks", "counts", "expected"),
    [
        ([], "1 accepted, 1 dropped", "- - yes drop no -"),
        ([(DROP, 5), (ACCEPT, 1)], "1 accepted, 1 dropped", "- - drop yes no -"),
        # A withdrawn decision is "no" only if the file already held a decision.
        ([(ACCEPT, 5), (DROP, 1)], "0 accepted, 0 dropped", "- - no no no -"),
        ([(ACCEPT, 2), (ACCEPT, 3)] * 2, "1 accepted, 1 dropped", "- - yes drop no -"),
    ],
)
def test_checkboxes_decide(opened, clicks, counts, expected):
    page = opened()
    for label, index in clicks:
        field(page, label, index).click()
    assert page.get_by_role("status").inner_text() == f"{counts} of 6"
    assert saved(page) == expected
    both = page.locator("article:has([name=accept]:checked):has([name=drop]:checked)")
    assert both.count() == 0


def test_accept_all_accepts_undecided_suspects_of_this_confidence(opened):
    page = opened()
    field(page, ACCEPT, 5).uncheck()
    button = page.get_by_role("button", name="Accept all")
    button.click()
    assert page.get_by_role("status").inner_text() == "2 accepted, 1 dropped of 6"
    assert saved(page) == "yes yes no drop no -"
    least = page.get_by_label("Accept all undecided")
    assert least.input_value() == "0.90"
    least.fill("")
    button.click()
    assert saved(page) == "yes yes no drop no -"
    least.fill("0.885")
    least.press("Enter")
    assert saved(page) == "yes yes no drop no yes"


def test_a_class_with_many_spaces_in_its_name_keeps_them(opened):
    classes = ("car", " big  cat ")
    suspects = [Suspect(4, "a.png", "car", classes[1], 0.9, "")]
    page = opened(classes=classes, suspects=suspects)
    field(page, ACCEPT, 4).check()
    assert saved(page, "suggested") == classes[1]
    assert saved(page, "check") == suspects[0].check("abc-def")
    page.get_by_label("Show").select_option("car")
    assert card(page, 4).is_visible()


def test_hidden_suspects_are_saved_too(opened):
    page = opened()
    show = page.get_by_label("Show")
    assert show.locator("option").all_inner_texts() == ["all given labels", *CLASSES]
    field(page, ACCEPT, 7).check()
    names = page.get_by_role("article").locator("h3")
    for given, shown in (("cat", [5, 4]), ("car", [7, 1, 3]), ("truck", [2])):
        show.select_option(given)
        assert names.all_inner_texts() == [f"Image {index}" for index in shown]
    assert saved(page) == "yes - yes drop no -"
    page.get_by_label("Accept all undecided").fill("0")
    page.get_by_role("button", name="Accept all").click()
    assert saved(page) == "yes yes yes drop no yes"
    show.select_option("")
    assert names.count() == len(SUSPECTS)


def test_keyboard_decides_and_enter_keeps_the_decisions(opened):
    page = opened()
    field(page, SUGGESTED, 7).focus()
    for key in ("Tab", "Space", "Enter", *["Tab"] * 4, "Space"):
        page.keyboard.press(key)
    # Some browsers submit the form on Enter in a checkbox, which would reload the page.
    submit = "form => form.dispatchEvent(new Event('submit', {cancelable: true}))"
    assert not page.locator("#decisions").evaluate(submit)
    assert saved(page) == "yes drop yes drop no -"


def test_leaving_with_unsaved_decisions_warns(opened):
    page = opened()
    warnings = []
    page.on("dialog", lambda dialog: warnings.append(dialog.type))
    page.get_by_role("heading", name="Figures").click()  # a page without clicks never warns
    page.reload()
    field(page, ACCEPT, 2).check()
    download(page)
    page.reload()
    field(page, ACCEPT, 2).check()
    field(page, ACCEPT, 2).uncheck()
    page.reload()
    assert warnings == []
    field(page, ACCEPT, 2).check()
    page.reload()
    assert warnings == ["beforeunload"]


def test_decisions_are_saved_in_the_file_alone(opened):
    page, expected = opened(), io.StringIO()
    csv.writer(expected).writerows([COLUMNS, *ROWS])
    assert download(page) == expected.getvalue().encode()
    field(page, ACCEPT, 2).check()
    field(page, SUGGESTED, 2).select_option("car")
    field(page, DROP, 4).check()
    field(page, SUGGESTED, 3).select_option("truck")
    assert saved(page) == "- yes yes drop no drop"
    assert saved(page, "suggested") == "truck car car cat truck truck"
    chosen = [
        s._replace(suggested=name)
        for s, name in zip(SUSPECTS, saved(page, "suggested").split(), strict=True)
    ]
    assert saved(page, "check") == " ".join(s.check("abc-def") for s in chosen)
    page.get_by_label("Show").select_option("cat")
    page.goto("about:blank")
    page.go_back()  # a reopened page is the page as written
    assert download(page) == expected.getvalue().encode()
    assert page.get_by_label("Show").input_value() == ""
