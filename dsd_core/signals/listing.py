"""What people ask of a signal store, as plain JSON: the same over HTTP and without a service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dsd_core.errors import SpecError, unknown
from dsd_core.signals.store import Held, Store, Verified

Json = dict[str, Any]
DAY_S = 24 * 3600.0
SHORT = 12
"""Characters of a key that people are shown; a key may be given by how it begins."""
SHOWN = ("kind", "teacher", "dataset")
"""Of what an entry's maker said of it, what fits on a line."""


def listed(store: Store) -> Json:
    """Every entry, least recently used first. Raises StorageError."""
    held = store.entries()
    return {"place": str(store.folder), "bytes": sum(item.bytes for item in held), "data": [_entry(it) for it in held]}


def verified(store: Store, key: str | None = None) -> Json:
    """Hold one entry or all against their checksums, and forget what is damaged. Raises StorageError."""
    found = store.verify(key)
    damaged = sum(item.damaged for item in found) + sum(not item.whole for item in found)
    return {"damaged": damaged, "data": [_verified(item) for item in found]}


def pruned(
    store: Store,
    *,
    key: str | None = None,
    older_than_days: float = 0.0,
    to_bytes: int = 0,
    dry_run: bool = False,
) -> Json:
    """Remove entries as `Store.prune` does. Raises StorageError."""
    found = store.prune(key=key, unused_s=older_than_days * DAY_S, to_bytes=to_bytes, dry_run=dry_run)
    removed, in_use = ([_entry(item) for item in items] for items in (found.removed, found.in_use))
    return {"dry_run": dry_run, "bytes": sum(item["bytes"] for item in removed), "data": removed, "in_use": in_use}


def the_key(store: Store, start: str, *, field: str) -> str:
    """The key that begins so. Raises SpecError where it is none or several, and StorageError."""
    keys = [held.key for held in store.entries()]
    found = [key for key in keys if key.startswith(start)]
    if len(found) > 1 and start not in found:
        raise SpecError(f"{start!r} begins {len(found)} keys.", field=field, hint=f"Write more of {', '.join(found)}.")
    if not found:
        raise unknown("entry of teacher signals", start, keys, field=field)
    return start if start in found else found[0]


def entry_text(entry: Json) -> str:
    """One line for an entry of these answers."""
    filled = f"{entry['filled']}/{entry['records']} records" if entry["whole"] else "damaged"
    use = "in use" if entry["in_use"] else f"last used {entry['used_at']}"
    about = ", ".join(f"{name} {entry['about'][name]}" for name in SHOWN if name in entry["about"])
    return f"{entry['key'][:SHORT]}  {filled}, {entry['bytes'] / 1e6:,.1f} MB, {use}  {about}".rstrip()


def _entry(held: Held) -> Json:
    return {**vars(held), "about": dict(held.about), "created_at": _at(held.created_at), "used_at": _at(held.used_at)}


def _verified(item: Verified) -> Json:
    return dict(vars(item))


def _at(seconds: float) -> str:
    """RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
