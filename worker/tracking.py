"""Copies jobs from the database to MLflow, and registers the students of those that succeeded. The one door to mlflow.

MLflow is a mirror: when it is away, jobs run on and are copied later. Each job has a saved position in its history; a
batch that is sent twice writes the same points again, which MLflow keeps once. Runs, models and versions carry the tag
`job_id` and are looked up before they are made, so a controller that dies between two calls makes none twice.

Two controllers do not track at once: `worker.turn`.
"""

from __future__ import annotations

import logging
import os
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # s; the default waits for an hour in all
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*inferred as AnyType")  # mlflow's own type hints
    import mlflow
    import mlflow.pyfunc

import numpy as np
from mlflow.entities import LoggedModelStatus, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec

from jobs import db, store
from jobs.measurements import measurements, params_of
from jobs.settings import Settings
from jobs.status import TERMINAL, Status
from jobs.storage import storage_of
from jobs.tables import JobEventRow, JobRow, ModelRow
from worker.turn import Turn

log = logging.getLogger(__name__)
T = TypeVar("T")

ROUND_S = 1.0
ALIASES_S = 10.0  # people may move an alias in MLflow's UI
ORPHANS_S = 3600.0
LONGEST_DELAY_S = 60.0
JOBS = 200  # in one round
EVENTS = 500  # in one transaction
METRICS = 1000  # MLflow's limits for one call
PARAMS = 100

SERVED_MODEL = Path(__file__).with_name("served_model.py")
SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
    outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1))]),
)
REQUIREMENTS = [f"{name}=={installed(name)}" for name in ("mlflow", "numpy", "onnxruntime")]
RUN_STATUS = {Status.SUCCEEDED: "FINISHED", Status.FAILED: "FAILED", Status.CANCELLED: "KILLED"}
LATEST_GOOD = "latest-good"
LABEL = "label."  # before the name of a label, as a tag
NOTED = {"note", "request"}  # events that become lines of notes.txt
INSTALLATION = "dsd_installation"  # tag of a run: the database that knows its job


class Tracker:
    """Keeps one MLflow server up to date."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.settings = settings
        self.url = url
        self.engine = db.make_engine(settings.db_url)
        self.storage = storage_of(settings)
        mlflow.set_tracking_uri(url)
        self.client = mlflow.MlflowClient(url)
        self._turn = Turn(self.engine, "tracking", settings.home_dir)
        self._experiment_id: str | None = None
        self._aliases_at = self._orphans_at = 0.0
        self._again_at: dict[str, tuple[float, float]] = {}  # job: when to try again, and the delay that led there

    def run(self, stop: Event) -> None:
        """Rounds until `stop`; while MLflow or the database are away they come more seldom."""
        delay_s = 0.0
        while not stop.is_set():
            try:
                reached = self.round(stop)
            except Exception:  # the database, for MLflow's errors are written to its jobs
                log.exception("tracking.round_failed")
                reached = False
            delay_s = 0.0 if reached else min(max(1.0, 2 * delay_s), LONGEST_DELAY_S)
            stop.wait(max(ROUND_S, delay_s))
        self.close()

    def round(self, stop: Event) -> bool:
        """Bring every job up to date whose turn it is. False: MLflow does not answer."""
        if not self._turn.take():
            return True
        with db.reading(self.engine) as s:
            rows = [row for row in store.tracking_due(s, JOBS) if row.started_at is not None or row.status in TERMINAL]
        if trouble := _trouble(self.url):
            for row in rows:
                if row.tracking != "stalled":
                    self._stalled(row, f"MLflow at {self.url} does not answer: {trouble}")
            return False
        for row in rows:
            if not stop.is_set() and time.monotonic() >= self._again_at.get(row.id, (0.0, 0.0))[0]:
                self._sync_or_stall(row)
        if time.monotonic() >= self._aliases_at:
            self._copy_aliases()
            self._aliases_at = time.monotonic() + ALIASES_S
        if time.monotonic() >= self._orphans_at:
            self._close_orphans()
            self._orphans_at = time.monotonic() + ORPHANS_S
        return True

    def close(self) -> None:
        """Let another controller track."""
        self._turn.give_up()
        self.engine.dispose()

    # --- one job ------------------------------------------------------------------------------------------------------

    def _sync_or_stall(self, row: JobRow) -> None:
        try:
            self._sync(row)
        except Exception as error:  # whatever one job meets must not keep the others waiting
            delay_s = min(max(1.0, 2 * self._again_at.get(row.id, (0.0, 0.0))[1]), LONGEST_DELAY_S)
            self._again_at[row.id] = (time.monotonic() + delay_s, delay_s)
            log.warning("tracking.stalled job=%s", row.id, exc_info=True)
            self._stalled(row, f"{type(error).__name__}: {error}")
        else:
            self._again_at.pop(row.id, None)

    def _sync(self, row: JobRow) -> None:
        """Copy what is new; a job that has ended is closed after its last event."""
        if row.started_at is None:  # cancelled in the queue: there is nothing to see
            self._set(row, tracking="synced", tracking_seq=row.last_seq)
            return
        run_id = row.mlflow_run_id or self._open_run(row)
        seq = row.tracking_seq
        while events := self._events(row.id, seq):
            self._copy(row, run_id, events)
            seq = events[-1].seq
            self._set(row, tracking="pending", tracking_seq=seq, tracking_error=None)
        if row.status in TERMINAL:
            self._close_run(row, run_id)
            registered = self._keep_or_forget(row, run_id)
            self._set(row, tracking="synced", tracking_seq=seq, tracking_error=None, **registered)

    def _open_run(self, row: JobRow) -> str:
        """The job's run: found by its tag, or made, with the spec as parameters and as a file."""
        experiment_id = self._experiment()
        found = self.client.search_runs([experiment_id], f"tags.job_id = '{row.id}'", max_results=1)
        tags = {"job_id": row.id, "kind": row.kind, "spec_digest": row.spec_digest, "mlflow.source.name": "dsd"}
        tags |= {INSTALLATION: self._installation(), **_label_tags(row)}
        run = found[0] if found else self.client.create_run(experiment_id, _ms(row.started_at), tags, row.name)
        run_id: str = run.info.run_id
        for params in _chunks([Param(name, text) for name, text in params_of(row.spec).items()], PARAMS):
            self.client.log_batch(run_id, params=params)
        self.client.log_dict(run_id, row.spec, "spec.json")
        self._set(row, mlflow_run_id=run_id)
        return run_id

    def _copy(self, row: JobRow, run_id: str, events: list[JobEventRow]) -> None:
        metrics = [
            Metric(m.name, m.value, _ms(event.at), m.step)
            for event in events
            for m in measurements(event.type, event.data)
        ]
        for chunk in _chunks(metrics, METRICS):
            self.client.log_batch(run_id, metrics=chunk)
        for event in events:
            if event.type == "picture":
                self._log_file(row, run_id, event.data["path"], "pictures")
        types = {event.type for event in events}
        if "checkpoint" in types:
            index = [event.data for event in self._events(row.id, 0, ["checkpoint"], limit=10_000)]
            self.client.log_dict(run_id, {"checkpoints": index}, "checkpoints.json")
        if types & NOTED:
            notes = self._events(row.id, 0, sorted(NOTED), limit=10_000)
            self.client.log_text(run_id, "".join(map(_noted, notes)), "notes.txt")
        if any(event.type == "request" and "labels" in event.data for event in events):
            self._label(row, run_id)

    def _label(self, row: JobRow, run_id: str) -> None:
        """Give the run the labels that its job has now, and no others."""
        wanted = _label_tags(row)
        for tag in self.client.get_run(run_id).data.tags:
            if tag.startswith(LABEL) and tag not in wanted:
                self.client.delete_tag(run_id, tag)
        for tag, value in wanted.items():
            self.client.set_tag(run_id, tag, value)

    def _close_run(self, row: JobRow, run_id: str) -> None:
        self._log_file(row, run_id, "log.txt")
        self.client.set_tag(run_id, "reason", row.reason)
        self.client.set_tag(run_id, "attempt", str(row.attempt))
        if row.error is not None:
            self.client.set_tag(run_id, "error", row.error["message"])
        self.client.set_terminated(run_id, RUN_STATUS[Status(row.status)], _ms(row.finished_at))

    def _log_file(self, row: JobRow, run_id: str, name: str, to: str | None = None) -> None:
        """Copy a file of the run folder, where there is one."""
        with self.storage.borrowed(row.id, name) as path:
            if path is not None and path.is_file():
                self.client.log_artifact(run_id, str(path), to)

    # --- what retention has taken -------------------------------------------------------------------------------------

    def _keep_or_forget(self, row: JobRow, run_id: str) -> dict[str, int]:
        """Register the student of a job that succeeded, or delete what retention has marked of it."""
        if row.files_gone_at is not None:
            get_artifact_repository(self.client.get_run(run_id).info.artifact_uri).delete_artifacts()
        with db.reading(self.engine) as s:
            model = store.model_of(s, row.id)
        if model is not None and model.files_gone_at is not None:
            self._forget_version(row, model)
        elif row.status == Status.SUCCEEDED and row.kind != "evaluate" and row.files_gone_at is None:
            return {"model_version": self._register(row, run_id)}
        return {}

    def _forget_version(self, row: JobRow, model: ModelRow) -> None:
        """Delete a version, its files in MLflow and those in the storage; unless an alias has come to stand for it."""
        if model.version in self._aliases_of(model.name).values():
            with db.begin(self.engine) as s:
                store.unmark_student(s, row.id)
            return
        for version in self.client.search_model_versions(f"name = '{model.name}' and tags.job_id = '{row.id}'"):
            self.client.delete_model_version(model.name, version.version)
        for logged in self.client.search_logged_models([self._experiment()], f"tags.job_id = '{row.id}'"):
            get_artifact_repository(logged.artifact_location).delete_artifacts()
            self.client.delete_logged_model(logged.model_id)
        names = [f"student/{entry['path']}" for entry in model.files]
        self.storage.remove(row.id, names)

    def _close_orphans(self) -> None:
        """End the runs of this database's jobs that it knows no longer, such as after it was restored."""
        with db.reading(self.engine) as s:
            mine = store.installation(s)
            query = f"tags.{INSTALLATION} = '{mine}' and attributes.status = 'RUNNING'"
            runs = self.client.search_runs([self._experiment()], query)
            known = store.kept_jobs(s, [run.data.tags["job_id"] for run in runs])
        for run in runs:
            if run.data.tags["job_id"] not in known:
                log.warning("tracking.orphan run=%s job=%s", run.info.run_id, run.data.tags["job_id"])
                self.client.set_tag(run.info.run_id, "reason", "no such job")
                self.client.set_terminated(run.info.run_id, "KILLED")

    # --- the registered model -----------------------------------------------------------------------------------------

    def _register(self, row: JobRow, run_id: str) -> int:
        """The one model version of the job; its alias and our own table follow."""
        assert row.result is not None
        tags = _lineage(row)
        found = self.client.search_model_versions(f"name = '{row.name}' and tags.job_id = '{row.id}'")
        made = found[0] if found else self._create_version(row, run_id, tags)
        version = int(made.version)
        if row.result["beats_floor"]:
            newest = self.client.get_registered_model(row.name).aliases.get(LATEST_GOOD)
            if newest is None or int(newest) < version:
                self.client.set_registered_model_alias(row.name, LATEST_GOOD, str(version))
        aliases = self._aliases_of(row.name)
        with db.begin(self.engine) as s:
            store.add_model_version(
                s,
                name=row.name,
                version=version,
                job_id=row.id,
                files=row.result["files"],
                tags=tags,
                miou=row.result["student"]["miou"],
            )
            store.set_aliases(s, row.name, aliases)
        log.info("model.registered job=%s name=%s version=%s", row.id, row.name, version)
        return version

    def _create_version(self, row: JobRow, run_id: str, tags: dict[str, str]) -> Any:
        with self.storage.borrowed(row.id, "student") as student:
            if student is None:
                raise FileNotFoundError(f"There is no student of job {row.id} in {self.storage.place}.")
            card = (student / "README.md").read_text(encoding="utf-8")
            model_id = self._logged_model(row, run_id, tags, student)
        try:
            self.client.create_registered_model(row.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self.client.create_model_version(
            row.name, f"models:/{model_id}", run_id, tags=tags, description=card, model_id=model_id
        )

    def _logged_model(self, row: JobRow, run_id: str, tags: dict[str, str], student: Path) -> str:
        """The id of the job's files in MLflow: uploaded before, or now, as a model from code (no pickle)."""
        experiment_id = self._experiment()
        for model in self.client.search_logged_models([experiment_id], f"tags.job_id = '{row.id}'"):
            if model.status == LoggedModelStatus.READY:
                return str(model.model_id)
        model = self.client.create_logged_model(experiment_id, row.name, run_id, tags, model_type="segmentation")
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=model.model_id,
            python_model=str(SERVED_MODEL),
            artifacts={"student": str(student)},
            signature=SIGNATURE,
            input_example=np.zeros((1, 64, 64, 3), np.uint8),
            pip_requirements=REQUIREMENTS,
        )
        return str(model.model_id)

    def _copy_aliases(self) -> None:
        """Bring our table up to date with aliases that people moved."""
        with db.reading(self.engine) as s:
            known = {row.name for row in store.list_models(s)}
            ours = store.model_aliases(s)
        for name in sorted(known):
            try:
                theirs = self._aliases_of(name)
            except MlflowException as error:  # the model was deleted in the UI: its files stay downloadable by version
                log.warning("tracking.aliases name=%s error=%s", name, error)
                continue
            if theirs != ours.get(name, {}):
                with db.begin(self.engine) as s:
                    store.set_aliases(s, name, theirs)

    def _aliases_of(self, name: str) -> dict[str, int]:
        aliases = self.client.get_registered_model(name).aliases
        return {alias: int(version) for alias, version in aliases.items()}

    # --- under all of them --------------------------------------------------------------------------------------------

    def _experiment(self) -> str:
        name = self.settings.mlflow_experiment
        if self._experiment_id is None:
            found = self.client.get_experiment_by_name(name)
            self._experiment_id = found.experiment_id if found else self.client.create_experiment(name)
        return self._experiment_id

    def _installation(self) -> str:
        with db.reading(self.engine) as s:
            return store.installation(s)

    def _events(self, job_id: str, seq: int, types: list[str] | None = None, limit: int = EVENTS) -> list[JobEventRow]:
        with db.reading(self.engine) as s:
            return store.events_after(s, job_id, seq, limit, types)

    def _set(self, row: JobRow, **fields: Any) -> None:
        with db.begin(self.engine) as s:
            store.set_tracking(s, row.id, **fields)

    def _stalled(self, row: JobRow, message: str) -> None:
        self._set(row, tracking="stalled", tracking_error=message[:2000])


def _trouble(url: str) -> str | None:
    """Why the server cannot be used; None when it answers. `file:` and `sqlite:` stores are always there."""
    if not url.startswith("http"):
        return None
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            answer.read()
    except OSError as error:
        return str(error)
    return None


_ORIGINS = ("teacher_digest", "student_digest", "dataset_fingerprint", "code_version")


def _label_tags(row: JobRow) -> dict[str, str]:
    return {f"{LABEL}{key}": value for key, value in row.labels.items()}


def _noted(event: JobEventRow) -> str:
    """A line of notes.txt."""
    data, at = event.data, event.at.isoformat(timespec="milliseconds")
    if event.type == "note":
        return f"{at} {data['level']}: {data['message']}\n"
    what = [data["request"], *(str(value) for key, value in data.items() if key != "request")]
    return f"{at} asked: {' '.join(what)}\n"


def _lineage(row: JobRow) -> dict[str, str]:
    """Where a student comes from and what it is worth, as tags."""
    assert row.result is not None
    facts = {name: row.result.get(name) for name in _ORIGINS}
    facts |= {"miou": row.result["student"]["miou"], "params": row.result["student_cost"]["params"]}
    facts |= {"job_id": row.id, "spec_digest": row.spec_digest}
    return {name: str(value) for name, value in facts.items() if value is not None}


def _ms(at: datetime | None) -> int:
    """MLflow's time: milliseconds since 1970."""
    assert at is not None
    return int(at.timestamp() * 1000)


def _chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
