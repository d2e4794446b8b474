"""Stage 3: recipes against imbalance.

    python train.py [RECIPE ...] [--epochs N ...]

Trains each recipe (default: original, the reports' own) and reports on the test images.
Saves models/NAME.pt with its result file models/NAME.json, and figures/train_NAME_*.png.
"""

import time
from dataclasses import asdict
from pathlib import Path

from common import options, recipes


def main(args):
    chosen = recipes.named(args.recipes, args)

    from common import training

    device = options.device(args)
    if args.deterministic:
        training.make_deterministic()
    split = options.split(args)
    for name, recipe in chosen.items():
        train_one(name, recipe, split, device, args)


def train_one(name, recipe, split, device, args):
    """Train one recipe, save all of it, print its report."""
    from common import figures, metrics, models, results, text, training

    start = time.perf_counter()
    classes, counts = split.classes, split.train.counts(len(split.classes))
    print(f"\n== {name}: epochs {recipe.epochs}, batch {recipe.batch_size}, on {device} ==")
    print(f"Images: {split.source} (fingerprint {split.fingerprint})")
    print(f"Total: {sum(counts)} examples")
    print(", ".join(f"{k} {n:,}" for k, n in zip(classes, counts, strict=True)), flush=True)

    arguments = recipe.network_arguments(len(classes))
    network = models.build(recipe.network, arguments, args.seed)
    history = training.fit(
        network,
        split.train,
        split.validation,
        recipe,
        seed=args.seed,
        device=device,
        name=name,
    )
    root = options.output_dir(args)
    checkpoint = root / "models" / f"{name}.pt"
    models.save_checkpoint(
        checkpoint,
        network,
        recipe.network,
        arguments,
        classes=list(classes),
        recipe=asdict(recipe),
        seed=args.seed,
        data=results.data_record(split),
        trained_on_test=False,
        versions=results.versions(),
    )
    logits = models.predict(network, split.test.images)
    report = metrics.report(split.test.labels, logits.argmax(1), classes)
    result = checkpoint.with_suffix(".json")
    results.save_result(
        result,
        split,
        seed=args.seed,
        device=str(device),
        seconds=time.perf_counter() - start,
        recipe=asdict(recipe),
        examples=counts,
        history=asdict(history),
        trained_on_test=False,
        report=report.as_dict(),
    )

    print(f"Loss: first epoch {history.loss[0]:.4f}, last {history.loss[-1]:.4f}")
    if history.validation_g_mean:
        print(f"Validation: loss {history.validation_loss[-1]:.4f}", end=", ")
        print(f"G-mean {history.validation_g_mean[-1]:.3f}", end=" ")
        print(f"({len(split.validation.labels)} images)")
    print(f"\n{text.as_text(report, split.source)}")
    prefix = f"{root / 'figures' / 'train'}_{name}"
    caption = f"{split.source}; n = {sum(counts):,} train images; seed {args.seed}"
    options.print_saved(
        checkpoint,
        result,
        figures.loss(
            Path(f"{prefix}_loss.png"),
            history.loss,
            history.validation_loss,
            f"Loss of {name}",
            caption,
        ),
        figures.class_counts(
            Path(f"{prefix}_counts.png"), {"trained on": counts}, classes, split.source
        ),
        figures.confusion(
            Path(f"{prefix}_confusion.png"), report, f"Confusion matrix of {name}", split.source
        ),
    )


if __name__ == "__main__":
    parser = options.parser(__doc__)
    parser.add_argument(
        "recipes",
        nargs="*",
        metavar="RECIPE",
        default=["original"],
        help=f"{', '.join(recipes.RECIPES)} (default: original)",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits from run to run on CUDA too, where it costs time",
    )
    recipes.add_options(parser)
    options.run(main, parser)
