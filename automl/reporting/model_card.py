"""model_card.md: the report in two minutes of reading, for a model hub or a folder.

Markdown with a YAML head as Hugging Face reads it; all numbers are report.json's.
"""

import json
import re
from pathlib import Path
from typing import Any

from automl.reporting.formats import (
    METRIC_NAMES,
    duration,
    grouping,
    interval,
    large,
    number,
    plural,
    times,
    words,
)
from automl.reporting.page import complete
from automl.reporting.study_file import study_rows
from automl.reporting.verdict import judge
from automl.reporting.view import name_classes, winner_values
from automl.writing import write_text


def write_model_card(report: dict[str, Any], folder: Path) -> Path:
    """Write ``folder``/model_card.md from report.json's content."""
    return write_text(folder / "model_card.md", make_model_card(report))


def make_model_card(report: dict[str, Any]) -> str:
    """The card as text; the same text for the same report."""
    report = name_classes(complete(report))
    study = report["study"] or {}
    run, dataset, search = report["run"], report["dataset"], report["search"]
    test, verdict = report["evaluation"]["test"], report["verdict"] or judge(report)
    classes = " and ".join(escape(name) for name in dataset["classes"])
    lines = [*front_matter(report), f"# {escape(run['name'])}", ""]
    lines += [
        "> Research use. Not a medical device: no decision about a patient may rest on it.",
        "",
    ]
    if run["synthetic"] or dataset["synthetic"]:
        lines += [
            "> Synthetic: trained and tested on drawn heads. Nothing follows for patients.",
            "",
        ]
    if run["weights"] == "none":
        lines += ["> Demonstration: the backbone started from random weights.", ""]
    count = search["configurations"]
    origin = (
        "trained with the default configuration, which was compared with no other"
        if count == 1
        else f"found by a Hyperband search over {plural(count, 'configuration')}"
    )
    lines += [
        f"MobileNetV2 that tells apart {classes} on single images, {origin} "
        f"({duration(search['wall_seconds'])}).",
        "",
        f"## Verdict: {verdict['level']}",
        "",
        *(f"- {item['level']}: {escape(item['text'])}" for item in verdict["conditions"]),
        "",
        "## Test results",
        "",
        f"{number(test['images'])} images{grouping(test)}, "
        f"evaluated {times(test['test_evaluations'])}. 95\u202f% bootstrap intervals.",
        "",
        *metric_lines(report),
        "",
        "## Data",
        "",
        f"- {escape(dataset['name'])}: {number(dataset['images'])} images; "
        + ", ".join(f"{escape(name)} {number(n)}" for name, n in dataset["classes"].items()),
        f"- train {number(report['split']['train'])}, validation {number(report['split']['val'])}, "
        f"test {number(report['split']['test'])}; near-copies across parts: "
        f"{number(report['split']['leaking_pairs'])}",
        "",
        "## Model",
        "",
        f"- backbone weights: {escape(run['weights'])}",
        f"- parameters: {large(search['best']['parameters'])}; multiply-adds: "
        f"{large(search['best']['macs'])}",
        f"- threshold: {number(test['threshold'])}, temperature: {number(test['temperature'])}",
        f"- looks at mirror images, too: {'yes' if (test['mirror'] or {}).get('used') else 'no'}",
        *(
            f"- {escape(words(name))}: {escape(text)}"
            for name, text in winner_values(search).items()
        ),
        "",
        "## Intended use",
        "",
        escape(study.get("intended_use") or "not provided"),
        "",
        "## The authors say",
        "",
        *(
            f"- {row['title']}: {escape(row['answer'] or 'not provided')}"
            for row in study_rows(study)
            if row["key"] != "intended_use"
        ),
        "",
        "## Not for",
        "",
        "- diagnosis, triage or any other decision about a patient",
        "- images of another kind than those it saw: it names one of its classes for any picture",
        "- patients, scanners or sites it was not tested on"
        + ("" if report["evaluation"]["external"] else " (no external test was made)"),
        "",
        "## Reproduce",
        "",
        *("    " + line for line in run["command"].splitlines()),
        "",
        f"Seed {run['seed']}. Split SHA-256: "
        f"{escape(report['split']['digest'] or 'not provided')}. More in report.html.",
        "",
    ]
    return "\n".join(lines)


def front_matter(report: dict[str, Any]) -> list[str]:
    """The YAML head. JSON strings are YAML strings, whatever they hold."""
    run, dataset = report["run"], report["dataset"]
    auc = report["evaluation"]["test"]["metrics"].get("roc_auc") or {"value": None}
    return [
        "---",
        "library_name: keras",
        "pipeline_tag: image-classification",
        f"model_name: {json.dumps(run['name'], ensure_ascii=False)}",
        "tags: [automl, mobilenet_v2, medical-imaging, research-use]",
        f"datasets: [{json.dumps(dataset['name'], ensure_ascii=False)}]",
        f"roc_auc: {json.dumps(auc['value'])}",
        "---",
        "",
    ]


def metric_lines(report: dict[str, Any]) -> list[str]:
    metrics = report["evaluation"]["test"]["metrics"]
    rival = report["baselines"].get("one_nearest_neighbour") or {}
    rows = [
        f"| {words(name)} | {interval(metrics[name])} | {interval(rival.get(name))} |"
        for name in METRIC_NAMES
        if metrics.get(name)
    ]
    return ["| metric | this model | most similar training image |", "|---|---|---|", *rows]


def escape(text: Any) -> str:
    """Markdown and HTML signs lose their meaning; line breaks become blanks."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", flat)
