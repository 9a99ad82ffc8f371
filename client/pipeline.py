"""A file of several jobs: later ones name earlier ones, which get their ids as they are queued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from client.errors import ApiError
from client.http import Client
from client.submission import submission_key
from dsd_core.errors import SpecError
from dsd_core.spec import parse_spec

Json = dict[str, Any]
_SOURCES = ("teacher", "student")  # whose `job` may be a name


def submit_all(client: Client, jobs: Sequence[Json]) -> list[Json]:
    """Queue the jobs in order and return them. All or none: where one is refused, those before it are cancelled.

    Where the service stops answering, the same call goes on where it stopped. Raises SpecError, ApiError, ServiceAway.
    """
    refuse_unclear_names(jobs)
    queued: list[Json] = []
    ids: dict[str, str] = {}
    with submission_key(client.base_url, jobs) as key:
        for place, job in enumerate(jobs):
            try:
                made = client.submit(with_ids(job, ids), key=f"{key}-{place}")
            except ApiError as error:
                if error.refused:
                    _cancel(client, queued)
                raise error if len(jobs) == 1 else _of_one(error, jobs, place) from error
            queued.append(made)
            ids[str(job.get("name"))] = made["id"]
    return queued


def stand_alone(jobs: Sequence[Json]) -> list[Json]:
    """The jobs with stand-ins for the ids that they will have, so that their fields can be checked before."""
    refuse_unclear_names(jobs)
    ids: dict[str, str] = {}
    made = []
    for place, job in enumerate(jobs, start=1):
        made.append(with_ids(job, ids))
        ids[str(job.get("name"))] = f"job{place}"
    return made


def fields_checked(job: Json) -> Json:
    """What `Client.validate` answers, as far as it can be known here of a job that stands alone. Raises SpecError."""
    spec = parse_spec(job)
    later = "Its fields are right; the rest is checked when it is queued, after the jobs that it names."
    finding = {"level": "info", "field": "", "message": later}
    return {"spec": spec.model_dump(mode="json"), "digest": spec.digest(), "findings": [finding], "estimates": {}}


def with_ids(job: Json, ids: dict[str, str]) -> Json:
    """The job with the names in `ids` replaced where it refers to other jobs."""
    job = dict(job)
    if isinstance(job.get("needs"), list):
        job["needs"] = [ids.get(name, name) if isinstance(name, str) else name for name in job["needs"]]
    for part in _SOURCES:
        fields = job.get(part)
        if isinstance(fields, dict) and isinstance(fields.get("job"), str):
            job[part] = fields | {"job": ids.get(fields["job"], fields["job"])}
    return job


def refuse_unclear_names(jobs: Sequence[Json]) -> None:
    """Raise SpecError where a job refers to a name that comes later in the file, or more than once before."""
    names = [job.get("name") for job in jobs]
    for place, job in enumerate(jobs):
        for field, name in _references(job):
            if names[:place].count(name) > 1:
                message = f"{job.get('name')}: {name!r} could be any of {names[:place].count(name)} jobs before it."
                raise SpecError(message, field=field, hint="Give each of them a name of its own.")
            if name in names[place:] and name not in names[:place]:
                message = f"{job.get('name')}: {name!r} does not come before it in the file."
                raise SpecError(message, field=field, hint="Put the job that is needed first.")


def _references(job: Json) -> Iterator[tuple[str, str]]:
    needs = job.get("needs")
    for place, name in enumerate(needs if isinstance(needs, list) else ()):
        if isinstance(name, str):
            yield f"/needs/{place}", name
    for part in _SOURCES:
        fields = job.get(part)
        if isinstance(fields, dict) and isinstance(fields.get("job"), str):
            yield f"/{part}/job", fields["job"]


def _cancel(client: Client, queued: Sequence[Json]) -> None:
    for job in reversed(queued):
        client.cancel(job["id"])


def _of_one(error: ApiError, jobs: Sequence[Json], place: int) -> ApiError:
    """The error with the job that it is about, and what has become of those before it."""
    before = ", ".join(str(job.get("name")) for job in jobs[:place])
    which = f"Job {jobs[place].get('name')} ({place + 1} of {len(jobs)} in the file)"
    said = f"{which}: {error.problem.get('detail') or error}"
    cancelled = f" Cancelled with it: {before}." if before and error.refused else ""
    return ApiError(error.status, error.problem | {"detail": said + cancelled})
