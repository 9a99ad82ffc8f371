"""What a spec may name."""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.schemas import Catalog, Encoders, Network
from dsd_core.data import DATASETS
from dsd_core.distill.losses import LOSSES
from dsd_core.distill.presets import PRESETS
from dsd_core.models.names import OPTIONS, STRIDES, encoders
from dsd_core.models.zoo_names import ZOO_TEACHERS
from dsd_core.network_spec import DECODERS, OWN_NETWORKS, TORCHVISION_NETWORKS
from dsd_core.spec import DatasetSpec, JobSpec

router = APIRouter(tags=["catalog"])

NAMES = 100


@router.get("/catalog")
def get_catalog(
    search: Annotated[str, Query(max_length=100, description="Only encoders with this in their name.")] = "",
) -> Catalog:
    """Networks, encoders, losses and datasets, with the JSON Schema of their fields and of a whole job."""
    return Catalog(
        networks=_networks(),
        encoders=_encoders(search.strip().lower()),
        losses=_losses(),
        presets=PRESETS,
        datasets=_datasets(),
        zoo_teachers=_zoo_teachers(),
        job_schema=_schema(JobSpec),
    )


def _networks() -> list[Network]:
    decoders = {name: f"{kind} of segmentation-models-pytorch" for name, kind in DECODERS.items()}
    described = OWN_NETWORKS | TORCHVISION_NETWORKS | decoders
    return [
        Network(
            name=name,
            description=text,
            needs_encoder=name in DECODERS,
            options=list(OPTIONS[name]),
            stride=STRIDES[name],
        )
        for name, text in described.items()
    ]


def _zoo_teachers() -> list[dict[str, Any]]:
    return [
        {"name": name, "dataset": entry.dataset, "classes": entry.classes, "licence": entry.licence}
        for name, entry in ZOO_TEACHERS.items()
    ]


def _encoders(search: str) -> Encoders:
    """Those with `search` in their name; where there is none, those with a name near to it."""
    known = encoders()
    found = [name for name in known if search in name.lower()]
    found = found or difflib.get_close_matches(search, known, n=20, cutoff=0.5)
    return Encoders(count=len(found), names=found[:NAMES])


def _losses() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "description": inspect.getdoc(part),
            "needs_teacher": part.needs_teacher,
            "schema": _schema(part),
        }
        for name, part in LOSSES.items()
    ]


def _datasets() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "description": (inspect.getdoc(opens) or "").partition("\n\n")[0],
            "needs_root": name != "streets",
            "schema": _schema(DatasetSpec),
        }
        for name, opens in DATASETS.items()
    ]


@cache
def _schema(part: type[BaseModel]) -> dict[str, Any]:
    return part.model_json_schema()
