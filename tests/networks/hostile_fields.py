"""Contents that are no checkpoint's, each with a part of the line that must refuse it."""

from __future__ import annotations

from typing import Any

import torch

from common.networks.build import build

CLASSES = ["car", "truck", "cat"]
ARGUMENTS = {"classes": 3, "width": 1}
NETWORK = build("resnet9", ARGUMENTS, seed=2)
NAN, INFINITE = float("nan"), float("inf")


def content(**changes: Any) -> dict[str, Any]:
    """Return the content of a checkpoint of a small network, with these fields changed."""
    return {
        "architecture": "resnet9",
        "arguments": ARGUMENTS,
        "weights": NETWORK.state_dict(),
        "classes": CLASSES,
        "recipe": {"network": "resnet9", "width": 1, "augment": ("flip",), "tau": 1.5},
        "seed": 3,
        "data": {"source": "synthetic", "fingerprint": "ab-cd", "train_counts": [3, 2, 1]},
        "trained_on_test": False,
        "versions": {"torch": "2.11.0"},
    } | changes


def with_weight(name: str, weight: Any) -> dict[str, Any]:
    return content(weights=NETWORK.state_dict() | {name: weight})


def with_value(name: str, number: float) -> dict[str, Any]:
    """Return the content with one number of one weight changed."""
    changed = NETWORK.state_dict()[name].clone()
    changed.view(-1)[-1] = number
    return with_weight(name, changed)


def bomb(branches: int, levels: int) -> list[Any]:
    """Return a list of few bytes in a pickle that has branches**levels items when printed."""
    made: list[Any] = [0]
    for _ in range(levels):
        made = [made] * branches
    return made


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def arguments(**changes: Any) -> dict[str, Any]:
    return content(arguments=ARGUMENTS | changes)


def without(name: str, whole: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key != name}


BOOLS = {"None": None, "a number": 1, "text": "no", "a tensor": torch.tensor(0)}
# For each field of the content: the reason, and values that it can't have.
FIELDS = {
    "architecture": (
        "architecture is not one of",
        {"unknown": "resnet50", "None": None, "a number": 3, "a list": ["resnet9"],
         "a module": "os", "empty": "", "a tensor": torch.zeros(2), "no name": "torchvision:",
         "a call": "os:system('touch executed')", "a path": "../os:system",
         "lines": "os:system\n", "long": "os." * 10**5 + "os:system",
         "a path of torchvision": "torchvision:../resnet18"},
    ),
    "image_size": (
        "image_size is not a whole number from 1 to 224",
        {"None": None, "0": 0, "negative": -32, "too large": 225, "a billion": 10**9,
         "a fraction": 32.5, "a float": 32.0, "a bool": True, "text": "32", "a list": [32],
         "a tensor": torch.tensor(32)},
    ),
    "classes": (
        "classes are not two or more",
        {"None": None, "text": "abc", "one": ["car"], "empty": [], "numbers": [0, 1, 2],
         "a dict": {"car": 0, "truck": 1, "cat": 2}, "two equal": ["car", "car", "cat"],
         "an empty name": ["car", "truck", ""], "an escape": ["car", "truck", "\x1b[31mcat"],
         "a line break": ["car", "truck", "cat\n"], "a C1 control": ["car", "truck", "\x9b1m"],
         "a direction mark": ["car", "truck", "\u202etac"], "a surrogate": ["a", "b", "\udc80"],
         "a long name": ["car", "truck", "cat" * 100],
         "a long name that repeats": ["cat" * 60_000] * 50_000,
         "lists": [["car"], ["truck"], ["cat"]], "tensors": [torch.zeros(1)] * 3},
    ),
    "seed": (
        "seed is not a whole number",
        {"a tensor": torch.tensor(3), "text": "3", "a fraction": 1.5, "a bool": True,
         "a list": [3], "NaN": NAN},
    ),
    "trained_on_test": ("trained_on_test is not true or false", BOOLS),
    "recipe": (
        "recipe does not consist",
        {"text": "baseline", "a list": [], "a tensor": {"tau": torch.tensor(1.0)},
         "NaN": {"a": NAN},
         "infinite": {"a": [-INFINITE]}, "a number as name": {3: 1},
         "nested": {"a": nested(50)},
         "deeply nested": {"a": nested(400)}, "an escape": {"a": "\x1b]0;title\x07"},
         "an escape as name": {"\x1b[2J": 0}, "a bomb": {"a": bomb(10, 9)},
         "a wide bomb": {"a": bomb(30_000, 3)}, "long text": {"a": ["x" * 10**5] * 50_000}},
    ),
    "data": (
        "data",
        {"text": "synthetic", "empty": {}, "no source": {"fingerprint": ""},
         "no fingerprint": {"source": "synthetic"}, "a list": ["source", "fingerprint"],
         "a tensor": {"source": "", "fingerprint": "", "counts": torch.ones(3)}},
    ),
    "arguments": (
        "arguments",
        {"None": None, "a list": [3],
         "a number as name": {"classes": 3, 4: 4},
         "an unknown name": ARGUMENTS | {"bias": True},
         "dropout": ARGUMENTS | {"dropout": 2.0}},
    ),
    "weights": (
        "its weights are not tensors by name",
        {"None": None, "a list": list(NETWORK.state_dict().values()),
         "a tensor": torch.zeros(3), "numbers as names": {0: torch.zeros(3)},
         "numbers": {"head.weight": 1.0}},
    ),
}  # fmt: skip
# For each argument of the network: values that it can't have.
ARGUMENT_VALUES = {
    "classes": {"another number": 4, "negative": -3, "a float": 3.0, "text": "3", "None": None,
                "a tensor": torch.tensor(3), "a billion": 10**9},
    "width": {"a fraction": 1.5, "a float": 1.0, "0": 0, "negative": -1, "a bool": True,
              "text": "1", "a list": [1], "None": None},
    "classifier": {"unknown": "tanh", "None": None, "a number": 3, "a tensor": torch.zeros(1)},
    "flip_average": BOOLS,
    "logit_offset": {"too short": [0.0, 1.0], "too long": [0.0] * 4, "a number": 1.0,
                     "text": ["0", "1", "2"], "bools": [True, False, True],
                     "NaN": [0.0, NAN, 0.0],
                     "infinite": [0.0, 0.0, INFINITE], "a dict": {0: 0.0, 1: 0.0, 2: 0.0},
                     "a tensor": torch.zeros(3), "nested": [[0.0], [0.0], [0.0]]},
}  # fmt: skip


def hostile_contents() -> dict[str, tuple[str, Any]]:
    """Return contents by name, with the reason why they are refused."""
    cases: dict[str, tuple[str, Any]] = {
        f"content is {name}": ("not a dict", value)
        for name, value in {
            "None": None, "a number": 3, "text": "architecture", "a list": [1, 2],
            "a tensor": torch.zeros(3), "a tuple": (content(),),
        }.items()
    }  # fmt: skip
    cases |= {
        f"no {name}": (f"{name} is missing", without(name, content()))
        for name in FIELDS
        if name != "image_size"  # which older checkpoints do not have
    }
    for field, (reason, values) in FIELDS.items():
        for name, value in values.items():
            cases[f"{field}, {name}"] = (reason, content(**{field: value}))
    for argument, values in ARGUMENT_VALUES.items():
        for name, value in values.items():
            reason = f"argument {argument} has no possible value"
            cases[f"{argument}, {name}"] = (reason, arguments(**{argument: value}))
    cases["logit_offset, beyond a float"] = (
        "no network can be built",
        arguments(logit_offset=[10**400, 0, 0]),
    )
    cases["logit_offset, beyond float32"] = (
        "is not finite",
        arguments(logit_offset=[1e39, 0.0, 0.0]),
    )
    for width in (2, 700, 2000, 10**6, 3 * 10**7):
        cases[f"width {width}"] = ("another shape or type", arguments(width=width))
    for width in (2**40, 10**30):  # more weights than fit a 64-bit integer
        cases[f"width {width}"] = ("no network can be built", arguments(width=width))
    cases["early_pool, a text"] = (
        "argument early_pool has no possible value",
        arguments(early_pool="yes"),
    )
    cases["image_size of a resnet9"] = (
        "arguments are not those",
        content(arguments=ARGUMENTS | {"image_size": 64}, image_size=64),
    )
    course = build("simple-cnn", {"classes": 3}).state_dict()
    for name, size in (("another", 48), ("none", None), ("a text", "64"), ("a list", [64])):
        cases[f"image_size of a simple-cnn, {name}"] = (
            "argument image_size has no possible value",
            content(
                architecture="simple-cnn",
                arguments={"classes": 3, "image_size": size},
                image_size=64,
                weights=course,
            ),
        )
    cases["image_size not among the arguments"] = (
        "image_size is not that of the arguments",
        content(
            architecture="simple-cnn", arguments={"classes": 3}, image_size=64, weights=course
        ),
    )
    cases["weights of another image_size"] = (
        "fc1.weight has another shape",
        content(
            architecture="simple-cnn",
            arguments={"classes": 3, "image_size": 64},
            image_size=64,
            weights=course,
        ),
    )
    # Code must not run, and the largest networks must not be made, because a file names them.
    for name in ("os:system", "hostile_module:network", "common.files:write_text"):
        cases[f"a function, {name}"] = (
            f"is made by {name}, code that a checkpoint does not hold; if you trust that code,"
            f" give --network {name}",
            content(architecture=name, arguments={"classes": 3}),
        )
    for name, reason in {
        "resnet19": "torchvision has none; try torchvision:resnet18",
        "squeezenet1_0": "does not end in a linear layer",
        "vit_h_14": "normalise.mean is missing",
        "regnet_y_128gf": "normalise.mean is missing",
        "efficientnet_v2_l": "normalise.mean is missing",
    }.items():
        other = {"architecture": f"torchvision:{name}", "arguments": {"classes": 3}}
        cases[f"torchvision's {name}"] = (reason, content(**other))
    cases["width of a simple-cnn"] = (
        "arguments are not those",
        content(architecture="simple-cnn"),
    )
    for name, value in {"empty": {}, "only a width": {"width": 1}}.items():
        reason = "arguments name no number of classes"
        cases[f"arguments, {name}"] = (reason, content(arguments=value))
    a_class_more = content(classes=["a", "b", "c", "d"], arguments={"classes": 4, "width": 1})
    cases["a class more than weights"] = ("head.weight has another shape", a_class_more)
    for name, weight in {
        "transposed": torch.zeros(8, 3), "flat": torch.zeros(24), "one row": torch.zeros(1, 8),
        "integers": torch.zeros(3, 8, dtype=torch.int64), "empty": torch.zeros(0),
    }.items():  # fmt: skip
        cases[f"head.weight {name}"] = (
            "head.weight has another shape",
            with_weight("head.weight", weight),
        )
    for name in ("layers.0.0.weight", "layers.8.1.1.running_mean", "layers.8.1.1.running_var"):
        for number in (NAN, INFINITE, -INFINITE):
            cases[f"{name} with {number}"] = (f"{name} is not finite", with_value(name, number))
    cases["a negative variance"] = (
        "layers.0.1.running_var is negative",
        with_value("layers.0.1.running_var", -1e-3),
    )
    huge = {
        "layers.8.1.1.bias": torch.full((8,), 1e30),
        "head.weight": torch.full((3, 8), 1e30),
    }
    cases["logits that overflow"] = (
        "the logits of a grey image are not finite",
        content(weights=NETWORK.state_dict() | huge),
    )
    for name in ("layers.3.0.0.weight", "head.weight", "layers.0.1.num_batches_tracked"):
        fewer = without(name, NETWORK.state_dict())
        cases[f"no {name}"] = (f"{name} is missing", content(weights=fewer))
    names = NETWORK.state_dict()
    for name, reason, weights in (
        ("empty", "layers.0.0.weight is missing", {}),
        ("one more", "it has more weights than resnet9", names | {"more": torch.zeros(3)}),
        ("another network's", "layers.0.0.weight is missing", course),
        ("of flip_average", "is missing", {f"network.{key}": w for key, w in names.items()}),
    ):
        cases[f"weights, {name}"] = (reason, content(weights=weights))
    not_weights = "its weights are not tensors by name"
    for name, reason, weights in (
        ("None", not_weights, None),
        ("a list", not_weights, []),
        ("a tensor", not_weights, torch.zeros(3)),
        ("numbers", not_weights, {"fc3.bias": 3.0}),
        ("empty", "conv1.weight is missing", {}),
        ("one weight", "conv1.weight is missing", {"fc3.bias": torch.zeros(3)}),
        ("NaN", "fc3.bias is not finite", course | {"fc3.bias": torch.full((3,), NAN)}),
        (
            "two classes",
            "fc3.weight has another shape",
            course | {"fc3.weight": course["fc3.weight"][:2]},
        ),
        ("a ResNet9", "conv1.weight is missing", names),
    ):
        cases[f"model_state_dict, {name}"] = (reason, {"model_state_dict": weights})
    return cases
