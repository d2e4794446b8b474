"""Stage 3: recipes against imbalance, compared.

    python train.py [RECIPE ...] [--seeds N] [--epochs N ...]

Trains each recipe (default: report A's experiments), prints one table and reports on the
test images. Saves models/NAME.pt with its result file models/NAME.json for each run,
figures/train_NAME_*.png, and figures/train_comparison.{png,md,json}; models/NAME.csv gets a
line as each epoch ends. A finished run is not trained again: after an interruption the same
command does what is missing.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from common import options
from common.errors import InputError
from common.training.recipes import REPORT_A, variant_name


def main(args):
    options.check_training(args)
    recipes = options.chosen_recipes(args.recipes, args)
    seeds = range(args.seed, args.seed + args.seeds)
    if seeds[-1] > options.MOST_SEED:
        raise InputError(
            f"--seed {args.seed}: {args.seeds} seeds go beyond {options.MOST_SEED}; start lower"
        )
    if args.reference is not None:
        if args.reference not in recipes:
            raise InputError(
                f"--reference {args.reference}: not one of the recipes, {', '.join(recipes)}"
            )
        recipes = {args.reference: recipes[args.reference]} | recipes  # it comes first
    if not args.dry_run:  # a dry run has a folder of its own
        recipes = {variant_name(name, recipe): recipe for name, recipe in recipes.items()}
    if args.validation == 0 and any(recipe.patience for recipe in recipes.values()):
        args.validation = 0.1  # early stopping selects an epoch, and needs images for it

    from common.metrics.report import from_confusion
    from common.reporting.data_tables import split_text
    from common.reporting.training_figures import run_figures
    from common.reporting.training_tables import run_text
    from common.training.runs import Run, check_recipes, train_all

    device = options.torch_device(args)
    split = options.load_split(args)
    check_recipes(recipes.values(), split, args.cluster)
    runs = [Run(name, recipes[name], seed) for name in recipes for seed in seeds]
    settings = options.training_settings(args, device, len(runs))
    root = options.output_dir(args)
    print(split_text(split))
    print(f"Runs: {len(runs)}, {settings['jobs']} at a time, on {device}", flush=True)

    result_by_run = {}
    for run, result in train_all(runs, split, root / "models", **settings):
        result_by_run[run] = result
        report = None
        if not result["diverged"]:
            report = from_confusion(result["report"]["confusion"], split.classes)
        print(f"\n{run_text(run, result, report, split, len(runs) == 1)}", flush=True)
        if report is not None:
            figures = run_figures(root / "figures", run, result, report, split)
            paths = [root / "models" / f"{run.file}.{end}" for end in ("pt", "json", "csv")]
            options.print_saved(*filter(Path.exists, paths), *figures)
    if len(recipes) > 1 or args.seeds > 1:
        compare_recipes(
            args, recipes, {run: result_by_run[run] for run in runs}, split, str(device)
        )


def compare_recipes(args, recipes, result_by_run, split, device):
    """Print and save the comparison of several recipes or seeds."""
    from common.files import save_result, write_text
    from common.metrics.comparison import compare
    from common.reporting import training_tables as tables
    from common.reporting.training_figures import recipes_compared

    by_recipe = {}
    for run, result in result_by_run.items():
        name = f"{run.name} !" if run.recipe.train_on_test else run.name
        by_recipe.setdefault(name, []).append(result)
    comparison = compare(by_recipe, split.test.labels.numpy())
    print(f"\n== {len(split.test.labels)} test images, {args.seeds} seed(s) ==\n")
    diverged = {run.file: r["diverged"] for run, r in result_by_run.items() if r["diverged"]}
    for file, message in diverged.items():
        print(fill(f"{file}: diverged, {message}", 80))
    if comparison is None:
        return
    print(f"{tables.compared_as_text(comparison)}\n\n{tables.legend_text(comparison)}")
    if any(recipe.train_on_test for recipe in recipes.values()):
        print("!: trained on the test images too, so its scores are not held out.")
    path = options.output_dir(args) / "figures" / "train_comparison"
    saved = [
        recipes_compared(path.with_suffix(".png"), comparison, tables.RANKED_BY, split),
        write_text(path.with_suffix(".md"), tables.compared_as_markdown(comparison)),
        save_result(
            path.with_suffix(".json"),
            data=split.record(),
            seed=args.seed,
            device=device,
            seconds=sum(result["seconds"] for result in result_by_run.values()),
            recipes={name: asdict(recipe) for name, recipe in recipes.items()},
            comparison=asdict(comparison),
            diverged=diverged,
        ),
    ]
    options.print_saved(*saved)


class RecipeList(argparse.Action):
    """Print all recipes and end, as --help does."""

    def __call__(self, parser, *_):
        from common.reporting.training_tables import recipe_list

        print(recipe_list())
        parser.exit()


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    parser.add_argument(
        "recipes",
        nargs="*",
        metavar="RECIPE",
        default=list(REPORT_A),
        help="names from --list (default: report A's experiments)",
    )
    parser.add_argument(
        "--list", action=RecipeList, nargs=0, help="print all recipes and end (default: off)"
    )
    parser.add_argument(
        "--seeds",
        type=options.number(int, least=1, most=1000),
        default=1,
        metavar="N",
        help="runs of each recipe, with seeds from --seed on (default: %(default)s)",
    )
    parser.add_argument(
        "--reference",
        type=options.text,
        metavar="RECIPE",
        help="the recipe that the others are compared with (default: the first)",
    )
    options.add_training(parser)
    options.add_recipe(parser)
    options.run(main, parser, ["models", "figures"])
