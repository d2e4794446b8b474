"""The attacks beside the reports' way, torchattacks and foolbox, where these are installed.

    python benchmarks/attacks.py [CHECKPOINT ...] [--only fgsm pgd noise ensemble]

fgsm: seconds per image over seven epsilons, in batches with one gradient, and as the reports do
it, one image at a time with a backward pass for each epsilon; in turns. Also the largest
difference from torchattacks. pgd: the accuracy that remains under ours and under torchattacks
with the same settings. noise: the median L1 norm of noise that fools, ours and foolbox's EAD,
with the same images, targets and number of gradients (EAD evaluates the network once more after
each). ensemble: the accuracy that remains under each of its attacks and under all together, and
under torchattacks' with the same budget; seconds. Peers: pip install --no-deps torchattacks
foolbox eagerpy GitPython gitdb smmap. Prints, and saves nothing.
"""

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import options
from common.files import ROOT

EPSILONS = [e / 255 for e in (0, 1, 2, 4, 8, 16, 32)]
REPEATS = 3


def main(args):
    import torch

    from common.attacks.robustness import correctly_classified, to_attack
    from common.networks.checkpoint import load_checkpoint

    device = options.torch_device(args)
    split = options.load_split(args)
    test = to_attack(split.test, device)
    print(f"Images: {split.source}; {torch.get_num_threads()} thread(s) on {device}")
    for path in args.checkpoints:
        network = load_checkpoint(path, device).network
        network.to(memory_format=torch.channels_last)
        right = correctly_classified(network, *test)
        print(f"\n== {options.display_path(path)}: {int(right.sum())} of {len(right)} right ==")
        for name in args.only:
            COMPARISONS[name](args, network, test, right)


def fgsm_accuracies(network, x, labels):
    """Return the share of x that is right at each epsilon; all of x is right without attack."""
    from common.attacks.fgsm import fgsm_per_epsilon
    from common.attacks.gradients import logits_of

    return [
        1.0 if a is x else (logits_of(network, a).argmax(1) == labels).float().mean().item()
        for a in fgsm_per_epsilon(network, x, labels, epsilons=EPSILONS)
    ]


def fgsm_accuracies_as_reported(network, x, labels):
    """Return the same by the reports' loop: one image, one epsilon, one backward pass."""
    import torch
    import torch.nn.functional as F

    network.eval()
    accuracies = []
    for epsilon in EPSILONS:
        correct = 0
        for i in range(len(x)):
            image, label = x[i : i + 1].clone().requires_grad_(), labels[i : i + 1]
            loss = F.nll_loss(F.log_softmax(network(image), 1), label)
            network.zero_grad()
            loss.backward()
            adversarial = torch.clamp(image + epsilon * image.grad.sign(), 0, 1)
            correct += (network(adversarial).argmax(1) == label).item()
        accuracies.append(correct / len(x))
    return accuracies


def fgsm(args, network, test, right):
    from common.attacks.fgsm import fgsm as our_fgsm

    x, y = test.images[right], test.labels[right]
    few = 20
    fgsm_accuracies_as_reported(network, x[:1], y[:1])  # the first step imports modules
    ratios = []
    for _ in range(REPEATS):
        seconds = []
        for run, n in ((fgsm_accuracies, len(x)), (fgsm_accuracies_as_reported, few)):
            start = time.perf_counter()
            run(network, x[:n], y[:n])
            seconds.append((time.perf_counter() - start) / n)
        ratios.append(seconds[1] / seconds[0])
        print(f"FGSM, ms an image: {1e3 * seconds[0]:.2f}, reports' way {1e3 * seconds[1]:.1f}")
    print(f"the reports' way takes {', '.join(f'{r:.0f}' for r in ratios)} times as long")
    try:
        import torchattacks
    except ImportError:
        return
    for epsilon in EPSILONS[1:]:
        theirs = torchattacks.FGSM(network, eps=epsilon)(x, y)
        apart = (our_fgsm(network, x, y, epsilon=epsilon) - theirs).abs()
        print(
            f"FGSM at {255 * epsilon:g}/255: at most {apart.max():.2g} from torchattacks,"
            f" {int((apart > 1e-6).sum())} of {apart.numel()} values by more than 1e-6"
        )


def pgd(args, network, test, right):
    import torch
    import torchattacks

    from common.attacks.gradients import logits_of
    from common.attacks.pgd import pgd as our_pgd

    x, y, n = test.images[right], test.labels[right], len(right)
    for epsilon in EPSILONS[1:5]:
        torch.manual_seed(0)
        start = time.perf_counter()
        theirs = torchattacks.PGD(network, eps=epsilon, alpha=epsilon / 4, steps=args.steps)(
            x, y
        )
        between = time.perf_counter()
        ours = our_pgd(network, x, y, epsilon=epsilon, steps=args.steps, step_size=epsilon / 4)
        end = time.perf_counter()
        left = [(logits_of(network, m).argmax(1) == y).sum() / n for m in (ours, theirs)]
        print(
            f"PGD at {255 * epsilon:g}/255, {args.steps} steps: accuracy {left[0]:.3f} in"
            f" {end - between:.1f} s, torchattacks {left[1]:.3f} in {between - start:.1f} s",
            flush=True,
        )


def noise(args, network, test, right):
    import foolbox
    import torch

    from common.attacks import robustness
    from common.attacks.gradients import logits_of
    from common.attacks.noise_robustness import ROUNDS
    from common.attacks.optimised_noise import minimise

    next_class = robustness.next_class(test.labels, network.head.out_features)
    at = robustness.sample(network, test, next_class, args.images, 0)
    x, y, targets = test.images[at], test.labels[at], next_class[at]
    rounds, steps = ROUNDS, args.noise_steps
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
    ead = foolbox.attacks.EADAttack(
        binary_search_steps=rounds, steps=steps, decision_rule="L1", abort_early=False
    )
    goal = foolbox.criteria.TargetedMisclassification(targets)
    for name, run in (
        ("ours", lambda: minimise(network, x, y, targets=targets, steps=steps, rounds=rounds)),
        ("EAD", lambda: torch.cat([ead.run(model, x.contiguous(), goal)])),
    ):
        start = time.perf_counter()
        moved = run()
        seconds = time.perf_counter() - start
        fooled = logits_of(network, moved).argmax(1) == targets
        sizes = robustness.noise_norms((moved - x)[fooled])
        medians = ", ".join(f"{key} {values.median():.3f}" for key, values in sizes.items())
        print(
            f"{name}: {int(fooled.sum())} of {len(x)} fooled, medians {medians}, mean L1"
            f" {sizes['L1'].mean():.3f}, {rounds} x {steps} gradients, {seconds:.0f} s",
            flush=True,
        )


def ensemble(args, network, test, right):
    import torch
    import torchattacks

    from common.attacks import robustness
    from common.attacks.ensemble import MEMBERS, Budget
    from common.attacks.ensemble import ensemble as our_ensemble
    from common.attacks.minimal_noise import minimal_noise

    classes = network.head.out_features
    next_class = robustness.next_class(test.labels, classes)
    at = robustness.sample(network, test, next_class, args.images, 0)
    x, y = test.images[at], test.labels[at]
    budget = Budget(args.ensemble_steps, args.queries)
    settings = {"steps": args.ensemble_steps, "seed": 0}
    peers = {
        "APGD-CE": partial(torchattacks.APGD, loss="ce", **settings),
        "APGD-DLR": partial(torchattacks.APGD, loss="dlr", **settings),
        "APGD-T": partial(torchattacks.APGDT, n_classes=classes, **settings),
        "FAB-T": partial(torchattacks.FAB, n_classes=classes, multi_targeted=True, **settings),
        "Square": partial(torchattacks.Square, n_queries=args.queries, seed=0),
    }
    start = time.perf_counter()
    smallest, _ = minimal_noise(network, x, y)
    print(f"minimal noise: {time.perf_counter() - start:.1f} s, for every epsilon", flush=True)
    for epsilon in EPSILONS[2:5]:
        print(f"at {255 * epsilon:g}/255, {len(x)} images: accuracy that is left, seconds")

        def show(name, standing, start):
            seconds = time.perf_counter() - start
            print(f"  {name}: {standing.float().mean():.3f}, {seconds:.1f} s", flush=True)

        for member in MEMBERS:
            start = time.perf_counter()
            moved = member.run(
                network, x, y, epsilon=epsilon, norm="linf", budget=budget,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            show(f"ours, {member.name}", standing_under(network, moved, y), start)
        start = time.perf_counter()
        *_, (_, moved) = our_ensemble(network, x, y, smallest, epsilon=epsilon, budget=budget)
        show(
            "ours, ensemble, after the minimal noise", standing_under(network, moved, y), start
        )
        worst = torch.ones_like(y, dtype=torch.bool)
        all_start = time.perf_counter()
        for name, peer in peers.items():
            start = time.perf_counter()
            try:
                moved = peer(network, eps=epsilon)(x, y)
            except IndexError as error:
                print(f"  torchattacks, {name}: refuses {classes} classes ({error})")
                continue
            standing = standing_under(network, moved, y)
            worst &= standing
            show(f"torchattacks, {name}", standing, start)
        show("torchattacks, all", worst, all_start)


def standing_under(network, images, labels):
    from common.attacks.gradients import logits_of

    return logits_of(network, images).argmax(1) == labels


COMPARISONS = {"fgsm": fgsm, "pgd": pgd, "noise": noise, "ensemble": ensemble}

if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT",
        default=[ROOT / "models" / "best.pt"], help="(default: models/best.pt)")
    add("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS),
        help="which comparisons (default: all)")
    add("--steps", type=options.POSITIVE, default=20, metavar="N",
        help="of PGD (default: %(default)s)")
    add("--images", type=options.POSITIVE, default=200, metavar="N",
        help="to optimise noise for, and for the ensemble (default: %(default)s)")
    add("--ensemble-steps", type=options.POSITIVE, default=100, metavar="N",
        help="of each APGD and of FAB (default: %(default)s)")
    add("--queries", type=options.POSITIVE, default=1000, metavar="N",
        help="of Square (default: %(default)s)")
    add("--noise-steps", type=options.POSITIVE, default=300, metavar="N",
        help="of each of six bisections (default: %(default)s)")
    options.run(main, parser)
