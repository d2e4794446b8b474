import numpy as np
import torch
from conftest import random_part
from PIL import Image

from common.attacks.table import Settings
from common.dataset.split import LabelledImages
from common.networks.prediction import predict
from common.reporting.attack_examples import save_examples
from common.reporting.attack_pictures import Subject


def examples_of(tmp_path, counts, epsilons):
    """Return the record, the sprite's pixels (rows, columns, S, S, 3), images and network."""
    images, _ = random_part(counts)
    classes = [f"class {k}" for k in range(len(counts))]
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, len(counts)))
    torch.nn.init.normal_(network[1].weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # so that it does not call all images the same
        network[1].weight -= network[1].weight.mean(1, keepdim=True)
    # The labels are what the network says, but for each third image: that one it gets wrong.
    labels = predict(network, images).argmax(1)
    labels[::3] = (labels[::3] + 1) % len(counts)
    test = LabelledImages(images.float() / 255, labels)
    path = tmp_path / "a_examples.png"
    settings = Settings(epsilons, [], steps=5, restarts=1, seed=0)
    record = save_examples(path, Subject("a", network, test, classes, ""), settings)
    with Image.open(path) as sprite:
        pixels = np.asarray(sprite)
    height, width, _ = pixels.shape
    cells = pixels.reshape(height // 32, 32, width // 32, 32, 3).swapaxes(1, 2)
    return record, torch.tensor(cells), images, labels, network


def test_sprite_holds_the_first_right_images_of_each_class_at_each_epsilon(tmp_path):
    record, cells, images, labels, network = examples_of(tmp_path, (40, 40, 40), [8, 0.5, 1])
    assert (record["sprite"], record["size"]) == ("a_examples.png", 32)
    assert record["epsilons"] == [0, 0.5, 1, 8]  # 0 is there, though nobody asked for it
    expected, seen = [], {}
    predicted = predict(network, images).argmax(1)
    for k in sorted(set(labels.tolist())):
        for i in range(len(labels)):
            if labels[i] == predicted[i] == k and seen.get(k, 0) < 2:
                seen[k] = seen.get(k, 0) + 1
                expected.append(i)
    assert len(expected) == 6
    assert torch.equal(cells[:, 0], images[expected].permute(0, 2, 3, 1))
    assert [image["label"] for image in record["images"]] == [
        f"class {labels[i]}" for i in expected
    ]
    assert cells.shape[:2] == (len(expected), 4)
    for column, epsilon in enumerate([0, 0, 1, 8]):  # 0.5 is less than a step in 8 bits
        change = (cells[:, column].int() - cells[:, 0].int()).abs()
        assert change.max() == epsilon


def test_predictions_are_those_of_the_saved_pixels(tmp_path):
    record, cells, *_, network = examples_of(tmp_path, (40, 40, 40), [1, 8])
    changed = 0
    for row, image in zip(cells, record["images"], strict=True):
        probabilities = predict(network, row.permute(0, 3, 1, 2).contiguous()).softmax(1)
        for p, (name, probability) in zip(probabilities, image["predictions"], strict=True):
            assert name == f"class {p.argmax()}"
            assert abs(probability - p.max()) < 1e-5
        assert image["predictions"][0][0] == image["label"]
        changed += image["predictions"][-1][0] != image["label"]
    assert changed == len(cells) == 6  # noise of 8/255 fools a linear network


def test_many_classes_are_spread_over(tmp_path):
    record, *_ = examples_of(tmp_path, (60,) * 20, [0])
    labels = [image["label"] for image in record["images"]]
    shown = {f"class {k}" for k in (0, 2, 5, 8, 10, 13, 16, 19)}
    assert set(labels) == shown
    assert max(map(labels.count, labels)) == 2
