"""One network evaluated, or the average of several: its numbers, its text and its figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from common.dataset.split import Split
from common.errors import InputError
from common.files import save_table
from common.metrics.comparison import Comparison, compare_predictions
from common.metrics.decisions import decide, shift_prior
from common.metrics.probabilities import (
    TINY,
    ProbabilityReport,
    fit_temperature,
    judge,
    softmax,
)
from common.metrics.report import Report, report
from common.networks.checkpoint import Checkpoint
from common.networks.prediction import predict
from common.reporting import probability_figures
from common.reporting.contact_sheets import errors_figure
from common.reporting.evaluation_tables import (
    NOT_HELD_OUT,
    caution,
    is_held_out,
    report_text,
    reports_compared,
)
from common.reporting.figures import MOST_LARGE_CELLS
from common.reporting.probability_tables import (
    NO_TEMPERATURE,
    decisions_text,
    differences_text,
    prediction_rows,
    probabilities_text,
    temperature_text,
)
from common.reporting.training_figures import confusion, confusions
from common.reporting.training_tables import TRAINED_ON_TEST, marked
from common.training.assumed_shares import of_checkpoint, train_counts

MOST_SIDE_BY_SIDE = 4  # networks whose confusion matrices are shown in one figure


@dataclass(frozen=True)
class Network:
    """What a network says of the images, and what is known of it.

    test, validation: probabilities (N, K) and (M, K); validation is None if there are no
    validation images that were held out from its training. assumed, shifted: with --prior, the
    class shares that the probabilities assume, (K,), and the test images' probabilities at the
    shares of --prior. trained_on: train images of each class. seconds: of the predictions.
    """

    heading: str
    caution: str
    record: Any
    trained_on_test: bool
    trained_on: Sequence[int]
    test: np.ndarray
    validation: np.ndarray | None
    assumed: list[float] | None
    shifted: np.ndarray | None
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one network on the test images.

    temperature: the fitted temperature, and the judgement of the probabilities with it; None
    without held-out validation images. decisions: a `decision_report` of each way to decide,
    and chosen, the decisions (N,) of the last; None without --prior and --cost.
    """

    report: Report
    probabilities: ProbabilityReport
    temperature: tuple[float, ProbabilityReport] | None
    decisions: dict[str, dict[str, Any]] | None
    chosen: np.ndarray | None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, for a result file."""
        temperature = None
        if self.temperature is not None:
            value, judged = self.temperature
            temperature = {"value": value, "probabilities": judged.as_dict()}
        return {
            "report": self.report.as_dict(),
            "probabilities": self.probabilities.as_dict(),
            "temperature": temperature,
            "decisions": self.decisions,
        }


def network_of(
    checkpoint: Checkpoint,
    path: Path,
    heading: str,
    split: Split,
    prior: np.ndarray | None,
    assumed: list[float] | None,
) -> Network:
    """Return what the network of a checkpoint says of the images of a split.

    prior: the shares (K,) of --prior, and assumed: those that the network's probabilities
    assume, or both None.
    """
    start = time.perf_counter()
    counts = split.train.counts(len(split.classes))
    test = softmax(predict(checkpoint.network, split.test.images).numpy())
    validation = shifted = None
    if len(split.validation.labels) and is_held_out(checkpoint, split):
        validation = softmax(predict(checkpoint.network, split.validation.images).numpy())
    if prior is not None:
        shifted = shift_prior(test, assumed, prior)
    return Network(
        heading=heading,
        caution=caution(checkpoint, split),
        record=checkpoint.record(path),
        trained_on_test=checkpoint.trained_on_test,
        trained_on=train_counts(checkpoint) or counts,
        test=test,
        validation=validation,
        assumed=assumed,
        shifted=shifted,
        seconds=time.perf_counter() - start,
    )


def average(networks: Sequence[Network], heading: str) -> Network:
    """Return the network whose probabilities are the mean of those of several."""

    def mean(name: str) -> np.ndarray | None:
        of_each = [getattr(network, name) for network in networks]
        return None if any(each is None for each in of_each) else np.mean(of_each, axis=0)

    trained_on_test = any(network.trained_on_test for network in networks)
    return Network(
        heading=heading,
        caution=NOT_HELD_OUT if trained_on_test else "",
        record=[network.record for network in networks],
        trained_on_test=trained_on_test,
        trained_on=networks[0].trained_on,
        test=mean("test"),
        validation=mean("validation"),
        assumed=None,  # each member was shifted by itself
        shifted=mean("shifted"),
        seconds=sum(network.seconds for network in networks),
    )


def evaluate(
    network: Network, split: Split, prior: np.ndarray | None, costs: np.ndarray | None
) -> Evaluation:
    """Return the numbers of a network on the test images of a split.

    prior: the shares (K,) of --prior, or None; costs: those of --cost, (K, K), or None.
    """
    labels = split.test.labels.numpy()
    temperature = decisions = chosen = None
    if network.validation is not None:
        log_p = np.log(np.maximum(network.validation, TINY))
        value = fit_temperature(log_p, split.validation.labels.numpy())
        with_temperature = softmax(np.log(np.maximum(network.test, TINY)) / value)
        temperature = value, judge(labels, with_temperature, split.classes)
    if prior is not None or costs is not None:
        decisions, chosen = decide(labels, network.test, network.shifted, prior, costs)
    return Evaluation(
        report(labels, network.test.argmax(1), split.classes),
        judge(labels, network.test, split.classes),
        temperature,
        decisions,
        chosen,
    )


def wanted_and_assumed_shares(
    given: Sequence[float],
    named: Sequence[tuple[Path, tuple[str, Checkpoint]]],
    split: Split,
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Return the class shares of --prior, (K,), and by name those that each network assumes.

    given: the shares up to a factor. Raises InputError for another number of them, and for a
    recipe that is not known.
    """
    if len(given) != len(split.classes):
        numbers = f"{len(given)} shares for {len(split.classes)} classes"
        raise InputError(f"--prior: {numbers}; give one for each class, in label order")
    counts = split.train.counts(len(split.classes))
    assumed = {name: of_checkpoint(each, path, counts) for path, (name, each) in named}
    return np.array(given) / sum(given), assumed


def compare(
    networks: dict[str, Network], evaluations: dict[str, Evaluation], split: Split
) -> tuple[str, Comparison]:
    """Return how several networks compare on the same test images, as text and as numbers."""
    labels = split.test.labels.numpy()
    reports = _reports(networks, evaluations)
    comparison = compare_predictions(
        {name: [report.as_dict()] for name, report in reports.items()},
        {
            name: network.test.argmax(1)[None]
            for name, network in zip(reports, networks.values(), strict=True)
        },
        labels,
        {marked(name, True) for name, each in networks.items() if each.trained_on_test},
    )
    blocks = [
        f"== All on the {len(labels)} test images, 95% intervals ==",
        f"{reports_compared(reports)}\n",
        differences_text(comparison),
    ]
    return "\n".join(blocks), comparison


def _reports(
    networks: dict[str, Network], evaluations: dict[str, Evaluation]
) -> dict[str, Report]:
    """Return the reports by the networks' names, marked if the test images were trained on."""
    return {
        marked(name, network.trained_on_test): evaluations[name].report
        for name, network in networks.items()
    }


def save_confusions(
    folder: Path, networks: dict[str, Network], evaluations: dict[str, Evaluation], split: Split
) -> list[Path]:
    """Save the confusion matrices of several networks as one figure, if there is room."""
    path = folder / "evaluate_confusions.png"
    if len(evaluations) > MOST_SIDE_BY_SIDE or len(split.classes) > MOST_LARGE_CELLS:
        path.unlink(missing_ok=True)  # of other networks
        return []
    return [confusions(path, _reports(networks, evaluations), split.source)]


def evaluation_text(
    network: Network, evaluation: Evaluation, split: Split, prior: np.ndarray | None
) -> str:
    """Return all that is printed of a network, for an 80-column screen."""
    judged = evaluation.probabilities
    images = len(split.validation.labels)
    if evaluation.temperature is not None:
        value, after = evaluation.temperature
        calibrated = temperature_text(value, judged, after, images)
    else:
        calibrated = fill(NO_TEMPERATURE["seen" if images else "none"], 80)
    blocks = [
        network.caution,
        report_text(evaluation.report, split.source, network.trained_on),
        probabilities_text(judged),
        calibrated,
    ]
    if evaluation.decisions is not None:
        shares = judged.shares if prior is None else prior.tolist()
        given = evaluation.decisions, split.classes, shares, network.assumed
        blocks.append(decisions_text(*given))
    return "\n\n".join(block for block in blocks if block)


def save_files(
    prefix: str, name: str, network: Network, evaluation: Evaluation, split: Split
) -> list[Path]:
    """Save the figures of a network and its predictions; return the paths."""
    labels, classes, source = split.test.labels.numpy(), split.classes, split.source
    files, judged = split.test_files, evaluation.probabilities
    of = f"{name} {TRAINED_ON_TEST}" if network.trained_on_test else name
    rows = prediction_rows(files, labels, network.test, classes, evaluation.chosen)

    def path(ending: str) -> Path:
        return Path(f"{prefix}_{ending}")

    paths = [
        confusion(
            path("confusion.png"), evaluation.report, f"Confusion matrix of {of}", source
        ),
        probability_figures.calibration(
            path("calibration.png"),
            judged, network.trained_on, f"Calibration of {of}", source, len(labels),
        ),
        probability_figures.precision_recall(
            path("precision_recall.png"),
            judged, network.trained_on, labels, network.test,
            f"Precision and recall of {of}", source,
        ),
        errors_figure(
            path("errors.png"),
            split.test, files, network.test, classes,
            f"The most confident errors of {of}, by true class", source,
        ),
        save_table(path("predictions.csv"), rows, list(rows[0])),
    ]  # fmt: skip
    return [each for each in paths if each is not None]
