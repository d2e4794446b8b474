"""Stage 4: what the learning rate does.

    python lr_sweep.py [RECIPE] [--learning-rates RATE ...] [--range-test]

Trains one recipe (default: original) at several learning rates from the same weights, on the
same batches, and judges them by their curves and by validation images held out from the train
images; the test images play no part. Saves figures/lr_sweep_RECIPE_*.png with
figures/lr_sweep_RECIPE.json, and models/RECIPE-lrRATE.* for each rate. Rates that ended
before are not trained again. With --range-test, one pass at growing rates instead.
"""

import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

from common import options, recipes

RATES = [1e-10, 5e-5, 5e-4, 5e-3, 5e-2, 0.1, 0.5]  # both reports' sets together
EPOCHS = 20
RANGE = (1e-7, 10.0)
CLEAR = 0.1  # the fall of a range test's loss from which its suggestion means something


def main(args):
    ((name, recipe),) = recipes.named([args.recipe], args).items()
    if args.epochs != EPOCHS and not args.dry_run:
        name += f"+epochs={args.epochs}"
    usual = replace(recipe, epochs=recipes.RECIPES[args.recipe].epochs)
    name += recipes.title(args.recipe, usual).removeprefix(args.recipe)
    rates = sorted(args.learning_rates)
    for rate, following in pairwise(rates):
        if rate == following:
            raise options.InputError(
                f"--learning-rates: {rate:g} is given twice; leave one out"
            )
    if args.validation == 0:
        raise options.InputError("--validation 0: it judges the rates; give a share above 0")

    from common import balance, text

    device = options.device(args)
    split = options.split(args)
    balance.check(recipe, split.train.counts(len(split.classes)), split.classes)
    print(text.images(split))
    examples = balance.examples(split.train, split.test, recipe, split.classes, args.seed)
    n, held_out = len(examples.labels), len(split.validation.labels)
    about = (
        f"{split.source}; {name}, batch {recipe.batch_size}, seed {args.seed};"
        f" n = {n:,} examples, {held_out} validation images"
    )
    print(f"{name}: {n:,} examples, batch {recipe.batch_size}", flush=True)
    do = test_range if args.range_test else sweep
    do(name, recipe, rates, split, examples, device, about, args)


def sweep(name, recipe, rates, split, examples, device, about, args):
    from common import experiment, results, sweep_figures
    from common.sweep import best_rate, start_loss, verdict

    runs = [
        experiment.Run(f"{name}-lr{rate:g}", replace(recipe, learning_rate=rate), args.seed)
        for rate in rates
    ]
    how = options.how_to_train(args, device, len(runs))
    root = options.output_dir(args)
    print(f"{len(rates)} learning rates, {recipe.epochs} epochs each, on {device}", flush=True)
    ended = dict(experiment.train_all(runs, split, root / "models", **how))
    by_rate = {run.recipe.learning_rate: ended[run] for run in runs}
    start = start_loss(
        new_network(recipe, split, args.seed), examples, recipe, seed=args.seed, device=device
    )
    finite = [r["history"]["loss"][-1] for r in by_rate.values() if not r["diverged"]]
    lowest = min(finite, default=start)
    verdicts = {
        rate: verdict(start, result["history"], lowest) for rate, result in by_rate.items()
    }
    best = best_rate(by_rate)
    print(f"\nLoss before training: {start:.4f}\n")
    on = f"{len(split.validation.labels)} validation images"
    print(f"{'':8}  {'training loss':^17}   {on:^24}")
    print(f"{'rate':>8}  {'first':>8} {'last':>8}   {'loss':>8} {'balanced':>8} {'G-mean':>6}")
    for rate, result in by_rate.items():
        print(f"{rate:8g}  {row(result)}  {verdicts[rate]}")
    print("\nbalanced: balanced accuracy. The words' rules: common/sweep.py, verdict().")
    if best is not None:
        score = by_rate[best]["validation"]["g_mean"]
        print(f"Best validation G-mean: {score:.3f}, at {best:g}.")

    prefix = f"{root / 'figures' / 'lr_sweep'}_{name}"
    title = f"Learning rates of {name}, {recipe.epochs} epochs"
    saved = [
        sweep_figures.all_losses(Path(f"{prefix}_loss.png"), by_rate, start, title, about),
        sweep_figures.each_loss(
            Path(f"{prefix}_each.png"), by_rate, verdicts, start, title, about
        ),
        sweep_figures.validation(Path(f"{prefix}_validation.png"), by_rate, title, about),
        Path(f"{prefix}.json"),
    ]
    results.save_result(
        saved[-1],
        split,
        seed=args.seed,
        device=str(device),
        seconds=sum(result["seconds"] for result in by_rate.values()),
        recipe=asdict(recipe),
        start_loss=start,
        best_rate=best,
        rates=[{"rate": r, "verdict": verdicts[r], **by_rate[r]} for r in by_rate],
    )
    options.print_saved(*saved)
    print(f"saved {options.shown(root / 'models' / name)}-lrRATE.pt and .json for each rate")


def row(result):
    loss = result["history"]["loss"]
    text = f"{short(loss[0])} {short(loss[-1])}   " if loss else f"{'-':>8} {'-':>8}   "
    if result["diverged"]:
        return text + f"{'-':>8} {'-':>8} {'-':>6}"
    validation = result["validation"]
    return text + (
        f"{short(result['history']['validation_loss'][-1])}"
        f" {validation['balanced_accuracy']:8.3f} {validation['g_mean']:6.3f}"
    )


def short(loss):
    return f"{loss:8.4f}" if loss < 100 else f"{loss:8.1e}"


def new_network(recipe, split, seed):
    from common import models

    return models.build(recipe.network, recipe.network_arguments(len(split.classes)), seed)


def test_range(name, recipe, rates, split, examples, device, about, args):
    from common import results, sweep_figures, training
    from common.sweep import best_of_sweep, range_test

    start = time.perf_counter()
    lowest, highest = RANGE
    try:
        test = range_test(
            new_network(recipe, split, args.seed),
            examples,
            recipe,
            lowest=lowest,
            highest=highest,
            seed=args.seed,
            device=device,
        )
    except training.DivergedError as error:
        raise options.InputError(f"--range-test: {error}") from None
    print(f"\nRange test from {lowest:g} to {highest:g}, {len(test.losses):,} steps:")
    print(f"steepest descent (the suggested rate): {test.suggestion:.2g}")
    fallen = 1 - min(test.smoothed) / test.smoothed[0]
    if fallen < CLEAR:
        print(f"but the loss fell by no more than {fallen:.0%}: that says little")
    print(f"edge of divergence: {f'{test.edge:.2g}' if test.edge else 'none met'}")
    folder = options.output_dir(args) / "figures"
    best = best_of_sweep(folder / f"lr_sweep_{name}.json", split, asdict(recipe))
    if best is None:
        print(f"To compare with a sweep, first run: python lr_sweep.py {name}")
    else:
        print(
            f"The sweep's best rate, by validation G-mean: {best:g}"
            f" ({test.suggestion / best:.2g} times as much is suggested)"
        )
    figure = folder / f"lr_sweep_{name}_range_test.png"
    sweep_figures.range_test(figure, test, f"Learning-rate range test of {name}", about)
    results.save_result(
        figure.with_suffix(".json"),
        split,
        seed=args.seed,
        device=str(device),
        seconds=time.perf_counter() - start,
        recipe=asdict(recipe),
        sweep_best_rate=best,
        **asdict(test),
    )
    options.print_saved(figure, figure.with_suffix(".json"))


if __name__ == "__main__":
    parser = options.parser(__doc__)
    parser.add_argument(
        "recipe",
        nargs="?",
        default="original",
        metavar="RECIPE",
        help="a name from train.py --list (default: %(default)s)",
    )
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=options.rate,
        default=RATES,
        metavar="RATE",
        help=f"the rates (default: {' '.join(f'{rate:g}' for rate in RATES)})",
    )
    parser.add_argument(
        "--range-test",
        action="store_true",
        help=f"instead, one pass at rates that grow from {RANGE[0]:g} to {RANGE[1]:g}",
    )
    options.add_training(parser)
    recipes.add_options(parser, without="learning_rate")
    parser.set_defaults(validation=0.1, epochs=EPOCHS)
    options.run(main, parser)
