"""A label audit as text, numbers, tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.dataset.label_fixes import Suspect, write_suspects
from common.dataset.split import Split
from common.files import save_table
from common.inspection import label_audit
from common.inspection.label_audit import Audit
from common.reporting.contact_sheets import suspects_figure
from common.reporting.data_figures import label_joint
from common.reporting.data_tables import audit_text, planted_text

SUSPECTS = "label_suspects.csv"


def report_audit(
    audit: Audit, split: Split, root: Path
) -> tuple[list[Suspect], str, dict[str, Any], list[Path]]:
    """Save the tables and figures of an audit below `root`.

    Returns the suspects, what to print, the numbers for the result file, and the saved paths.
    """
    classes, labels, source = split.classes, split.train.labels.numpy(), split.source
    listed = label_audit.suspects(audit, labels, classes, split.train_files)
    file = root / "data" / SUSPECTS
    suspects = write_suspects(file, listed, split.train_fingerprint)
    text = audit_text(audit, suspects, classes, len(labels))
    numbers = {
        "joint": audit.joint.tolist(),
        "suspects": [suspect._asdict() for suspect in suspects],
    }
    if split.true_labels is not None:
        true_labels = split.true_labels.numpy()
        numbers["planted"] = label_audit.against_truth(audit, labels, true_labels, classes)
        if numbers["planted"]:
            text += f"\n\n{planted_text(numbers['planted'])}"
    ranking = label_audit.ranking(audit, labels, classes, split.train_files)
    joint, sheet = (
        root / "figures" / f"inspect_data_{name}.png" for name in ("joint", "suspects")
    )
    files = [
        file,
        save_table(root / "data" / "label_ranking.csv", ranking, list(ranking[0])),
        label_joint(joint, audit.joint, classes, len(labels), source),
    ]
    sheet.unlink(missing_ok=True)  # of another audit
    if suspects:
        files.append(suspects_figure(sheet, suspects, split.train.images, source))
    return suspects, text, numbers, files
