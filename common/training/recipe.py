"""A recipe: how a network is trained, as data. Every field is a command-line option."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from common.errors import InputError
from common.networks import (
    ARCHITECTURES,
    TORCHVISION,
    argument_names,
    is_function,
    is_torchvision,
    new_arguments,
)


def option(default: Any, help_text: str, *choices: str, **limits: Any) -> Any:
    """Return a Recipe field with what the command line needs to know of it.

    limits: `least`, `above`, `most` or `below` for a number, as `options.number` takes them;
    `metavar` for a text.
    """
    return field(default=default, metadata={"help": help_text, "choices": choices, **limits})


# The upper limits are far beyond any use, and keep a typing error from filling the memory or
# from leaving the range of float32, which ends at 3.4e38: in a step the learning rate is
# multiplied by the weight decay, and the norms of class weights are raised to the power tau.
MOST_EPOCHS = 100_000


# Fields that do nothing alone: what other fields must be, one of them at least. No values: any
# number above 0.
NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "momentum": {"optimizer": ("sgd",)},
    "step_epochs": {"schedule": ("step",)},
    "step_factor": {"schedule": ("step",)},
    "warm_up": {"schedule": ("one-cycle",)},
    "sam_from": {"sam": ()},
    "neighbours": {"resample": ("smote", "borderline-smote", "adasyn")},
    "mix_share": {"mix": ("mixup", "cutmix")},
    "mix_alpha": {"mix": ("mixup", "cutmix")},
    "adversarial_steps": {"adversarial": ()},
    "focal_gamma": {"loss": ("focal",)},
    "margin": {"loss": ("ldam",)},
    "tau": {
        "loss": ("logit-adjusted", "vs"),
        "post_hoc": ("logit-adjustment", "tau-normalisation"),
    },
    "vs_gamma": {"loss": ("vs",)},
    "smoothing_head": {
        "loss": ("label-aware-smoothing",), "crt_loss": ("label-aware-smoothing",)
    },
    "smoothing_tail": {
        "loss": ("label-aware-smoothing",), "crt_loss": ("label-aware-smoothing",)
    },
    "beta": {"class_weights": ("effective-number",)},
    "reweight_from": {"class_weights": ("inverse", "effective-number")},
    "crt_epochs": {"post_hoc": ("crt",)},
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One way to train. The defaults are the reports' own.

    Raises InputError for values that contradict each other.
    """

    # The network
    network: str = option(
        "simple-cnn",
        "simple-cnn, resnet9, torchvision:NAME, or MODULE:FUNCTION, a function of your own"
        " that takes the number of classes",
        metavar="NAME",
    )
    pretrained: bool = option(
        False, "start from the published weights of a torchvision:NAME, but for the last layer"
    )
    weights: str | None = option(
        None,
        "the same from a file of weights, of a torchvision:NAME or a MODULE:FUNCTION",
        metavar="FILE",
    )
    frozen: bool = option(
        False, "train the last layer alone, on features that are computed once"
    )
    width: int | None = option(
        None, "channels of resnet9's first layer; None is 16", least=1, most=256
    )
    classifier: str = option(
        "linear", "last layer; cosine: normalised, with scale 30", "linear", "cosine"
    )
    flip_average: bool = option(
        False, "in evaluation, average the logits of an image and its mirror image"
    )

    # The optimiser
    epochs: int = option(10, "passes over the examples", least=1, most=MOST_EPOCHS)
    batch_size: int = option(4, "examples per step", least=1, most=65_536)
    optimizer: str = option("sgd", "optimiser of torch.optim", "sgd", "adamw")
    learning_rate: float = option(
        0.001, "learning rate; with a schedule the highest", above=0, most=1e30
    )
    momentum: float = option(0.9, "momentum of sgd", least=0, below=1)
    nesterov: bool = option(False, "Nesterov momentum in sgd")
    weight_decay: float = option(
        0.0, "L2 penalty in sgd, decoupled in adamw", least=0, most=1e6
    )
    schedule: str = option(
        "constant", "schedule of the learning rate", "constant", "step", "cosine", "one-cycle"
    )
    step_epochs: int = option(
        10, "epochs between two steps of schedule step", least=1, most=MOST_EPOCHS
    )
    step_factor: float = option(
        0.1, "factor of the rate at each of these steps", above=0, most=1
    )
    warm_up: float = option(0.3, "share of one-cycle with a rising rate", least=0, most=1)
    ema: float = option(
        0.0, "decay of an exponential moving average of the weights; 0: none", least=0, below=1
    )
    sam: float = option(
        0.0, "radius rho of SAM, sharpness-aware minimisation; 0: none", least=0, most=100
    )
    sam_from: float = option(0.0, "share of the epochs before SAM applies", least=0, below=1)
    sam_class_weighted: bool = option(
        False, "weight the loss of SAM's first pass with the inverse class counts"
    )
    max_norm: float = option(
        0.0, "largest norm of a class's weights in the last layer; 0: any", least=0, most=1e6
    )
    patience: int = option(
        0,
        "stop after N epochs without a better validation G-mean; 0: never",
        least=0,
        most=MOST_EPOCHS,
    )
    precision: str = option(
        "float32", "precision of forward passes; auto: bfloat16 if that is faster",
        "auto", "float32", "bfloat16",
    )  # fmt: skip

    # The examples of an epoch
    copies: int = option(
        0, "transformed copies of each image, made before training", least=0, most=100
    )
    resample: str = option(
        "none", "resample the training set with imbalanced-learn",
        "none", "smote", "borderline-smote", "adasyn", "random-over", "random-under",
    )  # fmt: skip
    neighbours: int = option(
        5, "nearest neighbours in smote, borderline-smote and adasyn", least=1, most=10**6
    )
    train_on_test: bool = option(
        False, "train on the test images too; no held-out test is left"
    )
    sampler: str = option(
        "shuffle", "how an epoch draws its examples",
        "shuffle", "balanced", "square-root", "progressive", "rotation", "weighted",
    )  # fmt: skip
    sampler_weights: tuple[float, ...] | None = option(
        None,
        "class weights of sampler weighted, in label order",
        least=1e-6,
        most=1e6,
        nargs="+",
    )
    augment: tuple[str, ...] = option(
        (), "change each image at each step",
        "flip", "crop", "trivial-augment", "cutout", "colour", nargs="*",
    )  # fmt: skip
    mix: str = option("none", "mix pairs of images and labels", "none", "mixup", "cutmix")
    mix_share: float = option(0.5, "share of the steps that mix", least=0, most=1)
    mix_alpha: float = option(
        1.0, "both parameters of the beta distribution", least=1e-3, most=1e3
    )
    adversarial: float = option(
        0.0,
        "train, and validate each epoch, on PGD images within N/255 of each image; 0: do not",
        least=0,
        most=255,
    )
    adversarial_steps: int = option(3, "PGD steps in adversarial training", least=1, most=1000)
    trades: float = option(
        0.0,
        "weight beta of TRADES, which trains on the images and on PGD's; 0: on PGD's alone",
        least=0,
        most=1000,
    )

    # The loss
    loss: str = option(
        "cross-entropy", "loss function",
        "cross-entropy", "focal", "ldam", "balanced-softmax", "logit-adjusted", "vs",
        "label-aware-smoothing",
    )  # fmt: skip
    focal_gamma: float = option(2.0, "focusing parameter of focal", least=0, most=100)
    margin: float = option(0.5, "largest margin of ldam, a cosine", above=0, most=2)
    tau: float = option(
        1.0, "strength of logit-adjusted, of vs and of post-hoc", least=0, most=10
    )
    vs_gamma: float = option(
        0.15, "power of the class counts that scale the logits in vs", least=0, most=10
    )
    label_smoothing: float = option(
        0.0, "share of each label that is spread over all classes", least=0, below=1
    )
    smoothing_head: float = option(
        0.3, "that share in label-aware-smoothing, for the largest class", least=0, below=1
    )
    smoothing_tail: float = option(
        0.0, "that share in label-aware-smoothing, for the smallest class", least=0, below=1
    )
    class_weights: str = option(
        "none", "class weights of the loss", "none", "inverse", "effective-number"
    )
    beta: float = option(0.9999, "beta of effective-number", least=0, below=1)
    reweight_from: float = option(
        0.0, "share of the epochs before class weights apply (deferred re-weighting)",
        least=0, below=1,
    )  # fmt: skip

    # After training
    post_hoc: str = option(
        "none", "change the trained classifier",
        "none", "logit-adjustment", "tau-normalisation", "crt",
    )  # fmt: skip
    crt_epochs: int = option(
        5,
        "epochs of crt, which retrains the classifier on balanced draws",
        least=1,
        most=MOST_EPOCHS,
    )
    crt_loss: str = option(
        "cross-entropy", "loss function of crt", "cross-entropy", "label-aware-smoothing"
    )

    def __post_init__(self) -> None:
        with_width = [name for name, a in ARCHITECTURES.items() if "width" in a.options]
        contradictions = self._contradictions_of_network() | {
            f"--width {self.width}: only --network {' or '.join(with_width)} has a width": (
                self.width is not None and self.network not in with_width
            ),
            "--loss ldam: its margins need normalised logits; add --classifier cosine": (
                self.loss == "ldam" and self.classifier != "cosine"
            ),
            "--nesterov: only --optimizer sgd has it": (
                self.optimizer == "adamw" and self.nesterov
            ),
            "--nesterov: it needs a --momentum above 0": self.nesterov and not self.momentum,
            f"--label-smoothing: --loss {self.loss} can't use it; leave it out": (
                self.loss in ("focal", "label-aware-smoothing") and self.label_smoothing > 0
            ),
            "--sam-class-weighted: it needs a --sam above 0": (
                self.sam_class_weighted and not self.sam
            ),
            "--sam-class-weighted: does nothing to --class-weights inverse, which weights both"
            " passes; leave one of the two out": (
                self.sam_class_weighted
                and self.class_weights == "inverse"
                and self.reweight_from <= self.sam_from
            ),
            "--max-norm: does nothing to --classifier cosine, whose weights have no length;"
            " leave one of the two out": self.max_norm > 0 and self.classifier == "cosine",
            "--sampler weighted and --sampler-weights go together; give both or neither": (
                (self.sampler == "weighted") != (self.sampler_weights is not None)
            ),
            f"--loss {self.loss} --post-hoc logit-adjustment: corrects the logits twice; leave"
            " one of the two out": (
                self.loss in ("balanced-softmax", "logit-adjusted", "vs")
                and self.post_hoc == "logit-adjustment"
            ),
            "--post-hoc tau-normalisation: does nothing to --classifier cosine, whose weights"
            " have no length; leave one of the two out": (
                self.post_hoc == "tau-normalisation" and self.classifier == "cosine"
            ),
            f"--crt-loss {self.crt_loss}: only --post-hoc crt has it": (
                self.crt_loss != "cross-entropy" and self.post_hoc != "crt"
            ),
            f"--adversarial: mixed images have two labels; leave --mix {self.mix} out": (
                self.adversarial > 0 and self.mix != "none"
            ),
            "--trades: it needs an --adversarial above 0": (
                self.trades > 0 and not self.adversarial
            ),
        }
        for message, contradicted in contradictions.items():
            if contradicted:
                raise InputError(message)

    def _contradictions_of_network(self) -> dict[str, bool]:
        """Return messages about the network and what it starts from, and whether they hold."""
        network = self.network
        built_in, published = network in ARCHITECTURES, is_torchvision(network)
        starts_trained = self.pretrained or self.weights is not None or is_function(network)
        transforms = [name for name in self.augment if name != "flip"]
        once = "--frozen: features are computed once"
        return {
            f"--network {network:.80}: there is none of that name; give"
            f" {', '.join(ARCHITECTURES)}, {TORCHVISION}NAME or MODULE:FUNCTION": not (
                built_in or published or is_function(network)
            ),
            f"--pretrained: {network} has no published weights; give --no-pretrained, or"
            f" take --network {TORCHVISION}NAME": self.pretrained and not published,
            f"--weights: {network} takes no weights from a file; leave it out, or take"
            f" --network {TORCHVISION}NAME or MODULE:FUNCTION": self.weights is not None
            and built_in,
            "--weights: the value is empty; give a file, or leave the option out": (
                self.weights == ""
            ),
            "--pretrained --weights: --weights FILE alone starts from pretrained weights, from"
            " a file; give --no-pretrained": self.pretrained and self.weights is not None,
            f"--frozen: the features of {network} are those of random weights; take --network"
            f" {TORCHVISION}NAME with --pretrained, or with --weights FILE": (
                self.frozen and not starts_trained
            ),
            f"{once}, so that images can't change at each step; leave --augment"
            f" {' '.join(transforms)} out, or take --copies": (
                self.frozen and bool(transforms)
            ),
            f"{once}, from whole images; take --mix mixup, which mixes features": (
                self.frozen and self.mix == "cutmix"
            ),
            f"{once}, from images without noise; leave --adversarial out": (
                self.frozen and self.adversarial > 0
            ),
        }

    def needs(self, name: str) -> str:
        """Return the options without which the field `name` has no effect; "" if it has one.

        >>> Recipe().needs("tau")
        '--loss logit-adjusted or vs, or --post-hoc logit-adjustment or tau-normalisation'
        >>> Recipe(loss="vs").needs("tau")
        ''
        """
        options = []
        for other, values in NEEDS.get(name, {}).items():
            value = getattr(self, other)
            if value in values or (not values and value):
                return ""
            wanted = " or ".join(values) or "above 0"
            options.append(f"--{option_name(other)} {wanted}")
        return ", or ".join(options)

    def training(self) -> Recipe:
        """Return the recipe of the training alone, without what follows it.

        Recipes that agree in it train the same network.

        >>> Recipe(post_hoc="tau-normalisation", tau=2.0).training() == Recipe()
        True
        >>> Recipe(loss="vs", tau=2.0).training().tau
        2.0
        """
        training = replace(self, post_hoc="none", crt_loss="cross-entropy")
        idle = {name: FIELDS[name].default for name in NEEDS if training.needs(name)}
        return replace(training, **idle)

    def network_arguments(self, classes: int, image_size: int = 32) -> dict[str, Any]:
        """Return the arguments that `networks.build` builds the network with.

        image_size: the side of the images. It is an argument only of networks that depend on
        it, and only if it is not 32, so that files of earlier versions stay as they are.
        """
        arguments: dict[str, Any] = {
            "classes": classes,
            "classifier": self.classifier,
            "flip_average": self.flip_average,
            **new_arguments(self.network),
        }
        if self.width is not None:
            arguments["width"] = self.width
        if "image_size" in argument_names(self.network) and image_size != 32:
            arguments["image_size"] = image_size
        return arguments

    def head_option(self) -> str | None:
        """Return the option that needs to know the network's last layer, None if none does."""
        options = {
            "--frozen": self.frozen,
            f"--classifier {self.classifier}": self.classifier != "linear",
            "--max-norm": self.max_norm > 0,
            f"--post-hoc {self.post_hoc}": self.post_hoc != "none",
        }
        return next((name for name, given in options.items() if given), None)

    def changes(self, base: Recipe | None = None) -> dict[str, Any]:
        """Return the fields, in their order, whose values differ from those of `base`.

        base: by default, the recipe of the default values.
        """
        values, base_values = asdict(self), asdict(base or Recipe())
        return {name: v for name, v in values.items() if v != base_values[name]}


def option_name(field_name: str) -> str:
    """Return the command line's spelling of a field's name.

    >>> option_name("learning_rate")
    'learning-rate'
    """
    return field_name.replace("_", "-")


FIELDS = {each.name: each for each in fields(Recipe)}
