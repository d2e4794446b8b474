"""The reports' training loop, which `benchmarks/` measures `common.training.fit` against.

The loop is that of PyTorch's CIFAR-10 tutorial, which the reports follow: images one at a time
through torchvision's transforms, a DataLoader, torch.optim, and a loss that is read at every
step.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms

from common.dataset.split import LabelledImages
from common.networks.build import build
from common.training import losses
from common.training.augmentation import max_shift
from common.training.recipe import Recipe

AUGMENT = {
    "flip": transforms.RandomHorizontalFlip,
    "crop": partial(transforms.RandomCrop, 32, padding=max_shift(32), padding_mode="reflect"),
}


class Images(Dataset):
    """Images as torchvision.datasets.CIFAR10 has them: a transformed PIL image, a label."""

    def __init__(self, part: LabelledImages, transform: transforms.Compose) -> None:
        self.images = part.images.permute(0, 2, 3, 1).numpy()
        self.labels = part.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def loader(
    part: LabelledImages, recipe: Recipe, workers: int = 0, order: list[int] | None = None
) -> DataLoader:
    """Return the batches of the recipe, in a new order each epoch or in the given one."""
    steps = [AUGMENT[name]() for name in recipe.augment] + [transforms.ToTensor()]
    if recipe.network == "simple-cnn":  # ResNet9 normalises its images itself
        steps.append(transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    sampler = order
    if recipe.sampler == "balanced":
        weights = 1 / torch.bincount(part.labels).double()
        sampler = WeightedRandomSampler(weights[part.labels], len(part.labels))
    return DataLoader(
        Images(part, transforms.Compose(steps)),
        recipe.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=workers,
    )


def plain_network(
    recipe: Recipe, classes: int, seed: int = 0, dropout: float = 0.5
) -> nn.Module:
    """Return a new network of the recipe, made of torch.nn's modules alone.

    Its weights are those that `networks.build` draws from the seed. ResNet9 is such a network
    already. SimpleCNN becomes the reports' network, for images in [-1, 1] as `loader` gives
    them.
    """
    network = build(recipe.network, recipe.network_arguments(classes), seed)
    if recipe.network != "simple-cnn":
        return network
    modules = OrderedDict(
        conv1=nn.Conv2d(3, 16, 5), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(16, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(400, 120), relu3=nn.ReLU(), dropout1=nn.Dropout(dropout),
        fc2=nn.Linear(120, 84), relu4=nn.ReLU(), dropout2=nn.Dropout(dropout),
        fc3=nn.Linear(84, classes),
    )  # fmt: skip
    plain = nn.Sequential(modules)
    plain.load_state_dict(network.state_dict())
    return plain


def train(
    network: nn.Module, batches: DataLoader, recipe: Recipe, device: torch.device
) -> list[float]:
    """Train `network` in place as the recipe says, and return the loss of each step."""
    network.to(device).train()
    labels = torch.tensor(batches.dataset.labels)
    weights = losses.class_weights(recipe, torch.bincount(labels).to(device))
    criterion = nn.CrossEntropyLoss(weight=weights)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    scheduler = None
    if recipe.schedule == "one-cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            recipe.learning_rate,
            total_steps=recipe.epochs * len(batches),
            pct_start=recipe.warm_up,
            cycle_momentum=False,
        )
    curve = []
    for _ in range(recipe.epochs):
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(network(inputs), labels)
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            curve.append(loss.item())
    return curve
