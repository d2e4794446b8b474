"""Stage 5: fooling the network, measured.

    python adversarial.py [CHECKPOINT ...]

Attacks each checkpoint on the test images, of each class at most 150: with the attacks of
common/attacks/table.py, with the ensemble of attacks (common/attacks/ensemble.py), and with the
smallest noise that fools. Tries the images of each checkpoint on the others. Attacks the first
one also with report A's noise, optimised for each image, and report B's, one for all images.
Prints tables; saves figures/adversarial_NAME_*.png and, with every printed number,
figures/adversarial_NAME.json. Epsilons are in 1/255; those of L2 norms in pixel values, 0 to 1.
"""

import time
from pathlib import Path

from common import options
from common.files import ROOT, output_folders

SETTINGS = (
    "per_class", "epsilons", "l2_epsilons", "steps", "restarts", "ensemble_epsilons",
    "ensemble_l2_epsilons", "ensemble_steps", "queries", "images", "norm", "c", "target",
    "noise_steps", "epsilon", "universal_steps",
)  # fmt: skip


def main(args):
    best = ROOT / "models" / "best.pt"
    fallback = not args.checkpoints and not best.exists()
    paths = args.checkpoints or [best.with_name("baseline.pt") if fallback else best]
    options.require_distinct(args, *(name for name in SETTINGS if name.endswith("epsilons")))
    if args.dry_run:
        args.epsilons, args.l2_epsilons, args.images = [0, 4, 8], [0.5], 4
        args.steps, args.noise_steps, args.universal_steps = 2, 5, 2
        args.ensemble_epsilons, args.ensemble_steps, args.queries = [4, 8], 2, 5
    if args.save_images:
        with output_folders([args.save_images], "--save-images"):
            pass  # that it can be written shows before any work

    import torch

    from common.attacks import noise_robustness, robustness
    from common.attacks.ensemble import Budget
    from common.attacks.table import Settings
    from common.attacks.transfer import transfer
    from common.files import save_result
    from common.networks.checkpoint import load_checkpoints, require_match
    from common.reporting import attack_tables as tables
    from common.reporting.adversarial_images import save_adversarial_images
    from common.reporting.attack_examples import save_examples
    from common.reporting.attack_pictures import Subject, save_figures
    from common.reporting.data_tables import split_text
    from common.reporting.evaluation_tables import caution
    from common.reporting.network_attacks import attack_network, attack_record

    start = time.perf_counter()
    device = options.torch_device(args)
    checkpoints = load_checkpoints(paths, device, args.network)
    split = options.load_split(args)
    classes = split.classes
    require_match(paths, checkpoints, classes, split.image_size)
    pairs = robustness.class_pairs(args.pairs, classes)
    positions = robustness.sample_per_class(split.test.labels, args.per_class, args.seed)
    test = robustness.to_attack(split.test.select(positions), device)
    networks = {name: checkpoint.network for name, checkpoint in checkpoints.items()}
    for name, network in networks.items():
        network.to(memory_format=torch.channels_last)
        robustness.correctly_classified(network, *test, name)
    first, network = next(iter(networks.items()))
    targets = robustness.make_targets(args.target, test.labels, classes)
    chosen = robustness.sample(network, test, targets, args.images, args.seed)

    if fallback:
        print("There is no models/best.pt: attacking models/baseline.pt.")
    print(split_text(split))
    print(tables.sample_text(len(positions), len(split.test.labels), args.per_class))
    settings = Settings(*(getattr(args, name) for name in Settings.__annotations__))
    budget = Budget(args.ensemble_steps, args.queries)
    of_ensemble = {"linf": args.ensemble_epsilons, "l2": args.ensemble_l2_epsilons}
    attacks, files = {}, dict(zip(checkpoints, paths, strict=True))
    on_test = [name for name, checkpoint in checkpoints.items() if checkpoint.trained_on_test]
    for name, checkpoint in checkpoints.items():
        print(f"\n== {options.display_path(files[name])} on {len(positions)} test images ==")
        if warning := caution(checkpoint, split):
            print(warning)
        attacks[name] = attack_network(
            checkpoint.network, test, classes, settings, budget, of_ensemble,
            show=lambda text: print(f"\n{text}", flush=True),
        )  # fmt: skip
    transferred, transfer_epsilon = {}, max(args.ensemble_epsilons)
    if len(attacks) > 1:
        print("\n== All networks ==")
        curves = {name: each.curves["PGD"] for name, each in attacks.items()}
        print(tables.curves_compared(curves, on_test))
        given = {"epsilon": transfer_epsilon / 255, "steps": args.steps, "seed": args.seed}
        transferred = transfer(networks, *test, **given)
        print(f"\n{tables.transfer_text(transferred, transfer_epsilon, on_test)}", flush=True)

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
        network, split.train, test, classes, epsilon=args.epsilon / 255,
        steps=args.universal_steps, per_class=args.per_class, seed=args.seed,
    ):  # fmt: skip
        universals[name], learned[name] = measured, noise
    print(tables.universal_noise_text(universals), flush=True)

    prefix = f"{options.output_dir(args) / 'figures' / 'adversarial'}_{first}"
    subject = Subject(first, network, test, classes, split.source)
    saved = save_figures(
        prefix, subject, attacks, transferred, noises, learned, pairs=pairs,
        epsilon=args.epsilon, epsilons=args.epsilons, transfer_epsilon=transfer_epsilon,
        on_test=on_test, **noise_settings,
    )  # fmt: skip
    sprite = Path(f"{prefix}_examples.png")
    examples = save_examples(sprite, subject, settings)
    if args.save_images:
        given = (args.save_images, networks, attacks, test, positions, classes)
        saved.append(save_adversarial_images(*given))
    seconds, threads = time.perf_counter() - start, torch.get_num_threads()
    print(f"\n{seconds:.0f} s in all, on {device}, {threads} thread(s)")
    result = save_result(
        Path(f"{prefix}.json"), data=split.record(), seed=args.seed, device=str(device),
        seconds=seconds, threads=threads, images=len(positions), positions=positions.tolist(),
        settings={name: getattr(args, name) for name in SETTINGS},
        checkpoints={name: c.record(files[name]) for name, c in checkpoints.items()},
        **attack_record(attacks, transferred, noises, universals, test.labels, classes),
        examples=examples,
    )  # fmt: skip
    options.print_saved(*saved, sprite, result)


if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    parser.add_argument(
        "checkpoints", nargs="*", type=options.path, metavar="CHECKPOINT",
        help="checkpoint (default: models/best.pt, else models/baseline.pt)",
    )  # fmt: skip
    options.add_attacks(parser)
    options.add_network(parser)
    options.run(main, parser, ["figures"])
