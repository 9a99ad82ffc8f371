"""What MLflow has of each job, and the models it has registered."""

from __future__ import annotations

from typing import Any

from sqlalchemy import case, delete, select, update
from sqlalchemy.orm import Session

from jobs.db import db_now
from jobs.tables import JobRow, Json, ModelAliasRow, ModelRow


def tracking_due(s: Session, limit: int) -> list[JobRow]:
    """Jobs of which MLflow lacks events; those whose last try failed come after the others."""
    found: list[JobRow] = []
    for tracking in ("pending", "stalled"):
        query = select(JobRow).where(JobRow.tracking == tracking).order_by(JobRow.id).limit(limit - len(found))
        found += s.scalars(query, execution_options={"populate_existing": True})
    return found


def set_tracking(s: Session, job_id: str, **fields: Any) -> None:
    """Set `tracking`, `tracking_seq`, `tracking_error`, `mlflow_run_id` or `model_version`.

    A job whose history has grown beyond `tracking_seq` stays pending where `synced` is asked for.
    """
    unknown = set(fields) - {"tracking", "tracking_seq", "tracking_error", "mlflow_run_id", "model_version"}
    assert not unknown, f"not tracking fields: {sorted(unknown)}"
    values = dict(fields)
    if fields.get("tracking") == "synced":
        behind = JobRow.last_seq > fields.get("tracking_seq", JobRow.tracking_seq)
        values["tracking"] = case((behind, "pending"), else_="synced")
    s.execute(
        update(JobRow).where(JobRow.id == job_id).values(values), execution_options={"synchronize_session": False}
    )


def add_model_version(
    s: Session,
    *,
    name: str,
    version: int,
    job_id: str,
    files: list[dict[str, Any]],
    tags: Json,
    miou: float | None = None,
) -> ModelRow:
    """Write down a registered version; one that is already there is brought up to date."""
    row = s.get(ModelRow, (name, version)) or ModelRow(name=name, version=version, created_at=db_now(s))
    row.job_id, row.files, row.tags, row.miou = job_id, files, tags, miou
    s.add(row)
    s.flush()
    return row


def set_aliases(s: Session, name: str, aliases: dict[str, int]) -> None:
    """Make these the aliases of a model, and no others."""
    s.execute(delete(ModelAliasRow).where(ModelAliasRow.name == name))
    s.add_all(ModelAliasRow(name=name, alias=alias, version=version) for alias, version in aliases.items())
    s.flush()


def list_models(s: Session) -> list[ModelRow]:
    """All registered versions, by name, newest version first."""
    return list(s.scalars(select(ModelRow).order_by(ModelRow.name, ModelRow.version.desc())))


def model_aliases(s: Session) -> dict[str, dict[str, int]]:
    """The version of each alias of each model: {name: {alias: version}}."""
    found: dict[str, dict[str, int]] = {}
    for row in s.scalars(select(ModelAliasRow).order_by(ModelAliasRow.name, ModelAliasRow.alias)):
        found.setdefault(row.name, {})[row.alias] = row.version
    return found


def get_model_version(s: Session, name: str, alias_or_version: str) -> ModelRow | None:
    """A version by its number or an alias. None: there is no such model, version or alias."""
    if alias_or_version.isdecimal():
        return s.get(ModelRow, (name, int(alias_or_version)))
    alias = s.get(ModelAliasRow, (name, alias_or_version))
    return s.get(ModelRow, (name, alias.version)) if alias else None
