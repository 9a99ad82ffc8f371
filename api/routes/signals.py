"""Teachers' signals that are kept for further jobs, and freeing them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import ByteSize

from api.deps import SettingsOf, SignalsOf
from api.schemas import Signals, SignalsPruned, SignalsVerified
from dsd_core.signals.listing import listed, pruned, the_key, verified

router = APIRouter(tags=["signals"])

Key = Annotated[str | None, Query(max_length=64, description="The key of one entry, or how it begins.")]
Days = Annotated[float | None, Query(ge=0, description="Only entries that no job has used for so many days.")]
Bytes = Annotated[
    ByteSize | None, Query(ge=0, description="The least recently used go until what is left has so many.")
]


@router.get("/signals")
def list_signals(signals: SignalsOf, settings: SettingsOf) -> Signals:
    """What teachers said about datasets, kept so that further jobs need not ask them: least recently used first."""
    return Signals.model_validate({"limit_bytes": settings.signals_bytes, **listed(signals)})


@router.post("/signals/verify")
def verify_signals(signals: SignalsOf, key: Key = None) -> SignalsVerified:
    """Hold every record against its checksum. What is damaged is forgotten, and computed again by the next job."""
    return SignalsVerified.model_validate(verified(signals, _whole(signals, key)))


@router.post("/signals/prune")
def prune_signals(
    signals: SignalsOf,
    key: Key = None,
    older_than_days: Days = None,
    to_bytes: Bytes = None,
    dry_run: Annotated[bool, Query(description="Say what would go, and delete nothing.")] = False,
) -> SignalsPruned:
    """Delete entries: those that all of the parameters let go, without any what is beyond the store's limit. Never one
    that a job uses."""
    chosen = key is not None or older_than_days is not None
    if to_bytes is None:
        to_bytes = ByteSize(0 if chosen else signals.limit_bytes)
    done = pruned(
        signals, key=_whole(signals, key), older_than_days=older_than_days or 0.0, to_bytes=to_bytes, dry_run=dry_run
    )
    return SignalsPruned.model_validate(done)


def _whole(signals: SignalsOf, key: str | None) -> str | None:
    return None if key is None else the_key(signals, key, field="query:key")
