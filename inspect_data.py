"""Stage 1: what is in the data, and what is wrong with it.

    python inspect_data.py

Prints image size, class counts and shares, pixel statistics, whether the order is random
and whether the test images resemble the train images. Saves figures/inspect_data_*.png, and
every printed number in figures/inspect_data.json.
"""

import time

from common import options

SIGNIFICANT = 0.01  # a p below it is called a difference


def main(args):
    from common import figures, results, statistics, text

    start = time.perf_counter()
    device = options.device(args)
    split = options.split(args)
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

    folder = options.output_dir(args) / "figures"
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
    )
    options.print_saved(*saved, folder / "inspect_data.json")


def print_row(name, kind, cells):
    print(f"{name:<11}{kind:<9}" + "".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    options.run(main, options.parser(__doc__))
