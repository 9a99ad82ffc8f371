"""What the storage holds, and freeing it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Database, SettingsOf, SignalsOf, StorageOf
from api.schemas import Pruned, Removal, StorageUse
from jobs import retention

router = APIRouter(tags=["storage"])


@router.get("/storage")
def get_storage(engine: Database, storage: StorageOf, signals: SignalsOf, settings: SettingsOf) -> StorageUse:
    """What the storage holds, and the rules by which it is freed every hour."""
    return StorageUse(
        place=storage.place,
        keep_checkpoint_days=settings.keep_checkpoint_days,
        keep_days=settings.keep_days,
        keep_bytes=settings.keep_bytes,
        **asdict(retention.usage(engine, storage, signals)),
    )


@router.post("/storage/prune")
def prune_storage(
    engine: Database,
    storage: StorageOf,
    settings: SettingsOf,
    dry_run: Annotated[bool, Query(description="Say what would go, and delete nothing.")] = False,
) -> Pruned:
    """Delete now what the rules let go. Repeating it is harmless."""
    removals = retention.prune(engine, storage, retention.rules_of(settings), dry_run=dry_run)
    data = [Removal.model_validate(asdict(removal)) for removal in removals]
    return Pruned(dry_run=dry_run, bytes=sum(removal.bytes for removal in removals), data=data)
