"""Stage 2: any checkpoint on the test images: report, confusion matrix, intervals.

    python evaluate.py [CHECKPOINT ...]

Prints for each checkpoint what both reports print, 95% intervals and a reading in words;
for several checkpoints, one table of all at the end. Saves figures/evaluate_NAME_confusion.png
and, with every printed number, figures/evaluate_NAME.json.
"""

import time

from common import options
from common.files import ROOT


def main(args):
    from tqdm import tqdm

    from common.files import save_result
    from common.metrics.report import report
    from common.networks.checkpoint import load_checkpoints, require_classes
    from common.networks.prediction import predict
    from common.reporting.evaluation_tables import caution, report_text, reports_compared
    from common.reporting.training_figures import confusion

    device = options.torch_device(args)
    checkpoints = load_checkpoints(args.checkpoints, device)
    split = options.load_split(args)
    require_classes(args.checkpoints, checkpoints, split.classes)

    reports, seconds = {}, {}
    for name, checkpoint in tqdm(checkpoints.items(), "Evaluating", leave=False, disable=None):
        start = time.perf_counter()
        predictions = predict(checkpoint.network, split.test.images).argmax(1)
        reports[name] = report(split.test.labels, predictions, split.classes)
        seconds[name] = time.perf_counter() - start

    folder = options.output_dir(args) / "figures"
    saved = []
    for path, (name, checkpoint) in zip(args.checkpoints, checkpoints.items(), strict=True):
        print(f"\n== {options.display_path(path)} ==")
        if warning := caution(checkpoint, split):
            print(f"{warning}\n")
        print(report_text(reports[name], split.source))
        title = f"Confusion matrix of {name}"
        if checkpoint.trained_on_test:
            title += " (trained on these test images)"
        figure = folder / f"evaluate_{name}_confusion.png"
        saved.append(confusion(figure, reports[name], title, split.source))
        result = save_result(
            folder / f"evaluate_{name}.json",
            data=split.record(),
            seed=args.seed,
            device=str(device),
            seconds=seconds[name],
            checkpoint=checkpoint.record(path),
            report=reports[name].as_dict(),
        )
        saved.append(result)
    if len(reports) > 1:
        print(f"\n== All on the {len(split.test.labels)} test images, 95% intervals ==")
        print(reports_compared(reports))
    options.print_saved(*saved)


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    parser.add_argument(
        "checkpoints",
        nargs="*",
        type=options.path,
        metavar="CHECKPOINT",
        default=[ROOT / "models" / "baseline.pt"],
        help="checkpoint of train.py or of the course (default: models/baseline.pt)",
    )
    options.run(main, parser, ["figures"])
