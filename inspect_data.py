"""Stage 1: what is in the data, and what is wrong with it.

    python inspect_data.py [--audit-labels]

Prints image size, class counts and shares, pixel statistics, whether the order is random,
whether the test images resemble the train images, and duplicates; with --audit-labels also
which train labels may be wrong. Ends with advice: recipes that suit, classes with too few
test images, how long training takes, the next command. Saves figures/inspect_data_*.png, every
printed number in figures/inspect_data.json, the duplicates and suspects in data/*.csv, and a
page to look through it all and decide about the suspects, figures/inspect_data.html.
"""

import time
from dataclasses import asdict, replace

from common import options
from common.errors import InputError
from common.files import ROOT


def main(args):
    from common.dataset.label_fixes import read_suspects
    from common.files import save_result
    from common.inspection import advice, overview, review_page
    from common.reporting import data_tables as tables
    from common.reporting.advice_text import advice_text
    from common.reporting.audit import SUSPECTS
    from common.reporting.data_figures import save_figures

    if args.audit_labels and (args.validation or args.label_fixes):
        raise InputError(
            "--audit-labels: audits all train images, with the labels of their source;"
            " leave out --validation and --label-fixes"
        )
    start = time.perf_counter()
    device = options.torch_device(args)
    split = options.load_split(args)
    if args.audit_labels:
        require_folds(split, args.seed)
    root = options.output_dir(args)
    suspects = []
    if not args.validation:  # otherwise an index would not be a position in split.train
        suspects = read_suspects(root / "data" / SUSPECTS, split.train_fingerprint)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    parts = {name: part for name, part in parts.items() if len(part.labels)}

    found = overview.describe(parts, len(split.classes), device)
    channels, height, width = split.train.images.shape[1:]
    print(tables.split_text(split))
    print(f"Each: {width} x {height} pixels, {channels} channels (RGB), uint8\n")
    print(tables.overview_text(found, split.classes), flush=True)
    duplicates = overview.find_duplicates(split)
    print(f"\n{tables.duplicates_text(duplicates)}", flush=True)
    files = save_duplicates(duplicates, split, root)
    audited = {}
    if args.audit_labels:
        suspects, audited, more = audit_labels(args, device, split, root)
        files += more
    elif not suspects and not args.validation:
        for name in ("joint", "suspects"):  # of an audit of other images
            (root / "figures" / f"inspect_data_{name}.png").unlink(missing_ok=True)

    seconds = 0 if args.dry_run else advice.MEASURED_SECONDS
    advised = advice.advise(split, device, seconds)
    own = (options.typed_options(args, add) for add in (options.add_images, options.add_run))
    print(f"\n{advice_text(advised, str(device), *own)}", flush=True)

    folder = root / "figures"
    saved = save_figures(folder / "inspect_data", split, found)
    pictures = [path for path in [*saved, *files] if path.suffix == ".png"]
    page = review_page.write(
        folder / "inspect_data.html",
        title="What is in the images",
        facts=tables.split_facts(split),
        figures=[(path.stem.removeprefix("inspect_data_"), path) for path in pictures],
        suspects=suspects,
        images=split.train.images,
        classes=split.classes,
        fingerprint=split.train_fingerprint,
        csv_name=SUSPECTS,
    )
    result = save_result(
        folder / "inspect_data.json",
        data=split.record(),
        seed=args.seed,
        device=str(device),
        seconds=time.perf_counter() - start,
        image={"width": width, "height": height, "channels": channels},
        **found.record(),
        duplicates=duplicates,
        **audited,
        advice=advised.record(),
    )
    options.print_saved(*saved, *files, page, result)


def save_duplicates(duplicates, split, root):
    """Save the duplicates as a table and, if there are any, as a figure; return the paths."""
    from common.dataset.duplicates import COLUMNS
    from common.files import save_table
    from common.reporting.contact_sheets import duplicates_figure

    files = [save_table(root / "data" / "duplicates.csv", duplicates, COLUMNS)]
    figure = root / "figures" / "inspect_data_duplicates.png"
    if not duplicates:
        figure.unlink(missing_ok=True)  # of other images
        return files
    return [*files, duplicates_figure(figure, duplicates, split)]


def require_folds(split, seed):
    """Raise InputError if the train images are too few for the audit's folds."""
    from common.inspection.label_audit import FOLDS
    from common.training.cross_validation import stratified_folds

    try:
        stratified_folds(split.train.labels, split.train_groups, split.classes, FOLDS, seed)
    except InputError as error:
        raise InputError(f"--audit-labels: {error}") from None


def audit_labels(args, device, split, root):
    """Audit the labels and print the result; return suspects, numbers to save, and files."""
    from common.inspection import label_audit
    from common.reporting.audit import report_audit
    from common.training.cross_validation import out_of_fold

    classes, labels = split.classes, split.train.labels.numpy()
    recipe = replace(label_audit.RECIPE, epochs=1) if args.dry_run else label_audit.RECIPE
    logits = out_of_fold(
        split.train, split.train_fingerprint, recipe, folds=label_audit.FOLDS,
        classes=classes, seed=args.seed, device=device, cache=ROOT / "data", shifted=True,
        groups=split.train_groups, **options.share_cores(args, device, label_audit.FOLDS),
    )  # fmt: skip
    audit = label_audit.audit(logits, labels)
    suspects, text, numbers, files = report_audit(audit, split, root)
    print(f"\n{text}", flush=True)
    numbers |= {"recipe": asdict(recipe), "folds": label_audit.FOLDS}
    return suspects, {"audit": numbers}, files


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    parser.add_argument(
        "--audit-labels",
        action="store_true",
        help="look for wrong labels in the train images: trains a network on all but each"
        " fourth of them, in minutes (default: off)",
    )
    options.run(main, parser, ["data", "figures"])
