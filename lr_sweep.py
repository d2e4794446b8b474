"""Stage 4: what the learning rate does.

    python lr_sweep.py [RECIPE] [--learning-rates RATE ...] [--range-test]

Trains one recipe (default: original) for 20 epochs, whatever its own number, at several
learning rates from the same weights, on the same batches, and judges them by their curves and
by validation images held out from the train images; the test images play no part. Saves
figures/lr_sweep_RECIPE_*.png with figures/lr_sweep_RECIPE.json, and models/RECIPE-lrRATE.* for
each rate. Finished rates are not trained again. With --range-test, one pass at growing rates
instead.
"""

import shlex
import time
from dataclasses import asdict, replace

from common import options
from common.errors import DivergedError, InputError
from common.files import ROOT
from common.training.recipe_record import command_line
from common.training.recipes import RECIPES, variant_name

RATES = [1e-10, 5e-5, 5e-4, 5e-3, 5e-2, 0.1, 0.5]  # those of both reports
EPOCHS = 20
RANGE = (1e-7, 10.0)


def main(args):
    options.check_training(args)
    ((name, recipe),) = options.chosen_recipes([args.recipe], args).items()
    if args.epochs != EPOCHS and not args.dry_run:
        name += f"+epochs={args.epochs}"
    same_epochs = replace(recipe, epochs=RECIPES[args.recipe].epochs)
    name += variant_name(args.recipe, same_epochs).removeprefix(args.recipe)
    if args.range_test:
        only = "learning_rates", "jobs", "cluster", "fresh", "tensorboard", "deterministic"
        options.require_absent(args, only, "--range-test: trains no network for each rate")
    args.learning_rates = args.learning_rates or RATES
    options.require_distinct(args, "learning_rates")
    if args.validation == 0:
        raise InputError("--validation 0: the rates are judged by it; give a share above 0")

    from common.reporting.data_tables import split_text
    from common.training.runs import check_recipes
    from common.training.setup_run import set_up

    device = options.torch_device(args)
    split = options.load_split(args)
    facts = check_recipes([recipe], split, args.cluster)[recipe]
    print(split_text(split))
    settings = options.training_settings(args, device, len(args.learning_rates))
    threads = settings["jobs"] * settings["threads"]  # with which `train_all` computes features
    how = {"device": device, "threads": threads, "facts": facts, "cache": ROOT / "data"}
    ready = set_up(recipe, split, args.seed, **how)
    n = len(ready.examples.labels)
    caption = (
        f"{split.source}; {name}, batch {recipe.batch_size}, seed {args.seed};"
        f" n = {n:,} examples, {len(split.validation.labels)} validation images"
    )
    print(f"{name}: {n:,} examples, batch {recipe.batch_size}", flush=True)
    stage = range_test_stage if args.range_test else sweep_stage
    stage(args, name, recipe, split, settings, ready, device, caption)


def sweep_stage(args, name, recipe, split, settings, ready, device, caption):
    """Train at every rate, and print and save how the rates compare."""
    from common.files import save_result
    from common.reporting.learning_rate_figures import sweep_figures
    from common.reporting.learning_rate_tables import sweep_text
    from common.training.learning_rates import best_rate, judge, start_loss
    from common.training.runs import Run, measured, train_all

    runs = [
        Run(f"{name}-lr{rate:g}", replace(recipe, learning_rate=rate), args.seed)
        for rate in sorted(args.learning_rates)
    ]
    root = options.output_dir(args)
    print(f"{len(runs)} learning rates, {recipe.epochs} epochs each, on {device}", flush=True)
    result_by_run = dict(train_all(runs, split, root / "models", **settings))
    result_by_rate = {run.recipe.learning_rate: result_by_run[run] for run in runs}
    fitted = (ready.trained, ready.examples, ready.recipe)
    start = start_loss(*fitted, seed=args.seed, device=device)
    verdicts = judge(start, result_by_rate)
    best = best_rate(result_by_rate)
    print(f"\nLoss before training: {start:.4f}\n")
    print(sweep_text(result_by_rate, verdicts, best, len(split.validation.labels)))
    path = root / "figures" / f"lr_sweep_{name}"
    figures = sweep_figures(path, name, recipe, result_by_rate, verdicts, start, caption)
    result = save_result(
        path.with_name(f"{path.name}.json"),
        data=split.record(), seed=args.seed, device=str(device),
        seconds=sum(result["seconds"] for result in result_by_rate.values()),
        recipe=asdict(recipe), start_loss=start, best_rate=best,
        rates=[
            {"rate": r, "verdict": verdicts[r], **measured(result_by_rate[r])} for r in verdicts
        ],
    )  # fmt: skip
    options.print_saved(*figures, result)
    print(f"saved {options.display_path(root / 'models' / name)}-lrRATE.pt, .json and .csv")


def range_test_stage(args, name, recipe, split, _settings, ready, device, caption):
    """Run the range test, and print and save it beside the best rate of an earlier sweep."""
    from common.files import save_result
    from common.reporting.learning_rate_figures import range_test_figure
    from common.reporting.learning_rate_tables import range_test_text
    from common.training.learning_rates import range_test, saved_best_rate

    start = time.perf_counter()
    lowest, highest = RANGE
    limits = {"lowest": lowest, "highest": highest, "seed": args.seed, "device": device}
    try:
        test = range_test(ready.trained, ready.examples, ready.recipe, **limits)
    except DivergedError as error:
        raise InputError(f"--range-test: {error}") from None
    folder = options.output_dir(args) / "figures"
    best = saved_best_rate(folder / f"lr_sweep_{name}.json", split, recipe)
    changes = command_line(recipe, replace(RECIPES[args.recipe], epochs=EPOCHS))
    sweep = ["python", "lr_sweep.py", args.recipe, *shlex.split(changes)]
    for add in (options.add_images, options.add_run, options.add_training):
        sweep += options.typed_options(args, add)
    print(f"\n{range_test_text(test, lowest, highest, best, sweep)}")
    figure = folder / f"lr_sweep_{name}_range_test.png"
    range_test_figure(figure, test, f"Learning-rate range test of {name}", recipe, caption)
    result = save_result(
        figure.with_suffix(".json"),
        data=split.record(), seed=args.seed, device=str(device),
        seconds=time.perf_counter() - start, recipe=asdict(recipe), sweep_best_rate=best,
        **asdict(test),
    )  # fmt: skip
    options.print_saved(figure, result)


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("recipe", nargs="?", default="original", metavar="RECIPE",
        help="a recipe of train.py --list (default: %(default)s)")
    add("--learning-rates", nargs="+", type=options.RATE, metavar="RATE",
        help=f"the rates (default: {' '.join(f'{rate:g}' for rate in RATES)})")
    add("--range-test", action="store_true",
        help=f"instead, one pass at rates that grow from {RANGE[0]:g} to {RANGE[1]:g} (default:"
        " off)")
    # fmt: on
    options.add_training(parser)
    options.add_recipe(parser, without="learning_rate", epochs=EPOCHS)
    parser.set_defaults(validation=0.1)
    options.run(main, parser, ["models", "figures"])
