"""Stage 1: what is in the data, and what is wrong with it.

    python inspect_data.py [--audit-labels]

Prints image size, class counts and shares, pixel statistics, whether the order is random,
whether the test images resemble the train images, and duplicates; with --audit-labels also
which train labels may be wrong. Saves figures/inspect_data_*.png, every printed number in
figures/inspect_data.json, the duplicates and suspects in data/*.csv, and a page to look
through it all and decide about the suspects, figures/inspect_data.html.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path

from common import options

SIGNIFICANT = 0.01  # a p below it is called a difference
SUSPECTS = "label_suspects.csv"


def main(args):
    from common import dataset, figures, relabel, results, review, statistics, text

    if args.audit_labels and (args.validation or args.label_fixes):
        raise options.InputError(
            "--audit-labels: looks at all train images, with the labels that they came with;"
            " leave out --validation and --label-fixes"
        )
    start = time.perf_counter()
    device = options.device(args)
    split = options.split(args)
    root, fingerprint = options.output_dir(args), dataset.train_fingerprint(split)
    suspects = []
    if not args.validation:  # else an index would not be a place in split.train
        suspects = relabel.read_suspects(root / "data" / SUSPECTS, fingerprint)
    classes, source = split.classes, split.source
    images, labels = split.train
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    parts = {name: part for name, part in parts.items() if len(part.labels)}
    counts = {name: part.counts(len(classes)) for name, part in parts.items()}

    print(text.images(split))
    channels, height, width = images.shape[1:]
    print(f"Each: {width} x {height} pixels, {channels} channels (RGB), {images.dtype}")

    print_row("\nclass", "", [*classes, "total"])
    for name, per_class in counts.items():
        total = sum(per_class)
        cells = [f"{n:,} ({n / total:.1%})" for n in per_class]
        print_row(name, "", [*cells, f"{total:,}"])
    largest = counts["train"].index(max(counts["train"]))
    always = counts["test"][largest] / sum(counts["test"])
    print(f"Calling every test image a {classes[largest]} would be right for {always:.2%}.")

    print_row("\npixels", "(0 to 1)", ["red", "green", "blue"])
    channel, per_image = {}, {}
    for name, part in parts.items():
        on_device = part.images.to(device)
        channel[name] = statistics.channel_statistics(on_device)
        per_image[name] = statistics.image_statistics(on_device)
        for kind, values in channel[name].items():
            print_row(name, kind, [f"{value:.3f}" for value in values])

    order = statistics.runs_test(labels.tolist())
    print(
        f"\nOrder of the train images: {order.runs:,} runs of equal labels; a random order has"
    )
    print(
        f"{order.expected:,.1f} on average (z = {order.z:.2f}, p = {order.p:.2g}), so this one",
        end=" ",
    )
    print("is not random." if order.p < SIGNIFICANT else "may well be random.")

    alike = {
        "class shares, chi-square": statistics.shares_test(counts["train"], counts["test"])
    }
    for kind in per_image["train"]:
        pair = per_image["train"][kind], per_image["test"][kind]
        alike[f"{kind}, Kolmogorov-Smirnov"] = statistics.same_distribution_test(*pair)
    print("\nDo the test images resemble the train images?")
    for name, (statistic, p) in alike.items():
        verdict = "they differ" if p < SIGNIFICANT else "no difference found"
        print(f"  {name:32} {statistic:7.3f}  p = {p:<7.2g} {verdict}")

    unusual = {kind: statistics.outliers(values) for kind, values in per_image["train"].items()}
    brightness, contrast = per_image["train"].values()
    numbers = ", ".join(f"{len(found)} in {kind}" for kind, found in unusual.items())
    print(f"\nUnusual train images: {numbers}")
    print(f"(over {statistics.OUTLIER_DISTANCE:g} robust standard deviations from the median)")

    copies, files = find_duplicates(split, root)
    audited = {}
    if args.audit_labels:
        suspects, audited, more = audit_labels(args, device, split, root)
        files += more

    folder = root / "figures"
    ringed = sorted({int(i) for found in unusual.values() for i in found})
    titles = [
        f"{i}: {classes[label]}\nb {brightness[i]:.2f}, c {contrast[i]:.2f}"
        for i, label in enumerate(labels.tolist())
    ]
    about = (classes, source)
    drawings = {
        "counts": (figures.class_counts, counts, *about),
        "shares": (figures.class_shares, counts, *about),
        "samples": (figures.samples, images, labels, *about),
        "order": (figures.class_order, labels, classes, order, source),
        "statistics": (
            figures.image_statistics, brightness, contrast, labels, classes, ringed, source,
        ),
        "outliers": (figures.outlier_images, images, titles, unusual, source),
    }  # fmt: skip
    saved = [
        draw(folder / f"inspect_data_{name}.png", *what)
        for name, (draw, *what) in options.progress(drawings.items(), "Drawing figures")
    ]
    pictures = [path for path in [*saved, *files] if path.suffix == ".png"]
    page = review.write(
        folder / "inspect_data.html",
        title="What is in the images",
        facts=text.facts(split),
        figures=[(path.stem.removeprefix("inspect_data_"), path) for path in pictures],
        suspects=suspects,
        images=images,
        classes=classes,
        fingerprint=fingerprint,
        csv_name=SUSPECTS,
    )
    results.save_result(
        folder / "inspect_data.json",
        split,
        seed=args.seed,
        device=str(device),
        seconds=time.perf_counter() - start,
        image={"width": width, "height": height, "channels": channels},
        always_largest_class=always,
        channels=channel,
        order=order._asdict(),
        train_and_test={name: outcome._asdict() for name, outcome in alike.items()},
        outliers={kind: found.tolist() for kind, found in unusual.items()},
        duplicates=copies,
        **audited,
    )
    options.print_saved(*saved, *files, page, folder / "inspect_data.json")


def find_duplicates(split, root):
    """Print how many there are. Returns their rows and the files that show them."""
    from common import contact_sheets, duplicates, results, text

    train, test = split.train, split.test
    about = {
        "train": (train.labels, split.train_files),
        "test": (test.labels, split.test_files),
    }
    found = []
    for parts, pairs in (
        (("train", "test"), duplicates.between(train.images, test.images)),
        (("train", "train"), duplicates.within(train.images)),
    ):
        labels, names = zip(*(about[part] for part in parts), strict=True)
        found += duplicates.rows(pairs, parts, labels, names, split.classes)
    print(f"\n{text.duplicates(found)}")
    files = [results.save_table(root / "data" / "duplicates.csv", found, duplicates.COLUMNS)]
    if found:
        figure = root / "figures" / "inspect_data_duplicates.png"
        images = {"train": train.images, "test": test.images}
        n = f"{len(train.labels):,} train, {len(test.labels):,} test images"
        files.append(contact_sheets.duplicates(figure, found, images, split.source, n))
    return found, files


def audit_labels(args, device, split, root):
    """Print what confident learning finds. Returns suspects, numbers to save, and files."""
    from common import audit, contact_sheets, dataset, figures, relabel, results, text

    classes, labels = split.classes, split.train.labels.numpy()
    fingerprint = dataset.train_fingerprint(split)
    recipe = replace(audit.RECIPE, epochs=1) if args.dry_run else audit.RECIPE
    logits = audit.out_of_fold(
        split.train,
        fingerprint,
        recipe,
        folds=audit.FOLDS,
        classes=classes,
        seed=args.seed,
        device=device,
        cache=options.ROOT / "data",
        **options.share_cores(args, device, audit.FOLDS),
    )
    found = audit.audit(logits, labels)
    listed = audit.suspects(found, labels, classes, split.train_files)
    file = root / "data" / SUSPECTS
    suspects = relabel.write_suspects(file, listed, fingerprint)
    print(f"\n{text.audit(found, suspects, classes, len(labels))}")
    numbers = {
        "joint": found.joint.tolist(),
        "recipe": asdict(recipe),
        "folds": audit.FOLDS,
        "suspects": [suspect._asdict() for suspect in suspects],
    }
    if split.true_labels is not None:
        numbers["planted"] = audit.against_truth(
            found, labels, split.true_labels.numpy(), classes
        )
        if numbers["planted"]:
            print(f"\n{text.planted(numbers['planted'])}")
    ranking = audit.ranking(found, labels, classes, split.train_files)
    figure = root / "figures" / "inspect_data_"
    files = [
        file,
        results.save_table(root / "data" / "label_ranking.csv", ranking, list(ranking[0])),
        figures.label_joint(
            Path(f"{figure}joint.png"), found.joint, classes, len(labels), split.source
        ),
    ]
    if suspects:
        sheet = Path(f"{figure}suspects.png")
        files.append(contact_sheets.suspects(sheet, suspects, split.train.images, split.source))
    return suspects, {"audit": numbers}, files


def print_row(name, kind, cells):
    print(f"{name:<11}{kind:<9}" + "".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    parser = options.parser(__doc__)
    parser.add_argument(
        "--audit-labels",
        action="store_true",
        help="look for wrong labels in the train images: trains a network on all but each"
        " fourth of them (minutes)",
    )
    options.run(main, parser)
