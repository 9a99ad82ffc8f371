from __future__ import annotations

from typing import Any

from sqlalchemy import Engine

from jobs import db, store
from jobs.status import Reason
from tests.jobs.builders import a_queued_job, a_running_job, cancel, job


def due(engine: Engine, limit: int = 50) -> list[str]:
    with db.reading(engine) as s:
        return [row.id for row in store.tracking_due(s, limit)]


def track(engine: Engine, job_id: str, **fields: Any) -> None:
    with db.begin(engine) as s:
        store.set_tracking(s, job_id, **fields)


def test_a_job_is_due_until_mlflow_has_all_of_its_history(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    assert due(engine) == [job_id]
    track(engine, job_id, tracking="synced", tracking_seq=1, mlflow_run_id="run")
    assert due(engine) == [] and job(engine, job_id).mlflow_run_id == "run"
    cancel(engine, job_id)
    assert due(engine) == [job_id]


def test_a_job_that_moved_on_meanwhile_stays_due(engine: Engine) -> None:
    job_id = a_running_job(engine).job_id
    track(engine, job_id, tracking="synced", tracking_seq=1)
    assert due(engine) == [job_id]
    assert job(engine, job_id).tracking == "pending"


def test_copied_events_make_a_job_due(engine: Engine) -> None:
    claim = a_running_job(engine)
    track(engine, claim.job_id, tracking="synced", tracking_seq=2)
    with db.begin(engine) as s:
        store.append_events(s, claim, [({"type": "note"}, 10)])
    assert due(engine) == [claim.job_id]


def test_jobs_whose_last_try_failed_come_after_the_others(engine: Engine) -> None:
    stalled, fresh = a_queued_job(engine), a_queued_job(engine)
    track(engine, stalled, tracking="stalled", tracking_error="MLflow is away")
    assert due(engine) == [fresh, stalled]
    assert due(engine, limit=1) == [fresh]


def test_an_outage_of_mlflow_never_changes_the_outcome(engine: Engine) -> None:
    claim = a_running_job(engine)
    with db.begin(engine) as s:
        store.finish(s, claim, Reason.FINISHED, result={}, run_seconds=1.0)
    track(engine, claim.job_id, tracking="stalled", tracking_error="MLflow is away")
    assert job(engine, claim.job_id).status == "succeeded"


def test_models_are_found_by_version_and_by_alias(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    files = [{"path": "model.onnx", "bytes": 3, "sha256": "ab"}]
    with db.begin(engine) as s:
        for version in (1, 2):
            store.add_model_version(s, name="net", version=version, job_id=job_id, files=files, tags={}, miou=0.5)
        store.set_aliases(s, "net", {"latest-good": 1, "champion": 2})
        store.set_aliases(s, "net", {"latest-good": 2})
    with db.reading(engine) as s:
        assert [(row.name, row.version) for row in store.list_models(s)] == [("net", 2), ("net", 1)]
        assert store.model_aliases(s) == {"net": {"latest-good": 2}}
        by_alias = store.get_model_version(s, "net", "latest-good")
        assert by_alias is not None and by_alias.version == 2 and by_alias.files == files
        by_version = store.get_model_version(s, "net", "1")
        assert by_version is not None and by_version.version == 1
        for missing in ("champion", "3"):
            assert store.get_model_version(s, "net", missing) is None
        assert store.get_model_version(s, "other", "1") is None


def test_registering_a_version_twice_leaves_one(engine: Engine) -> None:
    job_id = a_queued_job(engine)
    for miou in (0.1, 0.2):
        with db.begin(engine) as s:
            store.add_model_version(s, name="net", version=1, job_id=job_id, files=[], tags={"a": "b"}, miou=miou)
    with db.reading(engine) as s:
        assert [row.miou for row in store.list_models(s)] == [0.2]
