"""How `best` was chosen: candidates compared by cross-validation on the train images alone.

    python benchmarks/best.py [CANDIDATE ...] [--folds 5]

Each train image is predicted by a network that was trained without it; the predictions of all
folds are pooled. Test images play no part. The results are added to best.json, and best.md gets
the tables below its text. Folds that are in data/ are not trained again.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import options
from common.errors import InputError
from common.files import ROOT, processor, versions, write_text
from common.reporting.tables import markdown_table, with_interval
from common.training.recipe_record import command_line
from common.training.recipes import BEST

SHORTER = replace(
    BEST, epochs=55, augment=("flip", "crop", "cutout", "colour"), flip_average=False
)
CANDIDATES = {
    "best": BEST,
    "shorter": SHORTER,  # what `best` was before
    "shorter-mirror-image": replace(SHORTER, flip_average=True),
    "colour-cutout": replace(BEST, augment=SHORTER.augment),
    "cutout": replace(BEST, augment=(*BEST.augment, "cutout")),
    "wider": replace(BEST, width=24),
    "sam": replace(BEST, sam=0.2, sam_from=0.66),
    "sam-weighted": replace(BEST, sam=0.2, sam_from=0.66, sam_class_weighted=True),
    "no-mixing": replace(BEST, mix="none"),
    "shuffled": replace(BEST, sampler="shuffle"),
    "weight-decay-2e-4": replace(BEST, weight_decay=2e-4),
    "weight-decay-2e-3": replace(BEST, weight_decay=2e-3),
    "weight-decay-5e-3": replace(BEST, weight_decay=5e-3),
    "max-norm": replace(BEST, max_norm=1.0),
}
REFERENCE = "best"
MARK = "<!-- benchmarks/best.py writes what follows. -->\n"


def main(args):
    names = args.candidates or list(CANDIDATES)
    for name in names:
        if name not in CANDIDATES:
            raise InputError(f"{name}: no candidate; take {', '.join(CANDIDATES)}")

    device = options.torch_device(args)
    split = options.load_split(args)
    folder = options.output_dir(args) / "benchmarks"
    path = folder / "best.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    of_data = results.setdefault(split.train_fingerprint, {"data": split.record()})
    for name in names:
        recipe = CANDIDATES[name]
        if args.dry_run:
            recipe = replace(recipe, epochs=1)
        of_data[name] = result = cross_validate(recipe, split, device, args)
        accuracy, g_mean, *_ = summary(result)
        print(f"{name}: balanced accuracy {accuracy}", flush=True)
        print(f"  G-mean {g_mean}, {result['seconds']} s", flush=True)
        write_text(path, json.dumps(results, indent=1) + "\n")
    for each in (result for name, result in of_data.items() if name != "data"):
        each["difference"] = difference(each, of_data.get(REFERENCE), split)
    write_text(path, json.dumps(results, indent=1) + "\n")
    page = path.with_suffix(".md")
    text = page.read_text().partition(MARK)[0] if page.exists() else ""
    parts = [MARK.rstrip(), *map(table, results.values())]
    options.print_saved(write_text(page, text + "\n\n".join(parts) + "\n"), path)


def cross_validate(recipe, split, device, args):
    """Return what a recipe's networks predict of the train images that they have not seen."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from common.metrics.report import report
    from common.training.cross_validation import out_of_fold

    start = time.perf_counter()
    labels = split.train.labels
    logits = torch.from_numpy(
        out_of_fold(
            split.train, split.train_fingerprint, recipe, folds=args.folds,
            classes=split.classes, seed=args.seed, device=device, cache=ROOT / "data",
            **options.share_cores(args, device, args.folds),
        )
    )  # fmt: skip
    losses = F.cross_entropy(logits, labels, reduction="none")
    by_class = [losses[labels == k].mean().item() for k in range(len(split.classes))]
    return {
        "recipe": command_line(recipe),
        "folds": args.folds,
        "seed": args.seed,
        "report": report(labels, logits.argmax(1), split.classes).as_dict(),
        "balanced_log_loss": float(np.mean(by_class)),
        "predictions": " ".join(map(str, logits.argmax(1).tolist())),
        "seconds": round(time.perf_counter() - start),
        "processor": processor(),
        "versions": versions(),
    }


def difference(result, reference, split):
    """Return how much higher the G-mean is than the reference's, and its 95% interval.

    None without a reference of the same folds.
    """
    import numpy as np

    from common.metrics.comparison import compare_predictions

    pair = {"reference": reference, "candidate": result}
    if reference is None or result is reference or result["folds"] != reference["folds"]:
        return None
    predictions = {
        name: np.array([each["predictions"].split()], int) for name, each in pair.items()
    }
    reports = {name: [each["report"]] for name, each in pair.items()}
    comparison = compare_predictions(reports, predictions, split.train.labels.numpy())
    g_mean = comparison.summaries["candidate"]["G-mean"]
    return [g_mean.difference, *g_mean.difference_interval]


def summary(result):
    """Return the cells of a candidate's row, after its name."""
    measured, intervals = result["report"], result["report"]["intervals"]
    recalls = [f"{recall:.3f}" for recall in measured["recall"]]
    few = len(recalls) <= 3
    return [
        with_interval(measured["balanced_accuracy"], intervals["balanced_accuracy"]),
        with_interval(measured["g_mean"], intervals["g_mean"]),
        "" if result.get("difference") is None
        else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*result["difference"]),
        f"{result['balanced_log_loss']:.3f}",
        " / ".join(recalls) if few else f"{min(measured['recall']):.3f} at least",
        str(result["folds"]),
    ]  # fmt: skip


def table(results):
    """Return the table of all candidates on the same images, in Markdown."""
    results = dict(results)
    data = results.pop("data")
    headers = [
        "candidate", "balanced accuracy", "G-mean", f"G-mean against `{REFERENCE}`",
        "log-loss, classes equal", "recalls", "folds",
    ]  # fmt: skip
    rows = [[f"`{name}`", *summary(result)] for name, result in results.items()]
    counts = ", ".join(
        f"{n:,} {name}" for name, n in zip(data["classes"], data["train_counts"], strict=True)
    )
    recipes = [f"- `{name}`: `{result['recipe']}`" for name, result in results.items()]
    title = f"## {counts}\n\nSource: {data['source']}"
    return "\n\n".join([title, markdown_table(headers, rows), "\n".join(recipes)])


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    parser.add_argument("candidates", nargs="*", metavar="CANDIDATE", help="(default: all)")
    parser.add_argument(
        "--folds", type=options.number(int, least=2, most=100), default=5, metavar="N",
        help="parts that the train images are divided into (default: %(default)s)",
    )  # fmt: skip
    options.run(main, parser, ["benchmarks"])
