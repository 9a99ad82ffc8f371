"""Networks that a job names by reference reach its training process as files, or the job fails and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsd_core.errors import WeightsError
from dsd_core.spec import parse_spec
from jobs import db, store
from jobs.status import Reason, Status
from tests.worker.service import Service
from worker.references import makers_of

NAMED = {"name": "a", "dataset": {"name": "streets"}, "student": {"network": "espnet"}}
ROLES = {"/teacher": {"kind": "distill"}, "/student": {"kind": "evaluate"}}


def with_source(role: str, source: dict[str, str]) -> dict[str, Any]:
    return ROLES[role] | {role.removeprefix("/"): source}


def trained(service: Service) -> tuple[str, Path]:
    """A job that has left a student, which is registered, and the student's file."""
    job = service.submit("finish")
    service.run(job)
    weights = service.folder(job) / "student" / "model.safetensors"
    weights.parent.mkdir()
    weights.touch()
    with db.begin(service.engine) as s:
        store.add_model_version(s, name="trained", version=1, job_id=job, files=[], tags={})
        store.set_aliases(s, "trained", {"latest-good": 1})
    return job, weights


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["model", "job"])
def test_a_network_named_by_reference_is_handed_over_as_its_file(service: Service, role: str, kind: str) -> None:
    made, weights = trained(service)
    job = service.submit("finish", **with_source(role, {kind: "trained" if kind == "model" else made}))
    assert service.run(job) == Reason.FINISHED
    assert (service.folder(job) / "tries.txt").read_text().split()[1] == str(weights)


def refusal(service: Service, role: str, source: dict[str, str]) -> dict[str, Any]:
    """The error of a job that fails before anything starts."""
    job = service.submit("finish", **with_source(role, source))
    assert service.run(job) == Reason.INVALID_WEIGHTS
    row = service.row(job)
    assert row.status == Status.FAILED and service.pids(job) == []
    assert row.error is not None
    return row.error


@pytest.mark.parametrize("role", ROLES)
def test_a_network_whose_files_are_gone_fails_the_job_that_names_it(service: Service, role: str) -> None:
    made, weights = trained(service)
    weights.unlink()
    for source, hint in (({"model": "trained/1"}, "another version"), ({"job": made}, "run that one again")):
        error = refusal(service, role, source)
        assert error["field"] == f"{role}/{next(iter(source))}"
        assert str(weights) in error["message"] and hint in error["hint"]


@pytest.mark.parametrize("role", ROLES)
def test_a_job_that_has_not_succeeded_lends_no_student(service: Service, role: str) -> None:
    waiting = service.submit("finish")
    for job_id, why in ((waiting, "is queued"), ("nosuchjob", "does not exist")):
        spec = parse_spec(NAMED | with_source(role, {"job": job_id}))
        with db.reading(service.engine) as s, pytest.raises(WeightsError, match=why) as caught:
            makers_of(s, spec)
        assert caught.value.field == f"{role}/job" and "Wait until" in str(caught.value.hint)


def test_a_model_that_was_never_registered_fails_the_job_that_names_it(service: Service) -> None:
    error = refusal(service, "/teacher", {"model": "nobody@best"})
    assert error["field"] == "/teacher/model" and "nobody@best" in error["message"]
