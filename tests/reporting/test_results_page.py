"""The results page: what it shows, and that everyone can use it, without any other file."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import os
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import SIZES, Parsed, fits, is_one_line, numbers_of, saved_numbers
from PIL import Image

from common.errors import OutputError
from common.files import _digest, save_result
from common.metrics.intervals import proportion_interval
from common.reporting.results_page import write_results_page
from common.reporting.strength_tables import MASKED

STAGES = ("The data", "Evaluation", "Recipes compared", "Learning rates", "Attacks")
HOSTILE = "</td><script>console.error(1)</script>\"'&lt;\u202eabc\x1b" + 200 * "W"
HOSTILE_SHOWN = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
COLOURS = [(200, 30, 40), (30, 160, 60), (40, 60, 220), (240, 200, 30), (90, 90, 90), (0, 0, 0)]
RULES = ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]  # of axe-core


class Numbers:
    """Different numbers, each with an interval around it."""

    def __init__(self):
        self.values = (k / 1000 for k in itertools.count(21, 7))

    def one(self):
        value = next(self.values)
        return value, [value - 0.011, value + 0.012]

    def some(self, n):
        values, intervals = zip(*(self.one() for _ in range(n)), strict=True)
        return list(values), list(intervals)

    def report(self, classes, metrics, per_class):
        found = {"classes": classes, "intervals": {}, "undefined": []}
        for name in metrics:
            found[name], found["intervals"][name] = self.one()
        for name in per_class:
            found[name], found["intervals"][name] = self.some(len(classes))
        return found


def records(classes=("car", "truck", "cat"), recipes=("original", "smote", "sampler-2")):
    """Return a result of each kind by the name of its file, each with other numbers."""
    numbers, classes = Numbers(), list(classes)

    def report():
        found = numbers.report(
            classes, ("accuracy", "balanced_accuracy", "g_mean"), ("precision", "recall", "f1")
        )
        for average, metric in itertools.product(
            ("macro", "weighted"), ("precision", "recall", "f1")
        ):
            found.setdefault(average, {})[metric], interval = numbers.one()
            found["intervals"][f"{average}_{metric}"] = interval
        return found | {"support": [551, 51, 23]}

    def summary():
        value, interval = numbers.one()
        return {
            "mean": value, "deviation": 0.031, "interval": interval, "best": 0.25,
            "difference": 0.0, "difference_interval": None, "p_training": None,
            "p_images": 0.001,
        }  # fmt: skip

    def comparison(names):
        metrics = [
            "accuracy",
            "balanced accuracy",
            "G-mean",
            *(f"recall of {c}" for c in classes),
        ]
        summaries = {name: {metric: summary() for metric in metrics} for name in names}
        return {"summaries": summaries, "reference": names[0], "seeds": 2, "tests": 9}

    def curve(unit, epsilons):
        results = {e: {"report": report(), "flipped": 3, "attacked": 9} for e in epsilons}
        return {"description": "d", "unit": unit, "seconds": 1.5, "results": results}

    def strength():
        median, interval = numbers.one()
        return {
            "attacked": 599, "masked": True,
            "smallest_noise": {
                name: {"median": median, "interval": interval, "images": 7} for name in classes
            },
            "ensemble": {"8": {
                "stages": {"APGD, margin": {"fools": 41, "report": report(), "seconds": 2.5}},
                "in_8_bits": {"fools": 40, "report": report()},
            }},
        }  # fmt: skip

    judged = numbers.report(
        classes, ("mean_average_precision", "brier", "ece"),
        ("average_precision", "class_brier", "class_ece"),
    )  # fmt: skip

    def transfer(fooled, images):
        interval = proportion_interval(fooled, images) if images else None
        share = fooled / images if images else None
        return {"fooled": fooled, "images": images, "share": share, "interval": interval}

    median, _ = numbers.one()
    point = {"learning_rate": 0.3, "value": 0.75, "balanced_accuracy": 0.6543}
    rate = {
        "rate": 0.005, "verdict": "good", "diverged": None,
        "history": {"loss": [1.25, 0.75], "validation_loss": [0.875], "best_epoch": None},
        "validation": {"g_mean": 0.3219, "intervals": {"g_mean": [0.3126, 0.3345]}},
    }  # fmt: skip
    pairs = [{"second_part": part, "second_index": i} for part, i in
             (("test", 4), ("test", 4), ("test", 6), ("train", 9))]  # fmt: skip
    by_network = {"best": strength(), "robust": strength()}
    return {
        "inspect_data": {"duplicates": pairs, "always_largest_class": 0.8816},
        "evaluate": {"comparison": comparison(["baseline", "best"]) | {"seeds": 1}},
        "evaluate_best": {
            "report": report() | {"undefined": [f"precision of {classes[1]}"]},
            "probabilities": judged, "checkpoint": {"trained_on_test": False},
        },
        "train_comparison": {"comparison": comparison(list(recipes)), "diverged": {}},
        "race_3-classes": {
            "comparison": comparison(["none", "tau"]), "not_compared": ["smote is left out."],
            "selection_data": {"validation_counts": [5, 5, 5]}, "published": None,
            "remedies": {
                "none": {"parameter": "weight_decay", "grid": [point], "chosen": 0},
                "tau": {"parameter": "tau", "grid": [point], "chosen": None},
            },
        },
        "lr_sweep_original": {"rates": [rate], "best_rate": 0.005},
        "lr_sweep_original_range_test": {
            "suggestion": 0.0123, "edge": None, "sweep_best_rate": 0.005,
        },
        "adversarial_best": {
            "curves": {
                name: {"PGD": curve("1/255", ["0", "8"]), "L2": curve("epsilon", ["0.5"])}
                for name in by_network
            },
            "strength": {name: {"linf": each} for name, each in by_network.items()},
            "transfer": {
                a: {b: transfer(5, 40) if a == b else transfer(0, 0) for b in by_network}
                for a in by_network
            },
            "checkpoints": {name: {"trained_on_test": name == "robust"} for name in by_network},
            "noise": {"zeros start": {
                "fooled": 3, "images": 4, "interval": [0.284, 0.972],
                "medians": {"L1": median, "L2": None, "Linf": 0.25},
            }},
            "universal": {"balanced": {"test": {"report": report(), "fooling_rate": 0.031}}},
            "settings": {"epsilon": 16, "ensemble_epsilons": [4, 8]},
            "examples": {
                "sprite": "adversarial_best_examples.png", "size": 16, "epsilons": [0, 4, 8],
                "images": [
                    {"label": classes[0], "predictions": [
                        [classes[0], 0.975], [classes[0], 0.5], [classes[1], 0.75],
                    ]},
                    {"label": classes[1], "predictions": [
                        [classes[1], 0.9], [classes[1], 0.8], [classes[1], 0.7],
                    ]},
                ],
            },
        },
    }  # fmt: skip


FIGURES = (
    "inspect_data_counts", "evaluate_best_confusion", "evaluate_best_precision_recall",
    "evaluate_confusions",
    "train_comparison", "train_original_loss", "lr_sweep_original_loss",
    "lr_sweep_original_range_test", "adversarial_best_epsilon",
)  # fmt: skip


def save(folder, name, record, classes=("car", "truck", "cat"), source="photographs"):
    data = {
        "source": source, "fingerprint": "abc-def", "classes": list(classes),
        "train_counts": [4949, 466, 210], "validation_counts": [0, 0, 9],
        "test_counts": [551, 51, 23],
    }  # fmt: skip
    save_result(folder / f"{name}.json", data=data, seed=3, device="cpu", seconds=1.0, **record)


def save_figure(folder, name, size=(900, 400)):
    Image.new("RGB", size, COLOURS[len(name) % 6]).save(folder / f"{name}.png")


def save_sprite(folder):
    """Save two rows of three plain pictures of 16 pixels."""
    pixels = np.array(COLOURS, dtype=np.uint8).reshape(2, 3, 3).repeat(16, 0).repeat(16, 1)
    Image.fromarray(pixels).save(folder / "adversarial_best_examples.png")


def save_all(folder, **given):
    for name, record in records(**given).items():
        save(folder, name, record, given.get("classes", ("car", "truck", "cat")))
    for name in FIGURES:
        save_figure(folder, name)
    save_sprite(folder)


class Tables(HTMLParser):
    """The tables of a page: by caption, a list of rows, each a list of texts."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.kind = {}, None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("caption", "td", "th"):
            self.kind = tag

    def handle_endtag(self, tag):
        if tag == self.kind:
            self.kind = None
        if tag == "table":
            assert self.caption not in self.tables
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        if self.kind == "caption":
            self.caption += data
        elif self.kind:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())


def shown(value, interval):
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def test_stages_come_in_order_with_their_figures_and_how_they_were_made(tmp_path):
    save_all(tmp_path)
    path = write_results_page(tmp_path)
    assert path == tmp_path / "index.html"
    page = Parsed(path)
    places = [page.text.index(f"{k}. {title}") for k, title in enumerate(STAGES, 1)]
    assert places == sorted(places)
    images = page.all("img")
    assert len(images) == len(FIGURES)
    embedded = {base64.b64decode(image["src"].partition(",")[2]) for image in images}
    assert embedded == {(tmp_path / f"{name}.png").read_bytes() for name in FIGURES}
    for image in images:
        assert (image["width"], image["height"]) == ("900", "400")
        assert len(image["alt"]) > 10
    for name, record in records().items():
        saved = json.loads((tmp_path / f"{name}.json").read_text())
        assert f"python {saved['command']}" in page.text
        assert saved["processor"] in page.text
        assert f"torch {saved['versions']['torch']}" in page.text
        assert page.text.count(
            "photographs: 5,625 train, 9 validation, 625 test images"
        ) == len(records())
        seeds = "seeds 3, 4" if record.get("comparison", {}).get("seeds") == 2 else "seed 3"
        assert f"625 test images; {seeds};" in page.text
    assert "No results yet" not in page.text


def test_tables_hold_the_numbers_of_the_result_files(tmp_path):
    save_all(tmp_path)
    tables = Tables(write_results_page(tmp_path)).tables
    printed = set().union(*(numbers_of(str(rows)) for rows in tables.values()))
    given = records()
    assert printed <= saved_numbers(given) | {"0.000", "0.750"}  # undefined; 3 of 4 fooled
    assert len(printed) > 200
    assert tables["Images of each class"][1:] == [
        ["car", "4,949", "0", "551"], ["truck", "466", "0", "51"], ["cat", "210", "9", "23"],
        ["total", "5,625", "9", "625"],
    ]  # fmt: skip
    report = given["evaluate_best"]["report"]
    of_classes = tables["Precision, recall and F1 of each class, with 95% intervals"]
    assert of_classes[0] == ["class", "test images", "precision", "recall", "F1"]
    assert of_classes[2] == ["truck", "51", "0.000 undefined"] + [
        shown(report[m][1], report["intervals"][m][1]) for m in ("recall", "f1")
    ]
    summaries = given["train_comparison"]["comparison"]["summaries"]
    rows = tables["Recipes compared, the best first by G-mean"]
    assert [row[0] for row in rows] == ["recipe", "sampler-2", "smote", "original"]
    s = summaries["smote"]["accuracy"]
    cell = shown(s["mean"], s["interval"]).replace(" ", " ±.031 ", 1)
    assert rows[2][rows[0].index("accuracy")] == f"{cell}†"
    assert tables["Settings that were chosen"][1:] == [
        ["none", "0.3", "weight-decay", "0.75", "0.654"], ["tau", "-", "tau", "-", "-"],
    ]  # fmt: skip
    assert tables["Learning rates compared"][1] == [
        "0.005", "1.250", "0.750", "0.875", "0.322 [0.313, 0.335]", "good",
    ]  # fmt: skip
    assert tables["What the range test found"][1][1] == "0.012"
    attacked = given["adversarial_best"]
    r = attacked["curves"]["robust"]["PGD"]["results"]["8"]["report"]
    rows = tables["robust: balanced accuracy by epsilon in 1/255, with 95% intervals"]
    assert rows[0] == ["attack", "0", "8"]
    assert rows[1][2] == shown(r["balanced_accuracy"], r["intervals"]["balanced_accuracy"])
    rows = tables["robust: recall of each class under PGD by epsilon in 1/255"]
    assert rows[3][2] == shown(r["recall"][2], r["intervals"]["recall"][2])
    r = attacked["strength"]["best"]["linf"]["ensemble"]["8"]["in_8_bits"]["report"]
    rows = tables["best: ensemble of attacks at epsilon 8 (L-infinity, 1/255)"]
    assert rows[2][:3] == ["in 8 bits", "40", shown(r["accuracy"], r["intervals"]["accuracy"])]
    noise = attacked["strength"]["robust"]["linf"]["smallest_noise"]["cat"]
    [rows] = [table for caption, table in tables.items() if caption.startswith("Transfer: ")]
    assert rows[0] == ["made on, tried on", "best", "robust !"]
    assert rows[1] == ["best", shown(5 / 40, proportion_interval(5, 40)), "-"]
    rows = tables["Smallest noise that fools: median of each class, with 95% intervals"]
    assert rows[0][3] == "robust !, L-infinity (1/255)"
    assert rows[3] == ["cat", "7", rows[3][2], shown(noise["median"], noise["interval"])]
    caption = "Each image at each epsilon, with the predicted class and its probability"
    assert tables[caption] == [
        ["image", "0/255", "4/255", "8/255"],
        ["car 1", "car, 98%", "car, 50%", "truck, 75% (wrong)"],
        ["truck 1", "truck, 90%", "truck, 80%", "truck, 70%"],
    ]  # fmt: skip


def test_masked_gradients_and_networks_trained_on_the_test_images_are_named(tmp_path):
    record = records()["adversarial_best"]
    save(tmp_path, "adversarial_best", record)
    text = Parsed(write_results_page(tmp_path)).text
    assert MASKED in text
    assert "!: trained on the test images too" in text
    assert "Trained on these test images" in text
    for network in record["strength"]:
        record["strength"][network]["linf"]["masked"] = False
        record["checkpoints"][network]["trained_on_test"] = False
    save(tmp_path, "adversarial_best", record)
    text = Parsed(write_results_page(tmp_path)).text
    assert MASKED not in text
    assert "rained on the" not in text


def test_noise_that_nobody_found_is_infinite(tmp_path):
    record = records()["adversarial_best"]
    noise = record["strength"]["best"]["linf"]["smallest_noise"]["car"]
    noise["interval"] = [1.5, None]
    save(tmp_path, "adversarial_best", record)
    tables = Tables(write_results_page(tmp_path)).tables
    rows = tables["Smallest noise that fools: median of each class, with 95% intervals"]
    assert rows[1][2].endswith("[1.500, inf]")


def test_a_network_that_saw_the_test_images_is_named(tmp_path):
    record = records()["evaluate_best"]
    for trained_on_test in (False, True):
        member = {"trained_on_test": trained_on_test}
        for checkpoint in (member, [{"trained_on_test": False}, member]):
            save(tmp_path, "evaluate_best", record | {"checkpoint": checkpoint})
            text = Parsed(write_results_page(tmp_path)).text
            assert ("Trained on these test images" in text) == trained_on_test


def test_a_record_without_a_date_keeps_its_tables(tmp_path):
    """As an earlier version saved it, with the checksum of what it has."""
    save_all(tmp_path)
    dated = Tables(write_results_page(tmp_path)).tables
    for path in tmp_path.glob("*.json"):
        record = {k: v for k, v in json.loads(path.read_text()).items() if k != "date"}
        del record["sha256"]
        path.write_text(json.dumps(record | {"sha256": _digest(record)}))
    assert Tables(write_results_page(tmp_path)).tables == dated


def test_an_empty_folder_and_a_single_figure_make_a_page(tmp_path):
    text = Parsed(write_results_page(tmp_path)).text
    assert text.count("No results yet") == 5
    assert "run python lr_sweep.py" in text
    save_figure(tmp_path, "evaluate_my_net_precision_recall")
    page = Parsed(write_results_page(tmp_path))
    assert page.text.count("No results yet") == 4
    assert "Network my_net" in page.text
    assert len(page.all("img")) == 1


def test_what_is_damaged_or_foreign_is_left_out(tmp_path):
    save_all(tmp_path)
    expected = write_results_page(tmp_path).read_text()
    sound = (tmp_path / "evaluate_best.json").read_bytes()
    for name, content in {
        "evaluate_changed.json": sound.replace(b"551", b"552"),
        "evaluate_cut.json": sound[:-9],
        "evaluate_binary.json": bytes(range(256)),
        "evaluate_list.json": b"[1, 2]",
        "evaluate_deep.json": 100_000 * b"[",
        "evaluate_other.json": b'{"name": "somebody else\'s"}',
        "evaluate_odd.json": b'{"command": 1, "data": 2}',
        "inspect_data_samples.png": b"no PNG",
        "inspect_data_shares.png": b"\x89PNG\r\n\x1a\n",
        "holiday.png": (tmp_path / "inspect_data_counts.png").read_bytes(),
        "evaluated.png": (tmp_path / "inspect_data_counts.png").read_bytes(),
        "readme.json": sound,
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "evaluate_folder.json").mkdir()
    (tmp_path / "train_folder_loss.png").mkdir()
    (tmp_path / "train_link_loss.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "train_pipe_loss.png")  # would never answer
    assert write_results_page(tmp_path).read_text() == expected


def variants(value, seen):
    """Yield copies of a record with one part of it missing, or of another kind.

    Of the parts with the same keys, such as the reports, only the first is changed inside.
    seen: the keys of those before.
    """
    for key in value if isinstance(value, dict) else range(min(len(value), 1)):
        replaced = [None, "x", [], {}]
        if isinstance(part := value[key], dict | list):
            keys = tuple(part) if isinstance(part, dict) else key
            if keys not in seen:
                seen.add(keys)
                replaced += variants(part, seen)
        for other in replaced:
            changed = copy.copy(value)
            changed[key] = other
            yield changed
        missing = copy.copy(value)
        del missing[key]
        yield missing


@pytest.mark.parametrize("name", records())
def test_a_record_of_another_version_does_no_harm(tmp_path, name):
    save(tmp_path, name, records()[name])
    record = json.loads((tmp_path / f"{name}.json").read_text())
    del record["sha256"]
    record["versions"] = {"torch": "2.9"}
    save_sprite(tmp_path)
    changed = list(variants(record, set()))
    assert len(changed) > 100
    changed = random.Random(0).sample(changed, 100)  # each is a section of the page
    for i, each in enumerate(changed):
        (tmp_path / f"{name.partition('_3')[0]}_{i}.json").write_text(json.dumps(each))
    assert Parsed(write_results_page(tmp_path)).text


def test_hostile_text_stays_text(tmp_path):
    def tags(text):
        folder = tmp_path / str(len(text))
        folder.mkdir()
        save_all(folder, classes=(text, "truck", "cat"), recipes=("original", text, "b"))
        save(folder, "inspect_data", records()["inspect_data"], source=text)
        name = "".join(c for c in text if c not in "/\x00")[:80]
        save_figure(folder, f"evaluate_{name}\udcff_confusion")
        page = Parsed(write_results_page(folder))
        return page.text, [(tag, list(attributes)) for tag, attributes in page.tags]

    text, found = tags(HOSTILE)
    _, expected = tags("<harmless")
    assert found == expected
    assert text.count(HOSTILE_SHOWN) > 10
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_page_needs_no_other_file(tmp_path):
    save_all(tmp_path)
    path = write_results_page(tmp_path)
    page, source = Parsed(path), path.read_text()
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        for name in {"src", "srcset", "href", "action", "data", "poster"} & attributes.keys():
            value = attributes[name]
            assert value.startswith("data:image/png;base64,") or value[1:] in anchors, tag
    assert not [
        word for word in ("<link", "url(", "@import", "http:", "https:") if word in source
    ]
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("meta")[0] == {"charset": "utf-8"}
    policy = page.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy["content"]
    assert len(page.all("h1")) == 1
    for table in page.all("th"):
        assert table["scope"] in ("col", "row")
    again = write_results_page(tmp_path).read_text()
    assert again == source


# Scripts make it


def test_a_page_that_cant_be_written_is_one_line(in_process, tmp_path):
    (tmp_path / "figures/index.html").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"index\.html: can't be written"):
        write_results_page(tmp_path / "figures")
    done = in_process(
        "inspect_data.py", "--dry-run", "--data", "synthetic", "--output-dir", tmp_path
    )
    assert done.returncode == 1
    assert is_one_line(done.stderr, "inspect_data.py: ", "index.html: can't be written")


@pytest.mark.parametrize(
    "arguments", [["train.py", "--list"], ["train.py", "--help"], ["train.py", "nothing"]]
)
def test_without_work_there_is_no_page(in_process, tmp_path, arguments):
    (tmp_path / "figures").mkdir()
    done = in_process(*arguments, "--output-dir", tmp_path)
    assert "Page:" not in done.stdout
    assert not list((tmp_path / "figures").iterdir())


# The page in a browser


@pytest.fixture
def opened(tab, tmp_path):
    """Open a page of all stages, or of the files in a folder; no complaint may be left."""
    page, complaints = tab
    complaints.clear()

    def opened(size="desktop", color_scheme="light", folder=tmp_path, **given):
        if folder == tmp_path:
            save_all(folder, **given)
        width, height = SIZES[size]
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=color_scheme)
        page.goto(write_results_page(folder).as_uri())
        return page

    yield opened
    assert complaints == []


def violations(page):
    """Return what axe-core finds wrong with the page."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="needs pip install axe-playwright-python",
    )
    found = axe.Axe().run(page, options={"runOnly": RULES}).response
    assert len(found["passes"]) > 20  # it did look
    return [
        (rule["id"], node["html"][:200])
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_violation_and_nothing_scrolls_sideways(opened, size, color_scheme):
    page = opened(size, color_scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 150) == (color_scheme == "dark")
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert violations(page) == []
    assert page.evaluate("innerWidth") == SIZES[size][0]
    assert fits(page)
    widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert widths == [900] * len(FIGURES)
    for image in page.locator("img").all():
        assert image.bounding_box()["width"] <= SIZES[size][0] - 2 * 16
        card = image.locator("..").evaluate("div => getComputedStyle(div).backgroundColor")
        assert card == "rgb(255, 255, 255)"  # figures are white, in the dark too


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_a_page_with_little_on_it_is_accessible_too(opened, tmp_path, color_scheme):
    for figures in (0, 1):
        folder = tmp_path / str(figures)
        folder.mkdir()
        if figures:
            save_figure(folder, "evaluate_baseline_confusion")
        page = opened("phone", color_scheme, folder)
        assert violations(page) == []
        assert fits(page)
        assert page.get_by_label("Filter recipes").count() == 0


@pytest.mark.parametrize("size", SIZES)
def test_hostile_names_stay_on_the_page(opened, size):
    page = opened(size, classes=(HOSTILE, "truck", "cat"), recipes=("original", HOSTILE, "b"))
    page.get_by_text("All pictures").click()
    assert fits(page)
    assert violations(page) == []
    assert page.get_by_role("rowheader", name=HOSTILE_SHOWN).count() > 5
    for header in page.get_by_role("rowheader").all():
        assert header.bounding_box()["width"] <= 260


def recipe_rows(page):
    rows = page.get_by_role(
        "rowheader", name=re.compile("original|smote|sampler|none|tau", re.IGNORECASE)
    )
    return [row.inner_text() for row in rows.all() if row.is_visible()]


def test_filter_hides_the_other_recipes_and_says_how_many_are_left(opened):
    page = opened(recipes=("original", "Smote", "sampler-2"))
    field = page.get_by_label("Filter recipes")
    count = page.locator(".filter [aria-live=polite]")
    assert count.inner_text() == "7 of 7 rows shown"
    everything = recipe_rows(page)
    assert len(everything) == 7
    other_rows = page.get_by_role("row").count() - 7
    field.focus()
    page.keyboard.type(" SAMPLER")
    assert recipe_rows(page) == ["sampler-2"]
    assert count.inner_text() == "1 of 7 rows shown"
    assert page.get_by_role("row").count() == other_rows + 1  # those of other tables stay
    field.fill("weight-decay")  # in any cell of a row
    assert recipe_rows(page) == ["none"]
    field.fill("smote")
    assert recipe_rows(page) == ["Smote"]
    field.fill("no such recipe")
    assert count.inner_text() == "0 of 7 rows shown"
    field.fill("")
    assert recipe_rows(page) == everything


def press_until_focused(page, selector, key="Tab", most=40):
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    pytest.fail(f"{key} does not reach {selector}")


def test_keyboard_alone_shows_an_image_at_each_epsilon(opened):
    page = opened()
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the results")
    assert skip.evaluate("link => link === document.activeElement")
    assert skip.bounding_box()["x"] >= 0  # visible when it has the focus
    page.keyboard.press("Enter")
    press_until_focused(page, "select")
    slider = page.get_by_role("slider", name="Epsilon")
    picture = page.get_by_role("group", name="An image's attack").get_by_role("img")
    said = page.locator(".prediction[aria-live=polite]")

    def is_shown(image, k, epsilon, prediction):
        assert slider.get_attribute("aria-valuetext") == epsilon
        assert page.locator(".epsilon").inner_text() == epsilon
        assert said.inner_text() == f"The network says: {prediction}"
        assert picture.get_attribute("aria-label") == f"{image} at epsilon {epsilon}"
        pixels = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"))
        inside = pixels[4:-4, 4:-4].reshape(-1, 3)
        assert set(map(tuple, inside.tolist())) == {COLOURS[k]}

    is_shown("car 1", 0, "0/255", "car, 98%")
    page.keyboard.press("ArrowDown")
    is_shown("truck 1", 3, "0/255", "truck, 90%")
    press_until_focused(page, "input[type=range]", most=1)
    outline = slider.evaluate("input => getComputedStyle(input).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("ArrowRight")
    is_shown("truck 1", 4, "4/255", "truck, 80%")
    page.keyboard.press("End")
    is_shown("truck 1", 5, "8/255", "truck, 70%")
    press_until_focused(page, "select", "Shift+Tab", most=1)
    page.keyboard.press("ArrowUp")
    is_shown("car 1", 2, "8/255", "truck, 75% (wrong)")
    press_until_focused(page, "input[type=range]", most=1)
    page.keyboard.press("ArrowLeft")
    is_shown("car 1", 1, "4/255", "car, 50%")


def test_pixels_of_an_enlarged_image_have_sharp_edges(opened, tmp_path):
    rng = np.random.default_rng(0)
    sprite = rng.integers(0, 256, (2 * 16, 3 * 16, 3), dtype=np.uint8)
    save_all(tmp_path)
    folder = tmp_path / "sharp"
    folder.mkdir()
    save(folder, "adversarial_best", records()["adversarial_best"])
    Image.fromarray(sprite).save(folder / "adversarial_best_examples.png")
    page = opened(folder=folder)
    page.get_by_role("slider").press("End")
    picture = page.locator(".picture")
    size = picture.bounding_box()["width"]
    assert size == picture.bounding_box()["height"] >= 200
    image = Image.open(io.BytesIO(picture.screenshot())).convert("RGB")
    for row, column in itertools.product(range(16), repeat=2):
        # In each pixel, near its corner, where a smoothed picture would mix it with the next.
        x, y = ((at + 0.85) * size / 16 for at in (column, row))
        assert image.getpixel((int(x), int(y))) == tuple(sprite[row, 32 + column])


def test_keyboard_scrolls_a_wide_table_on_a_phone(opened):
    page = opened("phone")
    press_until_focused(page, ".scroll:has(.recipes)", most=60)
    box = page.locator(".scroll:focus")
    assert page.get_by_role("group", name="Recipes compared").count() == 1
    width, room = box.evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert width > room
    box.evaluate("""box => { window.scrolled = new Promise((done) => {
        box.addEventListener("scroll", () => done(true), { once: true });
        setTimeout(done, 10_000, false);
    }); }""")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("scrolled")
    assert page.evaluate("scrollX") == 0
    assert box.get_by_role("rowheader", name="smote").bounding_box()["x"] >= 0  # still there


def test_without_javascript_everything_is_shown(tab, tmp_path):
    save_all(tmp_path)
    uri = write_results_page(tmp_path).as_uri()
    context = tab[0].context.browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(uri)
    assert page.locator(".pictures td svg:visible").count() == 6
    assert page.get_by_text("truck, 75% (wrong)").is_visible()
    for control in ("input", "select"):
        assert page.locator(f"{control}:visible").count() == 0
    third = page.locator(".pictures td svg").nth(2)
    pixels = np.asarray(Image.open(io.BytesIO(third.screenshot())).convert("RGB"))
    assert tuple(pixels[40, 40]) == COLOURS[2]
    context.close()
