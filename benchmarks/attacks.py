"""The attacks beside those of torchattacks and foolbox: how strong they are, and how fast.

    python benchmarks/attacks.py [CHECKPOINT ...] [--only pgd ensemble noise auto-attack]

Every attack gets the same images, which the network classifies correctly, and the same
budget. pgd: ten steps from one random start. ensemble: each of its attacks alone, and all of
them. noise: noise with a small L1 norm, which foolbox looks for with its elastic-net attack and
as many gradients. auto-attack, which must be asked for: the whole ensemble beside AutoAttack's
own code; in both, an attack gets the images that withstood those before it. Prints tables, and
saves figures/attack_peers.json. Needs the libraries of requirements-dev.txt, and for
auto-attack that of its authors.
"""

import importlib.util
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import options
from common.errors import InputError
from common.files import ROOT

PGD_EPSILONS = 1, 2, 4, 8  # in 1/255
ENSEMBLE_EPSILONS = 2, 4, 8
PGD_STEPS = 10
PGD_TIMES = 3  # it takes a few seconds: other work on the machine would change one measurement
NOISE_STEPS = 300  # of each round
# Gradients of each attack of the ensemble, and network evaluations of Square.
STEPS, QUERIES = 100, 1000
DRY_STEPS = 3  # for all of these, in a dry run
REQUIREMENTS = "-r requirements-dev.txt"
AUTOATTACK = "git+https://github.com/fra31/auto-attack"  # which no package index has


def main(args):
    import torch

    from common.attacks.robustness import to_attack
    from common.files import save_result
    from common.networks.checkpoint import load_checkpoints, require_match

    needed = dict.fromkeys(("torchattacks", "foolbox"), REQUIREMENTS)
    if "auto-attack" in args.only:
        needed["autoattack"] = AUTOATTACK
    for library, where in needed.items():
        if not importlib.util.find_spec(library):
            raise InputError(f"{library} is missing; pip install {where}")
    folder = options.output_dir(args)
    device = options.torch_device(args)
    checkpoints = load_checkpoints(args.checkpoints, device)
    split = options.load_split(args)
    require_match(args.checkpoints, checkpoints, split.classes, split.image_size)
    test = to_attack(split.test, device)
    start = time.perf_counter()
    networks = {}
    for name, checkpoint in checkpoints.items():
        network = checkpoint.network.to(memory_format=torch.channels_last)
        x, y, targets = images_to_attack(network, test, args.images, args.seed)
        warm_up(network, x, y)
        tables = networks[name] = {}
        for comparison in args.only:
            print(f"\n{name}: {comparison}, {len(x)} images", flush=True)
            tables[comparison] = []
            for row in COMPARISONS[comparison](network, x, y, targets, args.dry_run):
                tables[comparison].append(row)
                print(text_of(row), flush=True)
    saved = save_result(
        folder / "figures" / "attack_peers.json",
        data=split.record(), seed=args.seed, device=str(device),
        seconds=time.perf_counter() - start, threads=torch.get_num_threads(), images=len(x),
        networks=networks,
    )  # fmt: skip
    options.print_saved(saved)


def images_to_attack(network, test, n, seed):
    """Return images (n, 3, S, S) that the network classifies correctly, labels and targets.

    There are as many of each class, if the smallest has enough.
    """
    from common.attacks.robustness import next_class, sample

    targets = next_class(test.labels, network.head.out_features)
    at = sample(network, test, targets, n, seed)
    return test.images[at], test.labels[at], targets[at]


def warm_up(network, x, y):
    """Compute gradients as ours and theirs do: the first ones of a batch size take longer."""
    import torch

    from common.attacks.gradients import gradient

    gradient(network, x, y)
    whole = x.clone().requires_grad_()
    torch.autograd.grad(network(whole).sum(), whole)


def text_of(row):
    """Return a row of a comparison as a title, and under it a table with a line each."""
    from common.reporting.tables import text_table

    columns = {name: values for name, values in row.items() if isinstance(values, dict)}
    title = " at ".join(value for value in row.values() if isinstance(value, str))
    lines = [
        [whose, *(f"{values[whose]:.3f}" for values in columns.values())]
        for whose in columns["seconds"]
    ]
    return text_table([title, *columns], lines)


def timed(run):
    """Return what run() returns, and the seconds that it took."""
    start = time.perf_counter()
    found = run()
    return found, time.perf_counter() - start


def compare(attack, epsilon, network, labels, attacks, times=1):
    """Return a row with the accuracy that each attack leaves and its seconds, and all images.

    attacks: functions that return adversarial images, by whose they are. times: how often they
    run in turns; the seconds are the fewest of each, the images those of the last.
    """
    found, left, seconds = {}, {}, {}
    for _ in range(times):
        for whose, run in attacks.items():
            found[whose], taken = timed(run)
            seconds[whose] = min(taken, seconds.get(whose, taken))
            left[whose] = standing(network, found[whose], labels).float().mean().item()
    row = {"attack": attack, "epsilon": f"{epsilon}/255", "left": left, "seconds": seconds}
    return row, found


def standing(network, images, labels):
    """Return which of the images (N, 3, S, S) are classified as their label."""
    from common.attacks.gradients import logits_of

    return logits_of(network, images).argmax(1) == labels


def pgd(network, x, y, targets, dry_run):
    """Yield a row for PGD at each epsilon."""
    import torch
    import torchattacks

    from common.attacks.pgd import pgd as our_pgd

    steps = DRY_STEPS if dry_run else PGD_STEPS
    for epsilon in PGD_EPSILONS:
        size = epsilon / 255
        torch.manual_seed(0)
        theirs = torchattacks.PGD(network, eps=size, alpha=size / 4, steps=steps)
        attacks = {
            "ours": partial(
                our_pgd, network, x, y, epsilon=size, steps=steps, step_size=size / 4
            ),
            "torchattacks": partial(theirs, x, y),
            "foolbox": foolbox_pgd(network, x, y, size, steps),
        }
        yield compare("PGD", epsilon, network, y, attacks, times=PGD_TIMES)[0]


def foolbox_pgd(network, x, y, epsilon, steps):
    """Return foolbox's PGD, a function that returns images."""
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=epsilon / 4)
    return lambda: attack(model, x.contiguous(), y, epsilons=epsilon)[1]


def ensemble(network, x, y, targets, dry_run):
    """Yield a row for each attack of the ensemble, and one for all, at each epsilon."""
    import torch

    from common.attacks.ensemble import MINIMAL_NOISE, members
    from common.attacks.minimal_noise import minimal_noise

    classes = network.head.out_features
    budget = ensemble_budget(dry_run)
    peers = peers_of_the_ensemble(network, classes, budget)
    plain = x.contiguous()  # FAB takes no other layout, and the network makes its own anyway
    for epsilon in ENSEMBLE_EPSILONS:
        size = epsilon / 255

        def smallest(size=size):
            return within(x, *minimal_noise(network, x, y), size)

        ours = {MINIMAL_NOISE: smallest} | {
            member.name: partial(
                member.run, network, x, y, epsilon=size, norm="linf", budget=budget,
                generator=torch.Generator().manual_seed(0),
            )
            for member in members(classes)
        }  # fmt: skip
        withstand = torch.ones_like(y, dtype=torch.bool)
        seconds = 0
        for name, run in ours.items():
            attacks = {"ours": run}
            if name in peers:
                attacks["torchattacks"] = partial(peers[name](eps=size), plain, y)
            row, found = compare(name, epsilon, network, y, attacks)
            yield row
            if name in peers:
                withstand &= standing(network, found["torchattacks"], y)
                seconds += row["seconds"]["torchattacks"]
        whole = {"ours": partial(whole_ensemble, network, x, y, size, budget)}
        row, _ = compare("all", epsilon, network, y, whole)
        row["left"]["torchattacks"] = withstand.float().mean().item()
        row["seconds"]["torchattacks"] = seconds
        yield row


def ensemble_budget(dry_run):
    """Return what each attack of the ensemble may compute."""
    from common.attacks.ensemble import Budget

    return Budget(DRY_STEPS, DRY_STEPS) if dry_run else Budget(STEPS, QUERIES)


def whole_ensemble(network, x, y, epsilon, budget):
    """Return the images that our ensemble makes of x, the smallest noise included."""
    from common.attacks.ensemble import ensemble
    from common.attacks.minimal_noise import minimal_noise

    images, _ = minimal_noise(network, x, y)
    *_, (_, images) = ensemble(network, x, y, images, epsilon=epsilon, budget=budget)
    return images


def peers_of_the_ensemble(network, classes, budget):
    """Return torchattacks' counterparts, functions of eps, by the names of our attacks.

    Its targeted loss needs four classes.
    """
    import torchattacks

    from common.attacks.ensemble import MINIMAL_NOISE, WITHOUT_GRADIENTS

    settings = {"steps": budget.steps, "seed": 0}
    peers = {
        MINIMAL_NOISE: partial(
            torchattacks.FAB, network, n_classes=classes, multi_targeted=True, **settings
        ),
        "APGD, cross-entropy": partial(torchattacks.APGD, network, loss="ce", **settings),
        "APGD, margin": partial(torchattacks.APGD, network, loss="dlr", **settings),
        WITHOUT_GRADIENTS: partial(
            torchattacks.Square, network, n_queries=budget.queries, seed=0
        ),
    }
    if classes > 3:
        peers["APGD, each target"] = partial(
            torchattacks.APGDT, network, n_classes=classes, **settings
        )
    return peers


def auto_attack(network, x, y, targets, dry_run):
    """Yield a row for the whole ensemble beside AutoAttack's own code, at each epsilon.

    With four classes or more AutoAttack takes the attacks of its standard version; with three
    the targeted APGD, whose loss needs four, gives way to the untargeted one.
    """
    from autoattack import AutoAttack

    from common.attacks.ensemble import MOST_TARGETS

    classes = network.head.out_features
    targets_of_each = min(classes - 1, MOST_TARGETS)
    budget = ensemble_budget(dry_run)
    second = "apgd-t" if classes > 3 else "apgd-dlr"
    plain = x.contiguous()  # as for torchattacks
    for epsilon in ENSEMBLE_EPSILONS:
        size = epsilon / 255
        theirs = AutoAttack(
            network, eps=size, seed=0, version="custom", device=x.device, verbose=False,
            attacks_to_run=["apgd-ce", second, "fab-t", "square"],
        )  # fmt: skip
        for attack in (theirs.apgd, theirs.apgd_targeted, theirs.fab):
            attack.n_iter, attack.n_restarts = budget.steps, 1
        theirs.apgd_targeted.n_target_classes = targets_of_each
        theirs.fab.n_target_classes = targets_of_each
        theirs.square.n_queries = budget.queries
        attacks = {
            "ours": partial(whole_ensemble, network, x, y, size, budget),
            "auto-attack": partial(theirs.run_standard_evaluation, plain, y, bs=len(x)),
        }
        yield compare("all", epsilon, network, y, attacks)[0]


def within(x, images, radii, epsilon):
    """Return the images where their noise is within epsilon, and x elsewhere."""
    from common.attacks.ensemble import ROUNDING

    return images.where((radii <= epsilon + ROUNDING)[:, None, None, None], x)


def noise(network, x, y, targets, dry_run):
    """Yield one row, of the noise that makes each image its target's."""
    from common.attacks.noise_robustness import ROUNDS
    from common.attacks.optimised_noise import minimise
    from common.attacks.robustness import noise_norms

    settings = {"steps": DRY_STEPS if dry_run else NOISE_STEPS, "rounds": ROUNDS}
    attacks = {
        "ours": partial(minimise, network, x, y, targets=targets, **settings),
        "foolbox": foolbox_noise(network, x, targets, **settings),
    }
    row = {"attack": "noise of a small L1 norm", "fooled": {}, "median L1": {}, "seconds": {}}
    for whose, run in attacks.items():
        images, row["seconds"][whose] = timed(run)
        fooled = standing(network, images, targets)
        norms = noise_norms((images - x)[fooled])["L1"]
        row["fooled"][whose] = fooled.float().mean().item()
        row["median L1"][whose] = norms.median().item() if len(norms) else 0.0
    yield row


def foolbox_noise(network, x, targets, steps, rounds):
    """Return foolbox's EAD, a function that returns images."""
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.EADAttack(
        binary_search_steps=rounds, steps=steps, decision_rule="L1", abort_early=False
    )
    goal = foolbox.criteria.TargetedMisclassification(targets)
    return lambda: attack.run(model, x.contiguous(), goal)


COMPARISONS = {
    "pgd": pgd,
    "ensemble": ensemble,
    "noise": noise,
    "auto-attack": auto_attack,
}

if __name__ == "__main__":
    parser = options.make_parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT",
        default=[ROOT / "models" / "best.pt"], help="(default: models/best.pt)")
    add("--only", nargs="+", choices=COMPARISONS, default=["pgd", "ensemble", "noise"],
        help="which comparisons (default: all but auto-attack)")
    add("--images", type=options.POSITIVE, default=200, metavar="N",
        help="images to attack (default: %(default)s)")
    options.run(main, parser, ["figures"])
