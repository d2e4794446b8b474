"""Stage 2: any checkpoint on the test images: report, calibration, decisions, errors.

    python evaluate.py [CHECKPOINT ...] [--prior SHARE ...] [--cost FILE] [--ensemble]

Prints for each checkpoint what both reports print, how good its probabilities are, and a
reading in words, with 95% intervals; for several checkpoints their paired differences too.
Saves figures/evaluate_NAME_*.png, every prediction in figures/evaluate_NAME_predictions.csv and
every printed number in figures/evaluate_NAME.json, of comparisons in figures/evaluate.json.
"""

from dataclasses import asdict

from common import options
from common.errors import InputError
from common.files import ROOT


def main(args):
    if args.ensemble and len(args.checkpoints) < 2:
        raise InputError("--ensemble: averages several checkpoints; name two or more")

    import numpy as np
    from tqdm import tqdm

    from common.files import save_result
    from common.metrics.decisions import read_costs
    from common.networks.checkpoint import load_checkpoints, require_classes
    from common.reporting import evaluation
    from common.training.assumed_shares import of_checkpoint

    device = options.torch_device(args)
    checkpoints = load_checkpoints(args.checkpoints, device)
    split = options.load_split(args)
    require_classes(args.checkpoints, checkpoints, split.classes)
    prior, costs, assumed = None, None, {}
    named = list(zip(args.checkpoints, checkpoints.items(), strict=True))
    if args.prior:
        if len(args.prior) != len(split.classes):
            given = f"{len(args.prior)} shares for {len(split.classes)} classes"
            raise InputError(f"--prior: {given}; give one for each class, in label order")
        prior = np.array(args.prior) / sum(args.prior)
        counts = split.train.counts(len(split.classes))
        assumed = {name: of_checkpoint(c, path, counts) for path, (name, c) in named}
    if args.cost:
        costs = read_costs(args.cost, split.classes)

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
            folder / f"evaluate_{name}.json",
            **shared,
            seconds=network.seconds,
            checkpoint=network.record,
            **evaluations[name].as_dict(),
        )
        saved.append(result)
    if len(networks) > 1:
        saved.append(compare_networks(networks, evaluations, split, folder, shared))
    options.print_saved(*saved)


def compare_networks(networks, evaluations, split, folder, shared):
    """Print how several networks compare on the same images, and save it."""
    from common.files import save_result
    from common.metrics.comparison import compare_predictions
    from common.reporting.evaluation_tables import reports_compared
    from common.reporting.probability_tables import differences_text

    reports = {name: each.report for name, each in evaluations.items()}
    comparison = compare_predictions(
        {name: [report.as_dict()] for name, report in reports.items()},
        {name: network.test.argmax(1)[None] for name, network in networks.items()},
        split.test.labels.numpy(),
    )
    print(f"\n== All on the {len(split.test.labels)} test images, 95% intervals ==")
    print(f"{reports_compared(reports)}\n\n{differences_text(comparison)}")
    return save_result(
        folder / "evaluate.json",  # which no checkpoint's name can make
        **shared,
        seconds=sum(network.seconds for network in networks.values()),
        checkpoints={name: network.record for name, network in networks.items()},
        comparison=asdict(comparison),
    )


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
    # fmt: on
    options.run(main, parser, ["figures"])
