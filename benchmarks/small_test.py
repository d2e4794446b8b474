"""What few test images hide: the same networks on the exercise's test images and on all.

    python benchmarks/small_test.py RECIPE ... [--seeds 5]

Reads what `python train.py RECIPE ... --test-counts full --seeds 5` has saved below
--output-dir: each run's predictions of 1,800 test images, among which are the exercise's 625
with their 51 trucks and 23 cats. Prints the mean G-mean of each recipe on both, and saves
figures/small_test.json.
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import options
from common.errors import InputError


def main(args):
    from common.files import save_result
    from common.reporting.tables import text_table, with_interval

    folder = options.output_dir(args)
    small = options.load_split(args)
    args.test_counts = args.test_counts or ["full"]
    full = options.load_split(args)
    predictions, seconds = saved_predictions(args, folder / "models", full)
    positions = {image.numpy().tobytes(): i for i, image in enumerate(full.test.images)}
    in_full = [positions[image.numpy().tobytes()] for image in small.test.images]
    of_small = {name: runs[:, in_full] for name, runs in predictions.items()}
    on_small, on_full = compare(of_small, small), compare(predictions, full)
    rows = []
    for name in predictions:
        g_means = [each.summaries[name]["G-mean"] for each in (on_small, on_full)]
        rows.append([name, *(with_interval(g.mean, g.interval) for g in g_means)])
    headers = [
        "G-mean",
        *(f"{len(split.test.labels):,} test images" for split in (small, full)),
    ]
    print(text_table(headers, rows))
    result = save_result(
        folder / "figures" / "small_test.json",
        data=small.record(),
        seed=args.seed,
        device=args.device,
        seconds=seconds,
        comparison=asdict(on_small),
        on_all=asdict(on_full),
    )
    options.print_saved(result)


def saved_predictions(args, folder, split):
    """Return each recipe's predictions (seeds, N) of the test images, and all runs' seconds."""
    import numpy as np

    from common.files import load_result
    from common.training.runs import Run, describes

    predictions, seconds = {}, 0
    for name in args.recipes:
        runs = []
        for seed in options.seed_range(args):
            path = folder / f"{Run(name, None, seed).file}.json"
            result = load_result(path)
            if result is None or not describes(result["data"], split):
                raise InputError(
                    f"{path}: no result on these test images; run train.py {name} --test-counts"
                    f" full --seeds {args.seeds} first"
                )
            runs.append(np.array(result["test_predictions"].split(), dtype=int))
            seconds += result["seconds"]
        predictions[name] = np.stack(runs)
    return predictions, seconds


def compare(predictions, split):
    """Return the Comparison of recipes by their predictions of the test images of a split."""
    from common.metrics.comparison import compare_predictions
    from common.metrics.report import report

    labels = split.test.labels.numpy()
    reports = {
        name: [report(labels, run, split.classes).as_dict() for run in runs]
        for name, runs in predictions.items()
    }
    return compare_predictions(reports, predictions, labels)


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="names of train.py --list")
    parser.add_argument(
        "--seeds", type=options.number(int, least=1, most=1000), default=5, metavar="N",
        help="runs of each recipe, with seeds from --seed on (default: %(default)s)",
    )  # fmt: skip
    options.run(main, parser, ["figures"])
