"""Stage 5: fooling the network, measured.

    python adversarial.py [CHECKPOINT ...]

Attacks each checkpoint on the test images with FGSM, PGD and its momentum variant; the first
one also with report A's noise, optimised for each image, and report B's, one for all images.
Prints tables; saves figures/adversarial_NAME_*.png and, with every printed number,
figures/adversarial_NAME.json. Epsilons are in 1/255; those of L2 norms in pixel values, 0 to 1.
"""

import time
from pathlib import Path
from textwrap import fill

from common import options

MODELS = options.ROOT / "models"
SETTINGS = (
    "epsilons", "l2_epsilons", "steps", "restarts", "images", "norm", "c", "target",
    "noise_steps", "epsilon", "universal_steps",
)  # fmt: skip


def main(args):
    paths = args.checkpoints or [MODELS / "best.pt"]
    fallback = not (args.checkpoints or paths[0].exists())
    if fallback:
        paths = [MODELS / "baseline.pt"]
    if args.dry_run:
        args.epsilons, args.l2_epsilons, args.images = [0, 8], [0.5], 4
        args.steps, args.noise_steps, args.universal_steps = 2, 5, 2

    import torch

    from common import models, pictures, results, robustness, text
    from common.dataset import Part

    start = time.perf_counter()
    device = options.device(args)
    checkpoints = models.load_checkpoints(paths, device)
    split = options.split(args)
    classes = split.classes
    models.check_classes(paths, checkpoints, classes)
    pairs = robustness.class_pairs(args.pairs, classes)
    test = robustness.to_attack(split.test, device)
    train = Part(*(values.to(device) for values in split.train))
    for name, checkpoint in checkpoints.items():
        checkpoint.network.to(memory_format=torch.channels_last)
        robustness.correct(checkpoint.network, *test, name)
    first, network = next((n, c.network) for n, c in checkpoints.items())
    targets = robustness.targets(args.target, test.labels, classes)
    chosen = robustness.sample(network, test, targets, args.images, args.seed)
    seed = {"seed": args.seed}

    if fallback:
        print("There is no models/best.pt: attacking models/baseline.pt.")
    print(text.images(split))
    sweeps = {}
    for path, (name, checkpoint) in zip(paths, checkpoints.items(), strict=True):
        print(f"\n== {options.shown(path)} on {len(test.labels)} test images ==")
        if caution := text.caution(checkpoint, split):
            print(caution)
        sweeps[name] = {}
        for sweep in robustness.sweeps(
            checkpoint.network, *test, classes, epsilons=args.epsilons,
            l2_epsilons=args.l2_epsilons, steps=args.steps, restarts=args.restarts, **seed,
        ):  # fmt: skip
            sweeps[name][sweep.name] = sweep
            attacked = next(iter(sweep.outcomes.values())).attacked
            about = f"{sweep.name} ({sweep.how}) on the {attacked} images that are right:"
            print(f"\n{fill(about, 80)}\n{text.sweep(sweep)}")
            print(f"({sweep.seconds:.1f} s; L1, L2, Linf: the noise's mean norms)", flush=True)
    if len(sweeps) > 1:
        print("\n== PGD on each ==")
        print(text.sweeps_compared({name: found["PGD"] for name, found in sweeps.items()}))

    x, labels, aims = test.images[chosen], test.labels[chosen], targets[chosen]
    print(f"\n== {first}: noise optimised for each of {len(x)} images ==")
    noises = dict(
        robustness.noises(
            network, x, labels, aims, c=args.c, norm=args.norm, steps=args.noise_steps, **seed
        )
    )
    print(text.noises(noises))
    print("(L1, L2, Linf: medians of the noise of images called their target)", flush=True)

    print(f"\n== {first}: one noise for all images, epsilon {args.epsilon:g}/255 ==")
    universals, learned = {}, {}
    for name, noise, measured in robustness.universals(
        network, train, test, classes,
        epsilon=args.epsilon / 255, steps=args.universal_steps, **seed,
    ):  # fmt: skip
        universals[name], learned[name] = measured, noise
    print(text.universals(universals), flush=True)

    prefix = f"{options.output_dir(args) / 'figures' / 'adversarial'}_{first}"
    saved = pictures.adversarial(
        prefix, network, test, classes, split.source, first, sweeps, noises, learned,
        pairs=pairs, c=args.c, norm=args.norm, steps=args.noise_steps, epsilon=args.epsilon,
        epsilons=args.epsilons,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s in all, on {device}, {torch.get_num_threads()} thread(s)")
    saved.append(Path(f"{prefix}.json"))
    results.save_result(
        saved[-1],
        split,
        seed=args.seed,
        device=str(device),
        seconds=seconds,
        threads=torch.get_num_threads(),
        settings={name: getattr(args, name) for name in SETTINGS},
        checkpoints={
            name: results.checkpoint_record(path, checkpoint)
            for path, (name, checkpoint) in zip(paths, checkpoints.items(), strict=True)
        },
        sweeps={
            name: {attack: sweep.as_dict() for attack, sweep in found.items()}
            for name, found in sweeps.items()
        },
        noise=noises,
        universal={
            name: {
                part: values | {"report": values["report"].as_dict()}
                for part, values in measured.items()
            }
            for name, measured in universals.items()
        },
    )
    options.print_saved(*saved)


def epsilon(text):
    return options.number(text, "an epsilon from 0 to 255 (1/255)", lambda e: 0 <= e <= 255)


def l2_epsilon(text):
    return options.number(text, "an epsilon from 0 to 1", lambda e: 0 <= e <= 1)


def images(text):
    return text if text == "all" else options.positive(text)


if __name__ == "__main__":
    parser = options.parser(__doc__)
    for names, text, given in (
        (["checkpoints"], "of train.py or of the course (default: models/best.pt, else"
         " models/baseline.pt)", {"nargs": "*", "type": Path, "metavar": "CHECKPOINT"}),
        (["--epsilons"], "of FGSM and PGD, in 1/255 (default: 0 1 2 4 8 16 32)",
         {"nargs": "+", "type": epsilon, "metavar": "E", "default": [0, 1, 2, 4, 8, 16, 32]}),
        (["--l2-epsilons"], "of PGD in L2, in pixel values (default: 0.125 0.25 0.5 1)",
         {"nargs": "+", "type": l2_epsilon, "metavar": "E", "default": [0.125, 0.25, 0.5, 1]}),
        (["--steps"], "of PGD, each of 2.5 epsilon / N (default: %(default)s)",
         {"type": options.positive, "metavar": "N", "default": 10}),
        (["--restarts"], "random starts of PGD (default: %(default)s)",
         {"type": options.positive, "metavar": "N", "default": 1}),
        (["--images"], "to optimise noise for, or all (default: %(default)s, each class alike)",
         {"type": images, "metavar": "N", "default": 30}),
        (["--norm"], "of the optimised noise, which C weighs (default: %(default)s)",
         {"choices": ("l1", "l2"), "default": "l1"}),
        (["--c"], "that weight (default: found for each image by bisection)",
         {"type": options.rate, "metavar": "C"}),
        (["--target"], "of optimised noise, one for all (default: each image's next class)",
         {"metavar": "CLASS"}),
        (["--pairs"], "drawn with optimised noise (default: the first class to each other)",
         {"nargs": "+", "metavar": "TRUE:TARGET"}),
        (["--noise-steps"], "of each of six rounds of bisection; with a fixed C twice as many"
         " (default: %(default)s)", {"type": options.positive, "metavar": "N", "default": 50}),
        (["--epsilon"], "bound of the noise for all images, in 1/255 (default: %(default)s)",
         {"type": epsilon, "metavar": "E", "default": 16}),
        (["--universal-steps"], "to learn it, of 100 train images each (default: %(default)s)",
         {"type": options.positive, "metavar": "N", "default": 60}),
    ):  # fmt: skip
        parser.add_argument(*names, help=text, **given)
    options.run(main, parser)
