"""Artifacts, the logged model and its registered versions: what a finished search leaves.

A model is logged once, whatever happens on the way: it stays PENDING until all its files
are there, and the next copy throws a pending one away and logs it again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, Schema

from automl.tracking import compare
from automl.tracking.mlflow_store import Mirror
from automl.tracking.replay import shorten

ARTIFACTS = (
    "report.html",
    "report.json",
    "audit.html",
    "audit.json",
    "trials.csv",
    "config.yaml",
    "predictions.csv",
    "model_card.md",
)
MODEL_CODE = Path(__file__).with_name("mlflow_model.py")
# The smallest PNG there is, one grey pixel: an input example that holds no patient.
EXAMPLE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
Difference = Callable[[Path, Path, Path], Mapping[str, float]]
# Seconds after which a decision that another copy began, and never ended, is given up.
DECISION_SECONDS = 30.0


def log_artifacts(mirror: Mirror, folder: Path) -> list[str]:
    """Upload the run's files that are new or have changed; returns their names."""
    run = mirror.parent
    sent = json.loads(run.data.tags.get("automl.artifacts", "{}"))
    changed = []
    for name in ARTIFACTS:
        path = folder / name
        if not path.is_file():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if sent.get(name) != digest:
            mirror.client.log_artifact(run.info.run_id, str(path))
            sent[name] = digest
            text = json.dumps(sent, sort_keys=True)
            mirror.client.set_tag(run.info.run_id, "automl.artifacts", text)
            run.data.tags["automl.artifacts"] = text
            changed.append(name)
    return changed


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files below ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def log_model(mirror: Mirror, folder: Path) -> tuple[str, bool] | None:
    """Log the SavedModel in ``folder/model`` once; its id and whether it is new, or None."""
    saved = folder / "model"
    if not (saved / "saved_model.pb").is_file():
        return None
    digest = folder_digest(saved)
    for model in mirror.client.search_logged_models(
        [mirror.experiment_id], filter_string=f"tags.`automl.run_id` = '{mirror.search}'"
    ):
        if model.status.name != "READY":
            mirror.client.delete_logged_model(model.model_id)
        elif model.tags.get("automl.model") == digest:
            return model.model_id, False
    info = read_info(saved)
    run = mirror.parent
    name = re.sub(r"""[/:.%"'\s]+""", "_", f"{run.info.run_name}").strip("_")
    model = mirror.client.create_logged_model(
        mirror.experiment_id,
        name=name or "model",
        source_run_id=run.info.run_id,
        tags={"automl.run_id": mirror.search, "automl.model": digest},
        params={k.removeprefix("best."): v for k, v in run.data.tags.items() if k[:5] == "best."},
        model_type="classifier",
    )
    with tempfile.TemporaryDirectory(prefix="automl-model-") as temporary:
        local = Path(temporary) / "model"
        mlflow.pyfunc.save_model(
            path=str(local),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=run.info.run_id,
                model_id=model.model_id,
                metadata={
                    "classes": info["classes"],
                    "positive": info.get("positive"),
                    "threshold": info.get("threshold"),
                    "temperature": info.get("temperature"),
                    "image_size": info.get("image_size"),
                    "hashes": info.get("hashes", {}),
                    "saved_model_sha256": digest,
                    "research_use_only": True,
                },
            ),
            python_model=str(MODEL_CODE),
            model_config={"classes": info["classes"]},
            artifacts={"saved_model": str(saved)},
            signature=make_signature(info["classes"]),
            input_example={"b64": [EXAMPLE]},
            pip_requirements=requirements(info),
        )
        mirror.client.log_model_artifacts(model.model_id, str(local))
    mirror.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    mirror.client.finalize_logged_model(model.model_id, "READY")
    return model.model_id, True


def read_info(saved: Path) -> dict[str, Any]:
    """What the model folder says of itself; the classes at least."""
    path = saved / "assets.extra" / "automl.json"
    return json.loads(path.read_text(encoding="utf-8"))


def make_signature(classes: list[str]) -> ModelSignature:
    """One of two columns in: files as base64, or arrays; label, index and probabilities out."""
    inputs = Schema(
        [
            ColSpec("string", "b64", required=False),
            ColSpec(AnyType(), "pixels", required=False),
        ]
    )
    outputs = Schema(
        [
            ColSpec("string", "label"),
            ColSpec("long", "class_index"),
            *(ColSpec("double", f"probability_{name}") for name in classes),
        ]
    )
    return ModelSignature(inputs=inputs, outputs=outputs)


def requirements(info: Mapping[str, Any]) -> list[str]:
    """What serving needs, given outright: MLflow would load TensorFlow twice to guess it."""
    versions = info.get("versions", {})
    tensorflow = versions.get("tensorflow") or _installed("tensorflow")
    pinned = f"tensorflow=={tensorflow}" if tensorflow else "tensorflow"
    return [f"mlflow=={mlflow.__version__}", pinned, f"pandas=={_installed('pandas')}"]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def register_model(
    mirror: Mirror,
    folder: Path,
    model_id: str,
    name: str,
    promote: bool,
    difference: Difference | None,
) -> tuple[str, str]:
    """Make one version of ``name`` for the model, and give it the aliases that it has earned.

    Returns the version, and what was decided about the champion ("" without ``promote``).
    """
    client, run = mirror.client, mirror.parent
    tags = version_tags(mirror, folder, model_id)
    try:
        client.create_registered_model(
            name, description="Image classifier found by automl. For research use only."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((v for v in versions if v.tags.get("automl.model_id") == model_id), None)
    if version is None:
        version = client.create_model_version(
            name,
            source=client.get_logged_model(model_id).artifact_location,
            run_id=run.info.run_id,
            tags=tags,
            description=_describe(mirror, tags),
            model_id=model_id,
        )
    number = str(version.version)
    if not promote and _names_newer(_alias(client, name, "challenger"), number, tags):
        _withdraw(client, f"{name}.deciding", mirror.search)
        return number, ""
    with _one_decision_at_a_time(client, name, mirror.search):
        if not _names_newer(_alias(client, name, "challenger"), number, tags):
            client.set_registered_model_alias(name, "challenger", number)
        if not promote:
            return number, ""
        return number, promote_model(mirror, folder, name, number, difference)


def _names_newer(holder: Any | None, number: str, tags: Mapping[str, str]) -> bool:
    """Whether an alias is held by version ``number`` itself, or by one of a newer search."""
    return holder is not None and (
        str(holder.version) == number
        or holder.tags.get("automl.created", "") > tags["automl.created"]
    )


@contextlib.contextmanager
def _one_decision_at_a_time(client: mlflow.MlflowClient, name: str, search: str) -> Iterator[None]:
    """Two searches that end together would both be compared with the same champion.

    An alias cannot be set on a condition. The one thing that MLflow does once only, whoever
    asks, is to make a name: so a registered model beside ``name`` stands for the decision,
    and is deleted after it. One that was left behind is taken over by the next copy of the
    same search, and by others after DECISION_SECONDS.
    """
    lock = f"{name}.deciding"
    deadline = time.monotonic() + DECISION_SECONDS
    note = f"A search is deciding about the aliases of {name}. If it stays here, delete it."
    while True:
        try:
            client.create_registered_model(lock, {"automl.run_id": search}, note)
            break
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with contextlib.suppress(MlflowException):  # it was deleted just now
            held = client.get_registered_model(lock)
            if held.tags.get("automl.run_id") == search:
                break
            if time.monotonic() > deadline:
                client.delete_registered_model(lock)
        time.sleep(0.2)
    try:
        yield
    finally:
        _withdraw(client, lock, search)


def _withdraw(client: mlflow.MlflowClient, lock: str, search: str) -> None:
    """Delete the name that stands for a decision of this search, now or of a copy that broke."""
    try:
        if client.get_registered_model(lock).tags.get("automl.run_id") == search:
            client.delete_registered_model(lock)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def version_tags(mirror: Mirror, folder: Path, model_id: str) -> dict[str, str]:
    """What a version must say to be compared with another."""
    run = mirror.parent
    report = folder / "report.json"
    facts = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    tags = {
        "automl.run_id": mirror.search,
        "automl.model_id": model_id,
        "automl.created": run.data.tags.get("automl.created", ""),
        "automl.test_set": compare.digest_test_set(folder / "predictions.csv"),
        "automl.split": str(facts.get("split", {}).get("digest", "")),
        "automl.data": run.data.tags.get("automl.data", ""),
        "automl.synthetic": run.data.tags.get("automl.synthetic", ""),
    }
    for metric, interval in facts.get("evaluation", {}).get("test", {}).get("metrics", {}).items():
        if all(interval.get(part) is not None for part in ("value", "low", "high")):
            tags[f"test.{metric}"] = (
                f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"
            )
    return tags


def _describe(mirror: Mirror, tags: Mapping[str, str]) -> str:
    lines = [f"Best model of the search **{mirror.parent.info.run_name}**. Research use only."]
    lines += [f"- {k.removeprefix('test.')} {v}" for k, v in tags.items() if k[:5] == "test."]
    return shorten("\n".join(lines))


def _alias(client: mlflow.MlflowClient, name: str, alias: str) -> Any | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def promote_model(
    mirror: Mirror, folder: Path, name: str, version: str, difference: Difference | None
) -> str:
    """Move ``champion`` to ``version`` if it has earned it; returns what was decided and why.

    Earned means: newer than the champion, the same test set, and the interval of the
    difference (challenger less champion) above zero. Without a champion the first is it.
    """
    client = mirror.client
    champion = _alias(client, name, "champion")
    if champion is None:
        client.set_registered_model_alias(name, "champion", version)
        return f"{name} version {version} is champion, the first."
    if str(champion.version) == version:
        return f"{name} version {version} is champion already."
    ours = client.get_model_version(name, version)
    stays = f"Champion of {name} stays version {champion.version}: "
    if ours.tags.get("automl.created", "") < champion.tags.get("automl.created", ""):
        return stays + f"version {version} is of an older search."
    for tag in ("automl.test_set", "automl.split"):
        if not ours.tags.get(tag) or ours.tags.get(tag) != champion.tags.get(tag):
            return stays + f"version {version} was tested on another test set."
    with tempfile.TemporaryDirectory(prefix="automl-champion-") as temporary:
        theirs = client.download_artifacts(champion.run_id, "predictions.csv", temporary)
        compute = difference or compare.auc_difference
        interval = compute(Path(theirs), folder / "predictions.csv", folder / "split.csv")
    low, high = float(interval["low"]), float(interval["high"])
    text = f"difference {float(interval['value']):+.4f} [{low:+.4f}, {high:+.4f}]"
    if not low > 0 or not np.isfinite(high):
        return stays + f"version {version} is not proved better ({text})."
    client.set_registered_model_alias(name, "champion", version)
    return f"{name} version {version} is the new champion ({text})."
