"""Registered models, found by name and version or alias."""

from __future__ import annotations

from sqlalchemy.orm import Session

from api.errors import ModelNotFound
from dsd_core.errors import SpecError, unknown
from jobs import store
from jobs.tables import ModelRow

LARGEST_VERSION = 2**31 - 1


def find_version(s: Session, name: str, version: str, *, field: str | None = None) -> ModelRow:
    """The version by its number or alias. The error names what there is: SpecError with `field`, else ModelNotFound."""
    row = None
    if not (version.isdecimal() and int(version[:20]) > LARGEST_VERSION) and "\0" not in name + version:
        row = store.get_model_version(s, name, version)
    if row is not None:
        return row
    error = _not_found(s, name, version, field)
    if field is not None:
        raise error
    raise ModelNotFound(error.message, hint=error.hint)


def _not_found(s: Session, name: str, version: str, field: str | None) -> SpecError:
    rows = store.list_models(s)
    names = {row.name for row in rows}
    if name not in names:
        error = unknown("registered model", name[:100], names, field=field)
        hint = error.hint if names else "No model is registered yet; every job that trains a student registers one."
        return SpecError(error.message, field=field, hint=hint)
    aliases = list(store.model_aliases(s).get(name, {}))
    versions = [str(row.version) for row in rows if row.name == name]
    return SpecError(
        f"Model {name!r} has no version or alias {version[:100]!r}.",
        field=field,
        hint=f"It has {', '.join(aliases + versions)}.",
    )
