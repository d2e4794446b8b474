"""What each part of `best` is worth: the recipe without one part at a time, on the test images.

    python benchmarks/ablation.py [--seeds 3]

Trains on the images of `python train.py best --test-counts full`, and writes ablation.md,
ablation.json and ablation.png. Nothing is chosen by these numbers: `best` was chosen before, on
train images (best.md). A run that was trained before is not trained again.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import options
from common.training.recipes import BEST

PARTS = {
    "square-root-sampling": {"sampler": "shuffle"},
    "logit-adjustment": {"loss": "cross-entropy"},
    "cutmix": {"mix": "none"},
    "averaged-weights": {"ema": 0.0},
    "trivial-augment": {"augment": ("flip", "crop", "cutout", "colour")},
    "mirror-image": {"flip_average": False},
    "longer-training": {"epochs": 30},
}


def main(args):
    from common.reporting.recipe_comparison import report_comparison
    from common.training.runs import Run, train_all

    args.test_counts = args.test_counts or ["full"]
    device = options.torch_device(args)
    split = options.load_split(args)
    recipes = {"best": BEST}
    recipes |= {f"without-{part}": replace(BEST, **changes) for part, changes in PARTS.items()}
    if args.dry_run:  # of best two epochs, of the shorter recipe one
        recipes = {
            name: replace(recipe, epochs=max(1, recipe.epochs // 50))
            for name, recipe in recipes.items()
        }
    runs = [
        Run(name, recipe, seed)
        for name, recipe in recipes.items()
        for seed in options.seed_range(args)
    ]
    folder = options.output_dir(args)
    settings = options.training_settings(args, device, len(runs))
    result_by_run = {}
    for run, result in train_all(runs, split, folder / "models" / "ablation", **settings):
        result_by_run[run] = result
        print(f"{run.file}: {result['seconds']:.0f} s", flush=True)
    text, saved = report_comparison(
        folder / "benchmarks" / "ablation", {run: result_by_run[run] for run in runs}, split,
        seed=args.seed, device=str(device),
    )  # fmt: skip
    print(f"\n{text}")
    options.print_saved(*saved)


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    parser.add_argument(
        "--seeds", type=options.number(int, least=1, most=1000), default=3, metavar="N",
        help="runs of each recipe, with seeds from --seed on (default: %(default)s)",
    )  # fmt: skip
    options.add_training(parser)
    options.run(main, parser, ["models", "benchmarks"])
