"""Stage 2: any checkpoint on the test images: report, confusion matrix, intervals.

    python evaluate.py [CHECKPOINT ...]

Prints for each checkpoint what both reports print, 95% intervals and a reading in words;
for several, a table of all at the end. Saves figures/evaluate_NAME_confusion.png, and every
printed number in figures/evaluate_NAME.json.
"""

import time
from pathlib import Path

from common import options


def main(args):
    from common import figures, metrics, models, results, text

    device = options.device(args)
    checkpoints = models.load_checkpoints(args.checkpoints, device)
    split = options.split(args)
    models.check_classes(args.checkpoints, checkpoints, split.classes)

    reports, seconds = {}, {}
    for name, checkpoint in options.progress(checkpoints.items(), "Evaluating"):
        start = time.perf_counter()
        logits = models.predict(checkpoint.network, split.test.images)
        reports[name] = metrics.report(split.test.labels, logits.argmax(1), split.classes)
        seconds[name] = time.perf_counter() - start

    folder = options.output_dir(args) / "figures"
    saved = []
    for path, (name, checkpoint) in zip(args.checkpoints, checkpoints.items(), strict=True):
        report = reports[name]
        print(f"\n== {options.shown(path)} ==")
        caution = text.caution(checkpoint, split)
        if caution:
            print(f"{caution}\n")
        print(text.as_text(report, split.source))
        title = f"Confusion matrix of {name}"
        if checkpoint.trained_on_test:
            title += " (trained on these test images)"
        figure = folder / f"evaluate_{name}_confusion.png"
        saved.append(figures.confusion(figure, report, title, split.source))
        saved.append(folder / f"evaluate_{name}.json")
        results.save_result(
            saved[-1],
            split,
            seed=args.seed,
            device=str(device),
            seconds=seconds[name],
            checkpoint=results.checkpoint_record(path, checkpoint),
            report=report.as_dict(),
        )
    if len(reports) > 1:
        print(f"\n== All on the {len(split.test.labels)} test images, 95% intervals ==")
        print(text.comparison(reports))
    options.print_saved(*saved)


if __name__ == "__main__":
    parser = options.parser(__doc__)
    parser.add_argument(
        "checkpoints",
        nargs="*",
        type=Path,
        metavar="CHECKPOINT",
        default=[options.ROOT / "models" / "baseline.pt"],
        help="checkpoint of train.py or of the course (default: models/baseline.pt)",
    )
    options.run(main, parser)
