"""Stage 5: fooling the network, measured.

    python adversarial.py [CHECKPOINT ...]

Attacks each checkpoint on the test images with the attacks of common/attacks/table.py; the
first one also with report A's noise, optimised for each image, and report B's, one for all
images. Prints tables; saves figures/adversarial_NAME_*.png and, with every printed number,
figures/adversarial_NAME.json. Epsilons are in 1/255; those of L2 norms in pixel values, 0 to 1.
"""

import time
from pathlib import Path

from common import options
from common.files import ROOT

SETTINGS = (
    "epsilons", "l2_epsilons", "steps", "restarts", "images", "norm", "c", "target",
    "noise_steps", "epsilon", "universal_steps",
)  # fmt: skip


def main(args):
    best = ROOT / "models" / "best.pt"
    fallback = not args.checkpoints and not best.exists()
    paths = args.checkpoints or [best.with_name("baseline.pt") if fallback else best]
    if args.dry_run:
        args.epsilons, args.l2_epsilons, args.images = [0, 8], [0.5], 4
        args.steps, args.noise_steps, args.universal_steps = 2, 5, 2

    import torch

    from common.attacks import noise_robustness, robustness
    from common.attacks.table import Settings
    from common.dataset.split import LabelledImages
    from common.files import save_result
    from common.networks.checkpoint import load_checkpoints, require_match
    from common.reporting import attack_tables as tables
    from common.reporting.attack_pictures import Subject, save_figures
    from common.reporting.data_tables import split_text
    from common.reporting.evaluation_tables import caution

    start = time.perf_counter()
    device = options.torch_device(args)
    checkpoints = load_checkpoints(paths, device, args.network)
    split = options.load_split(args)
    classes = split.classes
    require_match(paths, checkpoints, classes, split.image_size)
    pairs = robustness.class_pairs(args.pairs, classes)
    test = robustness.to_attack(split.test, device)
    train = LabelledImages(split.train.images[:].to(device), split.train.labels.to(device))
    for name, checkpoint in checkpoints.items():
        checkpoint.network.to(memory_format=torch.channels_last)
        robustness.correctly_classified(checkpoint.network, *test, name)
    first, network = next((name, c.network) for name, c in checkpoints.items())
    targets = robustness.make_targets(args.target, test.labels, classes)
    chosen = robustness.sample(network, test, targets, args.images, args.seed)

    if fallback:
        print("There is no models/best.pt: attacking models/baseline.pt.")
    print(split_text(split))
    settings = Settings(*(getattr(args, name) for name in Settings.__annotations__))
    curves = {}
    for path, (name, checkpoint) in zip(paths, checkpoints.items(), strict=True):
        print(f"\n== {options.display_path(path)} on {len(test.labels)} test images ==")
        if warning := caution(checkpoint, split):
            print(warning)
        curves[name] = {}
        given = (checkpoint.network, *test, classes, settings)
        for curve in robustness.attack_curves(*given):
            curves[name][curve.name] = curve
            print(f"\n{tables.curve_text(curve)}", flush=True)
    if len(curves) > 1:
        print("\n== PGD on each ==")
        print(tables.curves_compared({name: c["PGD"] for name, c in curves.items()}))

    print(f"\n== {first}: noise optimised for each of {len(chosen)} images ==")
    noise_settings = {"c": args.c, "norm": args.norm, "steps": args.noise_steps}
    given = (network, test.images[chosen], test.labels[chosen], targets[chosen])
    noises = dict(
        noise_robustness.measure_optimised_noise(*given, **noise_settings, seed=args.seed)
    )
    print(tables.optimised_noise_text(noises), flush=True)

    print(f"\n== {first}: one noise for all images, epsilon {args.epsilon:g}/255 ==")
    universals, learned = {}, {}
    for name, noise, measured in noise_robustness.measure_universal_noise(
        network, train, test, classes,
        epsilon=args.epsilon / 255, steps=args.universal_steps, seed=args.seed,
    ):  # fmt: skip
        universals[name], learned[name] = measured, noise
    print(tables.universal_noise_text(universals), flush=True)

    prefix = f"{options.output_dir(args) / 'figures' / 'adversarial'}_{first}"
    subject = Subject(first, network, test, classes, split.source)
    shown = {"pairs": pairs, "epsilon": args.epsilon, "epsilons": args.epsilons}
    saved = save_figures(prefix, subject, curves, noises, learned, **shown, **noise_settings)
    seconds, threads = time.perf_counter() - start, torch.get_num_threads()
    print(f"\n{seconds:.0f} s in all, on {device}, {threads} thread(s)")
    result = save_result(
        Path(f"{prefix}.json"),
        data=split.record(),
        seed=args.seed,
        device=str(device),
        seconds=seconds,
        threads=threads,
        settings={name: getattr(args, name) for name in SETTINGS},
        checkpoints={
            name: c.record(path)
            for path, (name, c) in zip(paths, checkpoints.items(), strict=True)
        },
        **tables.attack_record(curves, noises, universals),
    )
    options.print_saved(*saved, result)


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    add, epsilon = parser.add_argument, options.number(float, least=0, most=255)
    # fmt: off
    add("checkpoints", nargs="*", type=options.path, metavar="CHECKPOINT",
        help="checkpoint (default: models/best.pt, else models/baseline.pt)")
    add("--epsilons", nargs="+", type=epsilon, metavar="E", default=[0, 1, 2, 4, 8, 16, 32],
        help="epsilons of the L-infinity attacks, in 1/255 (default: 0 1 2 4 8 16 32)")
    add("--l2-epsilons", nargs="+", type=options.number(float, least=0, most=1000), metavar="E",
        default=[0.125, 0.25, 0.5, 1],
        help="epsilons of PGD in L2, in pixel values (default: 0.125 0.25 0.5 1)")
    for name, value, help_text in (
        ("--steps", 10, "steps of PGD, of size 2.5 epsilon / N"),
        ("--restarts", 1, "random starts of PGD"),
        ("--noise-steps", 50, "steps of each of six bisections; with --c twice as many"),
        ("--universal-steps", 60, "steps that learn the universal noise, of 100 images each"),
    ):
        add(name, type=options.POSITIVE, metavar="N", default=value,
            help=f"{help_text} (default: %(default)s)")
    add("--images", metavar="N", default=30,
        type=lambda text: text if text == "all" else options.POSITIVE(text),
        help="number of images with optimised noise, or all (default: %(default)s)")
    add("--norm", choices=("l1", "l2"), default="l1",
        help="norm of the optimised noise (default: %(default)s)")
    add("--c", type=options.RATE, metavar="C",
        help="weight of that norm in the loss (default: by bisection for each image)")
    add("--target", type=options.text, metavar="CLASS",
        help="target of all optimised noise (default: each image's next class)")
    add("--pairs", nargs="+", type=options.text, metavar="TRUE:TARGET",
        help="pairs in the figure of optimised noise (default: the first class to others)")
    add("--epsilon", type=epsilon, metavar="E", default=16,
        help="bound of the universal noise, in 1/255 (default: %(default)s)")
    options.add_network(parser)
    options.run(main, parser, ["figures"])
