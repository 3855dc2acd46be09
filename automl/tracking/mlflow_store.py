"""Bring one experiment of an MLflow store to what ``replay`` says; the writing half of the sink.

Every step looks before it writes and leaves a trace by which it is found again, so that a
copy that broke off at any call is finished by the next one, without a second run or model.
"""

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from automl.errors import UsageError
from automl.tracking.journal import locked
from automl.tracking.replay import FAILURE_NOTE, PARENT, TrackedRun, redact, shorten

# MLflow takes 100 params and 100 tags in a batch, and 1,000 things in all.
BATCH_METRICS, BATCH_OTHERS = 800, 100
# Without it MLflow's pages take an experiment of runs and models for one of chats.
KIND = {"mlflow.experimentKind": "custom_model_development"}


@contextmanager
def mlflow_environment(uri: str, timeout: int) -> Iterator[str]:
    """Settings that MLflow reads from the environment, put back at the end.

    Yields the URI without credentials: user and password travel in the variables that
    MLflow has for them, so that no message or link of MLflow's can hold them. A create
    whose answer was lost must not be repeated blindly: retries are ours, not urllib3's.
    """
    parts = urlsplit(uri)
    values = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        secret, _, host = parts.netloc.rpartition("@")
        uri = urlunsplit(parts._replace(netloc=host))
        # "***" is what redact() leaves: the credentials are then in the environment, or nowhere.
        if secret != "***":
            user, _, password = secret.partition(":")
            values["MLFLOW_TRACKING_USERNAME"] = unquote(user)
            values["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    values["MLFLOW_TRACKING_URI"] = uri
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # What MLflow warns itself of is nothing that a user could change.
            warnings.simplefilter("ignore")
            yield uri
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def open_store(uri: str) -> mlflow.MlflowClient:
    """A client of the store at ``uri``; a local database is made by one process at a time."""
    if not uri.startswith("sqlite:///"):
        return mlflow.MlflowClient(uri)
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # MLflow's migrations race: two first users get "duplicate column name".
    with locked(path.with_name(path.name + ".lock")):
        client = mlflow.MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def open_experiment(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """The id of experiment ``name``, made if missing; of a local database, artifacts lie beside."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None
        if uri.startswith("sqlite:///"):
            location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=location, tags=KIND)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        raise UsageError(
            f"The MLflow experiment {name!r} was deleted. Restore it in MLflow, or choose another "
            "--experiment."
        )
    return experiment.experiment_id


@dataclass
class Known:
    """What the store holds of one run, as far as it decides what is missing."""

    run: Run
    points: int
    digest: str
    status: str
    end_time: int | None

    @classmethod
    def of(cls, run: Run) -> "Known":
        tags = run.data.tags
        points = int(tags.get("automl.points", 0))
        return cls(run, points, tags.get("automl.digest", ""), run.info.status, run.info.end_time)

    def agrees_with(self, wanted: TrackedRun) -> bool:
        ended = wanted.end_time is None or self.end_time == wanted.end_time
        return self.digest == wanted.digest and self.status == wanted.status and ended


class Mirror:
    """The runs of one search in one experiment; ``write`` makes one of them true."""

    def __init__(self, client: mlflow.MlflowClient, experiment_id: str, search: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.search = search
        self.known: dict[str, Known] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read every run of the search; of runs made twice by a lost answer, keep the fuller."""
        self.known = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.\"automl.run_id\" = '{self.search}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                key = run.data.tags.get("automl.configuration", PARENT)
                self._keep_one(key, run)
            token = page.token
            if not token:
                return

    def _keep_one(self, key: str, run: Run) -> None:
        other = self.known.get(key)
        if other is not None:
            pair = sorted((other.run, run), key=lambda r: (-len(r.data.tags), r.info.run_id))
            run, spare = pair
            self.client.delete_run(spare.info.run_id)
        self.known[key] = Known.of(run)

    @property
    def parent(self) -> Run:
        return self.known[PARENT].run

    def write(self, wanted: TrackedRun) -> str | None:
        """Make the run as ``wanted``; returns "created", "updated", or None if it was so."""
        known = self.known.get(wanted.key)
        outcome = "updated"
        if known is None:
            known, outcome = self.create(wanted), "created"
        elif known.agrees_with(wanted):
            return None
        if known.digest != wanted.digest:
            self._write_data(known, wanted)
        self._write_status(known, wanted)
        return outcome

    def create(self, wanted: TrackedRun) -> Known:
        """Make the run with what it is found by."""
        tags = {
            name: wanted.tags[name]
            for name in ("automl.run_id", "automl.kind", "automl.configuration")
            if name in wanted.tags
        }
        if wanted.key != PARENT:
            tags["mlflow.parentRunId"] = self.parent.info.run_id
        run = self.client.create_run(
            self.experiment_id, start_time=wanted.start_time, tags=tags, run_name=wanted.name
        )
        self.known[wanted.key] = known = Known.of(run)
        return known

    def _write_data(self, known: Known, wanted: TrackedRun) -> None:
        """Params that are missing, points after those sent, tags; one call if it all fits.

        Within a call MLflow writes tags last, and so the digest: without it the run counts as
        unfinished. A point sent twice is stored once, since its time is the journal's.
        """
        run_id = known.run.info.run_id
        held = known.run.data.tags
        gone = [name for name in held if _is_ours(name, held[name]) and name not in wanted.tags]
        for name in gone:
            self.client.delete_tag(run_id, name)
            del held[name]
        points = max(known.points, len(wanted.points))
        tags = {**wanted.tags, "automl.points": str(points), "automl.digest": wanted.digest}
        params = {k: v for k, v in wanted.params.items() if k not in known.run.data.params}
        batches = zip_longest(
            batched([Param(*item) for item in params.items()], BATCH_OTHERS),
            batched(
                [
                    Metric(p.name, p.value, p.timestamp, p.step)
                    for p in wanted.points[known.points :]
                ],
                BATCH_METRICS,
            ),
            fillvalue=[],
        )
        *earlier, last = list(batches) or [([], [])]
        for some_params, some_metrics in earlier:
            self.client.log_batch(run_id, params=some_params, metrics=some_metrics)
        items = [RunTag(*item) for item in tags.items()]
        self.client.log_batch(run_id, params=last[0], metrics=last[1], tags=items[-BATCH_OTHERS:])
        held.update(tags)
        known.run.data.params.update(params)
        known.points, known.digest = points, wanted.digest

    def _write_status(self, known: Known, wanted: TrackedRun) -> None:
        """MLflow has no way to take an end time back; a run that goes on keeps the old one."""
        if wanted.status != "RUNNING":
            self.client.set_terminated(known.run.info.run_id, wanted.status, wanted.end_time)
        elif known.status != "RUNNING":
            self.client.update_run(known.run.info.run_id, status="RUNNING")
        known.status, known.end_time = wanted.status, wanted.end_time


def _is_ours(tag: str, value: str) -> bool:
    """Whether a tag is written by ``replay``, and so to be removed once it no longer holds."""
    if tag in ("automl.points", "automl.digest", "automl.artifacts"):
        return False
    note = tag == "mlflow.note.content" and value.startswith(FAILURE_NOTE)
    return note or tag.startswith(("automl.", "best."))


def open_mirror(uri: str, experiment: str, search: str) -> Mirror:
    """What the store at ``uri`` holds of the search with the id ``search``."""
    client = open_store(uri)
    return Mirror(client, open_experiment(client, uri, experiment), search)


def batched(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def log_dataset(mirror: Mirror, start: dict[str, Any]) -> bool:
    """Attach the data set, under our own digest, to the parent; False if it was there."""
    data = start["dataset"]
    # MLflow keeps 36 characters of a digest; ours has 64 hexadecimal digits.
    digest = str(data["digest"])[:36]
    inputs = mirror.parent.inputs.dataset_inputs if mirror.parent.inputs else []
    if any(item.dataset.digest == digest for item in inputs):
        return False
    facts = {name: data.get(name) for name in ("images", "classes", "kind", "synthetic", "split")}
    dataset = Dataset(
        name=str(data["name"]),
        digest=digest,
        source_type="local",
        source=json.dumps({"uri": shorten(start["config"].get("data") or data["name"])}),
        profile=json.dumps({name: value for name, value in facts.items() if value is not None}),
    )
    tags = [InputTag("mlflow.data.context", "training, validation and test")]
    mirror.client.log_inputs(mirror.parent.info.run_id, [DatasetInput(dataset, tags)])
    return True


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later: a network, a server or a lock, not a refusal."""
    if isinstance(error, MlflowException):
        code = error.get_http_status_code()
        return (not 400 <= code < 500 or code in (408, 429)) and not _is_foreign(error)
    return isinstance(error, (OSError, SQLAlchemyError))


def _is_foreign(error: BaseException) -> bool:
    """Whether the answer was a page, a redirection, or JSON that no MLflow server sends."""
    text = str(error)
    return any(
        sign in text for sign in ("not in a valid JSON format", " redirects", "_ERROR: Response: {")
    )


def explain(error: BaseException) -> str:
    """One sentence for the user, without credentials and without what pages a server sent."""
    text = str(error).strip()
    if isinstance(error, MlflowException):
        code = error.get_http_status_code()
        if code == 401:
            return (
                "it refuses this user or password (401). Give the right ones in "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
        if code == 403:
            return (
                "this user may not write to the experiment or the registered model (403). Ask "
                "its owner for the permission, or choose another with --experiment."
            )
        if _is_foreign(error):
            return "what answers there is not an MLflow server."
        if code == 404 and text.startswith(("API request to endpoint", "ENDPOINT_NOT_FOUND")):
            if "/logged-models" in text:
                return "it is older than MLflow 3: it has the runs and files, and takes no model."
            return "it lacks a call that MLflow servers have since version 3 (404)."
        if failure := re.search(r"too many (\d+) error responses", text):
            return f"it answers with the error {failure[1]}."
    text = re.split(r"\n| with exception|\. Response body", text)[0]
    text = redact(text)[:300] or type(error).__name__
    return text + ("" if text.endswith(".") else ".")
