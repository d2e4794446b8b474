"""Stage 2: any checkpoint on the test images: report, calibration, decisions, errors.

    python evaluate.py [CHECKPOINT ...] [--prior SHARE ...] [--cost FILE] [--ensemble]
    python evaluate.py [CHECKPOINT ...] --predict FOLDER_OR_FILE ... [--abstain P]

Prints for each checkpoint what both reports print, how good its probabilities are, and a
reading in words, with 95% intervals; for several checkpoints their paired differences too.
Saves figures/evaluate_NAME_*.png, every prediction in figures/evaluate_NAME_predictions.csv and
every printed number in figures/evaluate_NAME.json. Several checkpoints also give
figures/evaluate.json and, up to four of them, figures/evaluate_confusions.png.
With --predict, what the network says of image files: figures/predict_NAME.{csv,json}.
"""

import sys
from dataclasses import asdict

from common import options
from common.errors import InputError
from common.files import ROOT


def main(args):
    if args.predict:
        return predict_files(args)
    if args.abstain is not None:
        raise InputError("--abstain: is for the images of --predict; add that option")
    if args.ensemble and len(args.checkpoints) < 2:
        raise InputError("--ensemble: averages several checkpoints; name two or more")
    if args.export and len(args.checkpoints) > 1:
        raise InputError("--export: writes one network; name one checkpoint")

    from tqdm import tqdm

    from common.files import save_result
    from common.metrics.decisions import read_costs
    from common.networks.checkpoint import load_checkpoints, require_match
    from common.reporting import evaluation

    device = options.torch_device(args)
    checkpoints = load_checkpoints(args.checkpoints, device, args.network)
    split = options.load_split(args)
    require_match(args.checkpoints, checkpoints, split.classes, split.image_size)
    prior, costs, assumed = None, None, {}
    named = list(zip(args.checkpoints, checkpoints.items(), strict=True))
    if args.prior:
        prior, assumed = evaluation.wanted_and_assumed_shares(args.prior, named, split)
    if args.cost:
        costs = read_costs(args.cost, split.classes)
    if args.export:
        from common.networks.export import export_onnx

        print(f"ONNX: {export_onnx(*checkpoints.values(), args.export)}")

    networks = {}
    for path, (name, checkpoint) in tqdm(named, "Predicting", leave=False, disable=None):
        heading = options.display_path(path)
        given = checkpoint, path, heading, split, prior, assumed.get(name)
        networks[name] = evaluation.network_of(*given)
    if args.ensemble:
        name = "ensemble"
        while name in networks:
            name += "+"
        members = f"the mean probability of {', '.join(networks)}"
        networks[name] = evaluation.average(list(networks.values()), f"{name}: {members}")

    folder = options.output_dir(args) / "figures"
    shared = {"data": split.record(), "seed": args.seed, "device": str(device)}
    shared |= {"prior": args.prior, "costs": None if costs is None else costs.tolist()}
    evaluations, saved = {}, []
    for name, network in networks.items():
        evaluations[name] = evaluation.evaluate(network, split, prior, costs)
        print(f"\n== {network.heading} ==")
        print(evaluation.evaluation_text(network, evaluations[name], split, prior))
        prefix = f"{folder / 'evaluate'}_{name}"
        saved += evaluation.save_files(prefix, name, network, evaluations[name], split)
        result = save_result(
            folder / f"evaluate_{name}.json", **shared, seconds=network.seconds,
            checkpoint=network.record, **evaluations[name].as_dict(),
        )  # fmt: skip
        saved.append(result)
    if len(networks) > 1:
        text, comparison = evaluation.compare(networks, evaluations, split)
        print(f"\n{text}")
        result = save_result(
            folder / "evaluate.json",  # which no checkpoint's name can make
            **shared,
            seconds=sum(network.seconds for network in networks.values()),
            checkpoints={name: network.record for name, network in networks.items()},
            comparison=asdict(comparison),
        )
        saved += [*evaluation.save_confusions(folder, networks, evaluations, split), result]
    options.print_saved(*saved, *([args.export] if args.export else []))


def predict_files(args):
    """Print and save what each checkpoint says of image files, without a data set."""
    why = "--predict: loads no data set"
    options.require_absent(args, ("prior", "cost", "ensemble", "export"), why)
    if useless := options.typed_options(args, options.add_images):
        raise InputError(f"{why}, {useless[0]} does nothing; leave it out")

    from common.files import save_result
    from common.networks.checkpoint import load_checkpoints
    from common.reporting.predictions import find_images, predictions_text, save_predictions

    images = find_images(args.predict)
    folder, device = options.output_dir(args) / "figures", options.torch_device(args)
    data = {"source": [str(path) for path in args.predict], "files": len(images)}
    shared = {"data": data, "seed": args.seed, "device": str(device)}
    checkpoints = load_checkpoints(args.checkpoints, device, args.network)
    saved = []
    for path, (name, checkpoint) in zip(args.checkpoints, checkpoints.items(), strict=True):
        table = folder / f"predict_{name}.csv"
        found = save_predictions(table, checkpoint, images, args.abstain)
        print(f"\n== {name} on {len(images) - len(found.unread):,} images ==")
        print(predictions_text(found), flush=True)
        record = {"checkpoint": checkpoint.record(path)} | asdict(found)
        saved += [table, save_result(table.with_suffix(".json"), **shared, **record)]
    for message in found.unread:  # the same for each network
        print(f"evaluate.py: {message}", file=sys.stderr)
    options.print_saved(*saved)


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("checkpoints", nargs="*", type=options.path, metavar="CHECKPOINT",
        default=[ROOT / "models" / "baseline.pt"],
        help="checkpoint of train.py or of the course (default: models/baseline.pt)")
    add("--prior", nargs="+", type=options.number(float, above=0, most=1e9), metavar="SHARE",
        help="class shares where the network will be used, in label order, up to a factor:"
        " decide for them (default: none)")
    add("--cost", type=options.path, metavar="FILE",
        help="CSV of the cost of each confusion, true classes in rows, decisions in columns:"
        " decide for the least expected cost (default: none)")
    add("--ensemble", action="store_true",
        help="evaluate also the mean of the checkpoints' probabilities (default: off)")
    add("--export", type=options.path, metavar="FILE.onnx",
        help="write the network, with its normalisation and class names, as ONNX (needs pip"
        " install onnx onnxscript; default: none)")
    add("--predict", nargs="+", type=options.path, metavar="FOLDER_OR_FILE",
        help="instead, predict the class of these image files, at any depth of folders"
        " (default: none)")
    add("--abstain", type=options.number(float, above=0, below=1), metavar="P",
        help="with --predict: no class where no probability is P or more (default: none)")
    options.add_network(parser)
    # fmt: on
    options.run(main, parser, ["figures"])
