"""What reporting guidelines ask for, and where this page answers it.

CLAIM 2024: Tejani et al., Radiology: Artificial Intelligence 6(4), 2024, 44 items.
TRIPOD+AI: Collins et al., BMJ 385:e078378, 2024, 27 items. Wordings are shortened. An item
is filled by the page, partly filled, or the author's to answer in ``study.yaml`` (see
``study_file``); what nobody answered is printed as "not provided".
"""

from typing import Any

from automl.reporting.study_file import answer_items

FULL, PARTLY, AUTHOR = "filled", "partly", "author"
# number, what is asked, who answers, section of the page, part of the report that must exist
Item = tuple[int, str, str, str, str]
CLAIM: tuple[Item, ...] = (
    (1, "Title names the AI method", PARTLY, "top", ""),
    (2, "Abstract: design, methods, results, conclusions", AUTHOR, "", ""),
    (3, "Background, intended use and clinical role", AUTHOR, "", ""),
    (4, "Aims and hypotheses", AUTHOR, "", ""),
    (5, "Prospective or retrospective", AUTHOR, "", ""),
    (6, "Study goal", PARTLY, "clinic", ""),
    (7, "Data sources", AUTHOR, "", ""),
    (8, "Inclusion and exclusion criteria", AUTHOR, "", ""),
    (9, "Preprocessing", FULL, "reproduce", "run.config"),
    (10, "Selection of data subsets", FULL, "split", ""),
    (11, "De-identification", PARTLY, "data", "audit.findings"),
    (12, "Missing data", FULL, "data", "audit.findings"),
    (13, "Image acquisition", PARTLY, "data", "dataset.sizes"),
    (14, "Definition of the reference standard", AUTHOR, "", ""),
    (15, "Rationale of the reference standard", AUTHOR, "", ""),
    (16, "Source of the annotations", AUTHOR, "", ""),
    (17, "Annotation of the test set", AUTHOR, "", ""),
    (18, "Variability between and within annotators", AUTHOR, "", ""),
    (19, "How data were assigned to partitions", FULL, "split", "split.kind"),
    (20, "Level at which partitions are disjoint", FULL, "split", "dataset.group_kind"),
    (21, "Sample size", PARTLY, "test", "evaluation.test.images"),
    (22, "Description of the model", FULL, "winner", "search.best.parameters"),
    (23, "Software and versions", FULL, "reproduce", "environment.packages"),
    (24, "Initialisation of the weights", FULL, "reproduce", "run.weights"),
    (25, "Training approach", FULL, "search", "search.space"),
    (26, "Selection of the final model", FULL, "search", "search.best.score"),
    (27, "Ensembling (none: one model is delivered)", FULL, "winner", ""),
    (28, "Performance metrics", FULL, "test", ""),
    (29, "Uncertainty and significance", FULL, "test", ""),
    (30, "Robustness or sensitivity analysis", FULL, "robustness", "evaluation.robustness"),
    (31, "Explainability", FULL, "saliency", "evaluation.saliency"),
    (32, "Evaluation on internal data", FULL, "test", ""),
    (33, "Testing on external data", PARTLY, "external", "evaluation.external"),
    (34, "Trial registration", AUTHOR, "", ""),
    (35, "Numbers included and excluded", FULL, "data", "audit.findings"),
    (
        36,
        "Characteristics of the cases in each partition",
        PARTLY,
        "subgroups",
        "evaluation.subgroups",
    ),
    (37, "Performance with uncertainty", FULL, "test", ""),
    (38, "Diagnostic performance and its precision", FULL, "thresholds", "evaluation.thresholds"),
    (39, "Failure analysis", FULL, "mistakes", "evaluation.mistakes"),
    (40, "Limitations", AUTHOR, "", ""),
    (41, "Implications for practice", AUTHOR, "", ""),
    (42, "Study protocol or technical details", AUTHOR, "", ""),
    (43, "Availability of software, model and data", PARTLY, "reproduce", "cost.exports"),
    (44, "Funding", AUTHOR, "", ""),
)
TRIPOD: tuple[Item, ...] = (
    (1, "Title", PARTLY, "top", ""),
    (2, "Abstract", AUTHOR, "", ""),
    (3, "Background and health inequalities", AUTHOR, "", ""),
    (4, "Objectives", AUTHOR, "", ""),
    (5, "Data: sources and dates", AUTHOR, "", ""),
    (6, "Participants: setting and eligibility", AUTHOR, "", ""),
    (7, "Data preparation", FULL, "data", "audit.findings"),
    (8, "Outcome and how it was assessed", AUTHOR, "", ""),
    (9, "Predictors (the pixels)", PARTLY, "data", "dataset.sizes"),
    (10, "Sample size", PARTLY, "test", "evaluation.test.images"),
    (11, "Missing data", FULL, "data", "audit.findings"),
    (12, "Analytical methods: partition, tuning, measures", FULL, "search", "search.space"),
    (13, "Class imbalance and recalibration afterwards", FULL, "calibration", "split.balance"),
    (14, "Fairness", PARTLY, "subgroups", "evaluation.subgroups"),
    (15, "Model output and threshold", FULL, "thresholds", "evaluation.test.threshold"),
    (16, "Differences between training and evaluation", FULL, "split", "split.classes"),
    (17, "Ethical approval", AUTHOR, "", ""),
    (18, "Open science: protocol, data, code", PARTLY, "reproduce", "environment.packages"),
    (19, "Patient and public involvement", AUTHOR, "", ""),
    (20, "Flow and characteristics of participants", PARTLY, "data", "dataset.groups"),
    (21, "Numbers in each analysis", FULL, "split", "split.classes"),
    (22, "Model specification", FULL, "winner", "search.best.parameters"),
    (23, "Model performance with intervals", FULL, "test", ""),
    (24, "Model updating", AUTHOR, "", ""),
    (25, "Interpretation", AUTHOR, "", ""),
    (26, "Limitations", AUTHOR, "", ""),
    (27, "Usability, and handling of poor images", PARTLY, "robustness", "evaluation.robustness"),
)
GUIDELINES = {"CLAIM 2024": ("claim", CLAIM), "TRIPOD+AI 2024": ("tripod", TRIPOD)}


def fill_checklists(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One dict for each guideline: name, counts of each status, items.

    An item has number, text, status (filled, partly, author or missing), the anchor of
    the section that answers it, and what the author wrote.
    """
    answers = answer_items(report["study"] or {})
    result = []
    for name, (prefix, items) in GUIDELINES.items():
        rows = [fill_item(report, answers.get(f"{prefix}_{item[0]}"), item) for item in items]
        statuses = [row["status"] for row in rows]
        counts = {key: statuses.count(key) for key in (FULL, PARTLY, AUTHOR, "missing")}
        result.append({"name": name, "items": rows, "counts": counts, "total": len(rows)})
    return result


def fill_item(report: dict[str, Any], answer: str | None, item: Item) -> dict[str, Any]:
    number, text, status, anchor, part = item
    missing = status == AUTHOR or (part and not has_part(report, part))
    if missing:
        status = AUTHOR if answer else "missing"
    return {
        "number": number,
        "text": text,
        "status": status,
        "anchor": "" if missing else anchor,
        "answer": answer,
    }


def has_part(report: dict[str, Any], path: str) -> bool:
    value: Any = report
    for key in path.split("."):
        value = value[key] if value else None
    return value not in (None, [], {}, "")
