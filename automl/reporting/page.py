"""Run → report.json: the parts put together, judged, and held against the schema."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from automl.errors import StorageError
from automl.reporting.verdict import judge

SCHEMA_VERSION = 1
SCHEMA_PATH = Path(__file__).with_name("report.schema.json")


@cache
def read_schema() -> dict[str, Any]:
    return json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))


def build_report(parts: dict[str, Any]) -> dict[str, Any]:
    """Merge the stages' parts into one report and add the verdict.

    Args:
        parts: run, dataset, audit, split, search, evaluation, baselines, cost,
            environment, and optionally study. See report.schema.json.

    Returns:
        The content of report.json. ``parts`` is left as it was.
    """
    report = {"schema_version": SCHEMA_VERSION, **parts}
    report.pop("verdict", None)
    problems = check_report(report)
    assert not problems, f"a stage wrote a part that the schema refuses: {problems[0]}"
    return {**report, "verdict": judge(complete(report))}


def check_report(report: dict[str, Any]) -> list[str]:
    """What the schema has against ``report``, one sentence each; [] if nothing."""
    errors = Draft202012Validator(read_schema()).iter_errors(report)
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


def read_report(path: Path) -> dict[str, Any]:
    """Read report.json.

    Raises:
        StorageError: there is none, it is not JSON, or another version wrote it.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            f"{path} does not exist. The run has not finished; go on with --resume, or name a "
            "folder that has a report.json."
        ) from None
    except ValueError:
        raise StorageError(f"{path} is not JSON. Restore it, or run the search again.") from None
    problems = check_report(report) if isinstance(report, dict) else ["$: is not an object"]
    if problems:
        raise StorageError(
            f"{path} is not a report that this version of automl can read: {problems[0]}. "
            "Render it with the version that wrote it."
        )
    return report


def complete(value: Any, schema: dict[str, Any] | None = None) -> Any:
    """Add what is absent, so that a template may name every part the schema knows.

    Absent lists become [], absent maps {}, everything else None; a template then says
    "not provided" or leaves the section out, and StrictUndefined catches its spelling.
    """
    schema = resolve(read_schema() if schema is None else schema)
    if isinstance(value, list) and "items" in schema:
        return [complete(item, schema["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties", {})
    extra = schema.get("additionalProperties")
    result = {
        key: complete(item, known.get(key, extra if isinstance(extra, dict) else {}))
        for key, item in value.items()
    }
    for key, part in known.items():
        if key not in result:
            result[key] = absent(resolve(part))
    return result


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Follow $ref and "this or null" to the schema that describes the value."""
    if "$ref" in schema:
        return resolve(read_schema()["$defs"][schema["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in schema:
        return resolve(schema["anyOf"][0])
    return schema


def absent(schema: dict[str, Any]) -> Any:
    if schema.get("type") == "array":
        return []
    if schema.get("type") == "object":
        return {} if "properties" not in schema else None
    return None
