"""Stage 3: recipes against imbalance, compared.

    python train.py [RECIPE ...] [--seeds N] [--epochs N ...]
    python train.py race [--seeds N]

Trains each recipe (default: report A's experiments), prints one table and reports on the
test images. Saves models/NAME.pt with its result file models/NAME.json for each run,
figures/train_NAME_*.png, and figures/train_comparison.{png,md,json}; models/NAME.csv gets a
line as each epoch ends. A finished run is not trained again: after an interruption the same
command does what is missing.

The race compares the remedies of the field, each alone, on one network with one budget. The
settings of each are chosen from four, on a quarter of the train images; then the remedy is
trained on all train images with 5 seeds, and tested. Saves figures/race_K-classes.{png,md,json}
for K classes, and the result of each run, without its network, in models/race_K-classes/.
"""

import argparse
from itertools import chain
from pathlib import Path

from common import options
from common.errors import InputError
from common.training import recipes as named


def main(args):
    options.check_training(args)
    if is_race := named.RACE_NAME in args.recipes:
        named.require_race_alone(args.recipes, options.given_fields(args), args.validation)
        args.test_counts = args.test_counts or (None if args.dry_run else ["full"])
    recipes = named.RACE if is_race else options.chosen_recipes(args.recipes, args)
    args.seeds = args.seeds or (1 if not is_race else 2 if args.dry_run else 5)
    seeds = options.seed_range(args)
    if args.reference is not None:
        recipes = named.with_reference_first(recipes, args.reference)
    if is_race:
        return race(args, list(recipes), seeds)
    if not args.dry_run:  # a dry run has a folder of its own
        recipes = {named.variant_name(name, recipe): recipe for name, recipe in recipes.items()}
    if args.validation == 0 and any(recipe.patience for recipe in recipes.values()):
        args.validation = 0.1  # early stopping selects an epoch, and needs images for it

    from common.metrics.report import from_confusion
    from common.reporting.data_tables import split_text
    from common.reporting.recipe_comparison import report_comparison
    from common.reporting.training_figures import run_figures
    from common.reporting.training_tables import run_text
    from common.training.runs import Run, by_training, check_recipes, train_all

    device = options.torch_device(args)
    split = options.load_split(args)
    check_recipes(recipes.values(), split, args.cluster)
    runs = [Run(name, recipes[name], seed) for name in recipes for seed in seeds]
    settings = options.training_settings(args, device, len(by_training(runs)))
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
        figures = run_figures(root / "figures", run, result, report, split)
        paths = [root / "models" / f"{run.file}.{end}" for end in ("pt", "json", "csv")]
        options.print_saved(*filter(Path.exists, paths), *figures)
    if len(runs) > 1:
        text, saved = report_comparison(
            root / "figures" / "train_comparison", {run: result_by_run[run] for run in runs},
            split, seed=args.seed, device=str(device),
        )  # fmt: skip
        print(f"\n{text}")
        options.print_saved(*saved)


def race(args, names, seeds):
    """Choose the settings of each remedy on validation images; train, test and compare all."""
    from common.reporting.data_tables import split_text
    from common.reporting.race import report_race
    from common.reporting.race_tables import plan_text, run_line
    from common.training import race as the_race
    from common.training.runs import check_recipes

    device = options.torch_device(args)
    split = options.load_split(args)
    selection = the_race.selection_split(split)
    impossible = the_race.impossible(names, selection, split)
    if args.reference in impossible:
        reason = impossible[args.reference]
        raise InputError(f"--reference {args.reference}: {reason}; give another reference")
    passes = options.DRY_RUN_EPOCHS if args.dry_run else the_race.PASSES
    names = [name for name in names if name not in impossible]
    runs = chain(*the_race.grid_runs(names, selection, passes).values())
    recipes = [run.recipe for run in runs]
    check_recipes(recipes, split, args.cluster)
    settings = options.training_settings(args, device, len(recipes))
    root, file = options.output_dir(args), f"race_{len(split.classes)}-classes"
    print(split_text(split))
    plan = (len(recipes), len(seeds), impossible, split, selection, settings)
    print(plan_text(*plan), flush=True)

    def show(*ended):
        print(run_line(*ended), flush=True)

    folder = root / "models" / file
    grid, decay = the_race.train_grid(names, selection, folder / "grid", show, settings, passes)
    choices = {name: the_race.choose(ended) for name, ended in grid.items()}
    runs = the_race.final_runs(choices, grid, split, seeds, passes)
    finals = the_race.train(runs, split, folder, show, settings)
    text, saved = report_race(
        root / "figures" / file, grid, choices, decay, finals, impossible, split, selection,
        passes=passes, seed=args.seed, device=str(device),
    )  # fmt: skip
    print(f"\n{text}")
    options.print_saved(*saved)


class RecipeList(argparse.Action):
    """Print all recipes and end, as --help does."""

    def __call__(self, parser, *_):
        from common.reporting.race_tables import race_list
        from common.reporting.training_tables import recipe_list

        print(f"{recipe_list()}\n\n{race_list()}")
        parser.exit()


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("recipes", nargs="*", metavar="RECIPE", default=list(named.REPORT_A),
        help="names from --list, or race (default: report A's experiments)")
    add("--list", action=RecipeList, nargs=0, help="print all recipes and end (default: off)")
    add("--seeds", type=options.number(int, least=1, most=1000), metavar="N",
        help="runs of each recipe, with seeds from --seed on (default: 1; of the race 5)")
    add("--reference", type=options.text, metavar="RECIPE",
        help="the recipe that the others are compared with (default: the first)")
    # fmt: on
    options.add_training(parser)
    options.add_recipe(parser)
    options.run(main, parser, ["models", "figures"])
