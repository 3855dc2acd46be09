"""Results as text: for people, for spreadsheets, for programs."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loads NumPy
    from automl.records import Audit, Dataset, Run

HEADLINE = ("roc_auc", "balanced_accuracy", "accuracy", "recall", "specificity", "ece")


def summarise(run: "Run") -> dict[str, Any]:
    """What ``automl search --json`` prints."""
    test = run.report["evaluation"]["test"]
    return {
        "name": run.name,
        "folder": str(run.folder),
        "report": str(run.report_path),
        "model": str(run.model_dir),
        "best": run.report["search"]["best"],
        "threshold": test.get("threshold"),
        "metrics": test["metrics"],
        "verdict": run.report.get("verdict"),
    }


def summary_lines(run: "Run") -> list[str]:
    """The same for a person."""
    test = run.report["evaluation"]["test"]["metrics"]
    lines = ["On the test set, with 95 % intervals:"]
    for name in HEADLINE:
        if test.get(name, {}).get("value") is not None:
            metric = test[name]
            interval = ""
            if metric.get("low") is not None:
                interval = f"  ({metric['low']:.3f} to {metric['high']:.3f})"
            lines.append(f"  {name.replace('_', ' '):<18}{metric['value']:.3f}{interval}")
    return [*lines, "", f"report  {run.report_path}", f"model   {run.model_dir}"]


def audit_lines(dataset: "Dataset", audit: "Audit") -> list[str]:
    """Classes with their counts, the split, then each finding with its remedy and examples."""
    labels = [sample.label for sample in dataset.samples]
    classes = ", ".join(f"{name} {labels.count(name):,}" for name in dataset.classes)
    lines = [f"{dataset.name}: {len(labels):,} images ({classes})"]
    split = audit.summary["split"]
    lines.append(
        f"{split['kind']} split: {split['train']:,} to train, {split['val']:,} to choose, "
        f"{split['test']:,} to test; {split['leaking_pairs']:,} pairs of near-copies across"
    )
    for finding in audit.findings:
        lines += ["", f"{finding.severity}: {finding.title}"]
        if finding.remedy:
            lines.append(f"  {finding.remedy}")
        if finding.examples:
            lines.append(f"  for example {', '.join(finding.examples[:3])}")
    return lines if audit.findings else [*lines, "No findings."]


def export_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """Where each format is, how large, and how far its answers are from the report's."""
    lines = []
    for result in results:
        proof = "not proved"
        if parity := result["parity"]:
            proof = (
                f"on {parity['images']:,} test images probabilities differ by at most "
                f"{parity['max_difference']:.1e}, {parity['agreement']:.1%} of the labels agree"
            )
            if change := parity.get("auc_change"):
                proof += (
                    f"; ROC AUC changes by {change['value']:+.4f} "
                    f"({change['low']:+.4f} to {change['high']:+.4f})"
                )
        lines.append(f"{result['folder']} ({result['mb']:.1f} MB): {proof}")
    return lines


def external_lines(section: dict[str, Any]) -> list[str]:
    """A model on images from elsewhere, and how much it lost on the way."""
    lines = [
        f"{section['name']}: {section['images']:,} images, {section['unreadable']:,} unreadable, "
        f"{section['seen_in_training']:,} of them near-copies of training images, "
        f"{section['unlike_training']:,} unlike the training images.",
        "With 95 % intervals, and the change from the report's test set:",
    ]
    for name in HEADLINE:
        metric, change = section["metrics"].get(name), section["change"].get(name)
        if metric and metric["value"] is not None:
            lines.append(f"  {name.replace('_', ' '):<18}{span(metric)}   {span(change, '+')}")
    if lacking := ", ".join(section.get("lacking", [])):
        text = f"There are too few images of {lacking}: "
        if undefined := section["undefined"]:
            others = ", ".join(name.replace("_", " ") for name in undefined)
            lines.append(f"{text}{others} are not defined without them.")
        else:
            lines.append(f"{text}means are over the other classes, and the change is left out.")
    return lines


def span(item: dict[str, Any] | None, sign: str = "") -> str:
    """``0.992 (0.985 to 0.997)``; empty where there is no value."""
    if not item or item["value"] is None:
        return ""
    if item["low"] is None or item["high"] is None:
        return f"{item['value']:{sign}.3f}"
    return f"{item['value']:{sign}.3f} ({item['low']:{sign}.3f} to {item['high']:{sign}.3f})"


def print_json(document: Any) -> None:
    """To standard output, and at once: an error of the pipe belongs to the command."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()
