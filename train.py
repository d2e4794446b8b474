"""Stage 3: recipes against imbalance, compared.

    python train.py [RECIPE ...] [--seeds N] [--epochs N ...]

Trains each recipe (default: report A's experiments), prints one table and reports on the
test images. Saves models/NAME.pt with its result file models/NAME.json for each run,
figures/train_NAME_*.png, and figures/train_comparison.{png,md,json}. A run that ended
before is not trained again: after an interruption the same command does what is missing.
"""

from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from common import options, recipes


def main(args):
    if args.list:
        for name, recipe in recipes.RECIPES.items():
            text = f"{name:24}{recipes.differences(recipe)}"
            print(fill(text, 80, subsequent_indent=" " * 24, break_on_hyphens=False))
        return
    chosen = recipes.named(args.recipes, args)
    if not args.dry_run:  # it has a folder of its own
        chosen = {recipes.title(name, recipe): recipe for name, recipe in chosen.items()}
    if args.validation == 0 and any(recipe.patience for recipe in chosen.values()):
        args.validation = 0.1  # early stopping selects, so it needs images to select by

    from common import balance, comparison, experiment, figures, results, text

    device = options.device(args)
    split = options.split(args)
    for recipe in chosen.values():
        balance.check(recipe, split.train.counts(len(split.classes)), split.classes)
    seeds = range(args.seed, args.seed + args.seeds)
    runs = [experiment.Run(name, chosen[name], seed) for name in chosen for seed in seeds]
    how = options.how_to_train(args, device, len(runs))
    root = options.output_dir(args)
    print(text.images(split))
    print(f"Runs: {len(runs)}, {how['jobs']} at a time, on {device}", flush=True)

    ended = {}
    for run, result in experiment.train_all(runs, split, root / "models", **how):
        ended[run] = result
        show(run, result, split, root, full=len(runs) == 1)
    if len(chosen) < 2 and args.seeds == 1:
        return

    by_recipe = {
        f"{name} !" if recipe.train_on_test else name: [
            ended[r] for r in runs if r.name == name
        ]
        for name, recipe in chosen.items()
    }
    compared = comparison.compare(by_recipe)
    title = f"== {len(split.test.labels)} test images, {args.seeds} seed(s) =="
    print(f"\n{title}\n")
    for run, result in ended.items():
        if result["diverged"]:
            print(fill(f"{run.file}: diverged, {result['diverged']}", 80))
    if not compared:
        return
    print(comparison.as_text(compared))
    print(comparison.legend(compared, args.seeds))
    if any(recipe.train_on_test for recipe in chosen.values()):
        print("!: trained on the test images too, so its scores are not held out.")
    folder = root / "figures"
    figure = folder / "train_comparison.png"
    n = f"n = {sum(split.train.counts(len(split.classes))):,} train, {len(split.test.labels):,}"
    figures.recipes(figure, compared, "G-mean", args.seeds, f"{split.source}; {n} test images")
    markdown, result = figure.with_suffix(".md"), figure.with_suffix(".json")
    with results.replacing(markdown) as unfinished:
        unfinished.write_text(comparison.as_markdown(compared))
    results.save_result(
        result,
        split,
        seed=args.seed,
        device=str(device),
        seconds=sum(result["seconds"] for result in ended.values()),
        seeds=list(seeds),
        recipes={name: asdict(recipe) for name, recipe in chosen.items()},
        compared={
            name: {metric: asdict(summary) for metric, summary in row.items()}
            for name, row in compared.items()
        },
        diverged={run.file: r["diverged"] for run, r in ended.items() if r["diverged"]},
    )
    options.print_saved(figure, markdown, result)


def show(run, result, split, root, full):
    """Print what was trained and how it ended, and save its figures."""
    from common import figures, metrics, text

    classes, recipe = split.classes, run.recipe
    print(f"\n== {run.name}, seed {run.seed} ==")
    print(f"epochs {recipe.epochs}, batch {recipe.batch_size}, {result['seconds']:.0f} s")
    if "command" in result:
        print(f"(trained before, by: {result['command']})")
    print(f"Total: {sum(result['examples'])} examples")
    for what, counts in (
        ("examples", result["examples"]),
        ("one epoch draws", result["drawn"]),
    ):
        each = ", ".join(f"{name} {n:,}" for name, n in zip(classes, counts, strict=True))
        print(f"{what}: {each}")
    if result["diverged"]:
        print(fill(f"DIVERGED: {result['diverged']}", 80), flush=True)
        return
    history = result["history"]
    print(f"loss: first epoch {history['loss'][0]:.4f}, last {history['loss'][-1]:.4f}")
    if history["validation_g_mean"]:
        g_mean = history["validation_g_mean"][-1]
        print(
            f"validation: loss {history['validation_loss'][-1]:.4f}, G-mean {g_mean:.3f}",
            end="",
        )
        print(f" ({len(split.validation.labels)} images)")
    report = metrics.from_confusion(result["report"]["confusion"], classes)
    held_out = "(trained on these test images)" if result["trained_on_test"] else ""
    if full:
        if held_out:
            print(f"{text.NOT_HELD_OUT}\n")
        print(f"\n{text.as_text(report, split.source)}")
    else:
        print(text.comparison({run.name: report}), held_out, flush=True)
    prefix = f"{root / 'figures' / 'train'}_{run.file}"
    about = f"{split.source}; n = {sum(result['examples']):,} examples; seed {run.seed}"
    saved = [
        figures.loss(
            Path(f"{prefix}_loss.png"),
            history["loss"],
            history["validation_loss"],
            f"Loss of {run.name}",
            about,
        ),
        figures.class_counts(
            Path(f"{prefix}_counts.png"),
            {"examples": result["examples"], "drawn in one epoch": result["drawn"]},
            classes,
            split.source,
        ),
        figures.confusion(
            Path(f"{prefix}_confusion.png"),
            report,
            f"Confusion matrix of {run.name} {held_out}".rstrip(),
            split.source,
        ),
    ]
    checkpoint = root / "models" / f"{run.file}.pt"
    options.print_saved(checkpoint, checkpoint.with_suffix(".json"), *saved)


if __name__ == "__main__":
    parser = options.parser(__doc__)
    parser.add_argument(
        "recipes",
        nargs="*",
        metavar="RECIPE",
        default=list(recipes.REPORT_A),
        help="names from --list (default: report A's experiments)",
    )
    parser.add_argument("--list", action="store_true", help="print all recipes and end")
    parser.add_argument(
        "--seeds",
        type=options.positive,
        default=1,
        metavar="N",
        help="runs of each recipe, with seeds from --seed on (default: %(default)s)",
    )
    options.add_training(parser)
    recipes.add_options(parser)
    options.run(main, parser)
