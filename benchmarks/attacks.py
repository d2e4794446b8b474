"""The attacks beside the reports' way and beside torchattacks and foolbox, where installed.

    python benchmarks/attacks.py [CHECKPOINT ...] [--only fgsm pgd noise]

fgsm: seconds an image over seven epsilons, batched with one gradient, and as the reports do,
one image at a time with a backward pass for each epsilon; in turns. The largest difference
from torchattacks. pgd: accuracy left by ours and by torchattacks at the same settings. noise:
the median L1 norm of noise that fools, ours and foolbox's EAD, same images and targets, as
many gradients (EAD evaluates the network a second time after each). Peers: pip install
--no-deps torchattacks foolbox eagerpy GitPython gitdb smmap. Prints, and saves nothing.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import options

EPSILONS = [e / 255 for e in (0, 1, 2, 4, 8, 16, 32)]
REPEATS = 3


def main(args):
    import torch

    from common import models, robustness

    device = options.device(args)
    split = options.split(args)
    test = robustness.to_attack(split.test, device)
    print(f"Images: {split.source}; {torch.get_num_threads()} thread(s) on {device}")
    for path in args.checkpoints:
        network = models.load_checkpoint(path, device).network
        network.to(memory_format=torch.channels_last)
        right = robustness.correct(network, *test)
        print(f"\n== {options.shown(path)}: {int(right.sum())} of {len(right)} right ==")
        for name in args.only:
            {"fgsm": fgsm, "pgd": pgd, "noise": noise}[name](args, network, test, right)


def reports_fgsm(network, x, labels):
    """The reports' loop, with torch.nn's own layers: the share of x right at each epsilon."""
    import torch
    import torch.nn.functional as F

    from benchmarks import reference
    from common import models

    plain = reference.plain(network).eval()
    scale = (
        models.to_unit_range if isinstance(network, models.SimpleCNN) else torch.nn.Identity()
    )
    found = []
    for epsilon in EPSILONS:
        correct = 0
        for i in range(len(x)):
            image, label = x[i : i + 1].clone().requires_grad_(), labels[i : i + 1]
            loss = F.nll_loss(F.log_softmax(plain(scale(image)), 1), label)
            plain.zero_grad()
            loss.backward()
            moved = torch.clamp(image + epsilon * image.grad.sign(), 0, 1)
            correct += (plain(scale(moved)).argmax(1) == label).item()
        found.append(correct / len(x))
    return found


def fgsm(args, network, test, right):
    from common import attacks

    x, y = test.images[right], test.labels[right]
    few = 20

    def ours():
        """The share of x right at each epsilon; x itself is right, or it would not be here."""
        moved = attacks.fgsm_sweep(network, x, y, epsilons=EPSILONS)
        return [
            1.0 if m is x else (attacks.logits_of(network, m).argmax(1) == y).float().mean()
            for m in moved
        ]

    reports_fgsm(network, x[:1], y[:1])  # for the first step's set-up
    ratios = []
    for _ in range(REPEATS):
        seconds = []
        for run, n in ((ours, len(x)), (lambda: reports_fgsm(network, x[:few], y[:few]), few)):
            start = time.perf_counter()
            run()
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
        apart = (attacks.fgsm(network, x, y, epsilon=epsilon) - theirs).abs()
        print(
            f"FGSM at {255 * epsilon:g}/255: at most {apart.max():.2g} from torchattacks,"
            f" {int((apart > 1e-6).sum())} of {apart.numel()} values by more than 1e-6"
        )


def pgd(args, network, test, right):
    import torch
    import torchattacks

    from common import attacks

    x, y, n = test.images[right], test.labels[right], len(right)
    for epsilon in EPSILONS[1:5]:
        torch.manual_seed(0)
        start = time.perf_counter()
        theirs = torchattacks.PGD(network, eps=epsilon, alpha=epsilon / 4, steps=args.steps)(
            x, y
        )
        between = time.perf_counter()
        ours = attacks.pgd(
            network, x, y, epsilon=epsilon, steps=args.steps, step_size=epsilon / 4
        )
        end = time.perf_counter()
        left = [
            (attacks.logits_of(network, m).argmax(1) == y).sum() / n for m in (ours, theirs)
        ]
        print(
            f"PGD at {255 * epsilon:g}/255, {args.steps} steps: accuracy {left[0]:.3f} in"
            f" {end - between:.1f} s, torchattacks {left[1]:.3f} in {between - start:.1f} s",
            flush=True,
        )


def noise(args, network, test, right):
    import foolbox
    import torch

    from common import attacks, robustness
    from common.noise import minimise

    following = robustness.following(test.labels, range(int(test.labels.max()) + 1))
    at = robustness.sample(network, test, following, args.images, 0)
    x, y, targets = test.images[at], test.labels[at], following[at]
    rounds, steps = robustness.ROUNDS, args.noise_steps
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
        fooled = attacks.logits_of(network, moved).argmax(1) == targets
        sizes = robustness.noise_norms((moved - x)[fooled])
        medians = ", ".join(f"{key} {values.median():.3f}" for key, values in sizes.items())
        print(
            f"{name}: {int(fooled.sum())} of {len(x)} fooled, medians {medians}, mean L1"
            f" {sizes['L1'].mean():.3f}, {rounds} x {steps} gradients, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    parser = options.parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT",
        default=[options.ROOT / "models" / "best.pt"], help="(default: models/best.pt)")
    add("--only", nargs="+", choices=("fgsm", "pgd", "noise"), default=["fgsm", "pgd", "noise"],
        help="which comparisons (default: all)")
    add("--steps", type=options.positive, default=20, metavar="N",
        help="of PGD (default: %(default)s)")
    add("--images", type=options.positive, default=200, metavar="N",
        help="to optimise noise for (default: %(default)s)")
    add("--noise-steps", type=options.positive, default=300, metavar="N",
        help="of each of six bisections (default: %(default)s)")
    options.run(main, parser)
