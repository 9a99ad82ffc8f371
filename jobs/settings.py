"""Every environment variable of the service, once. Only entry points of processes read this."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import ByteSize, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dsd_core.signals.store import DEFAULT_BYTES


class Settings(BaseSettings):
    """Read from `DSD_…`. Units are in the names: `_s` seconds."""

    model_config = SettingsConfigDict(
        env_prefix="DSD_", env_ignore_empty=True, frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    home: Path = Path("~/.dsd")
    """All state of an embedded installation: database, broker, MLflow, storage, logs."""
    storage: str | None = None
    """Where run folders and students are kept: a folder that every host sees, or `s3://bucket/prefix` with keys and
    endpoint in the usual `AWS_…` variables. Default: `home`/storage."""
    signals: Path | None = None
    """Where what teachers say about datasets is kept for further jobs: a folder, which all hosts may share. Default:
    `storage`/signals, or `home`/signals where the storage is a bucket."""
    signals_bytes: ByteSize = Field(default=ByteSize(DEFAULT_BYTES), ge=0)
    """The most it may hold; `20GiB` can be written. The least recently used goes first."""
    database_url: str | None = None
    """SQLAlchemy URL, `postgresql+psycopg://…` or `sqlite:///…`. Default: `home`/jobs.db."""
    broker_url: str | None = None
    """Celery broker, `redis://…`, `rediss://…` or `redis+socket:///…`. `dsd up` starts a Valkey where it is not set."""
    mlflow_url: str | None = None
    """MLflow tracking server. None: tracking waits until there is one."""
    mlflow_public_url: str | None = None
    """Where people reach the MLflow UI, when that differs from `mlflow_url`."""
    mlflow_experiment: str = "dsd"
    """The MLflow experiment that holds every job's run."""

    api_host: str = "127.0.0.1"
    """Address `dsd up` binds the API to."""
    api_port: int = 8000
    """Port of the API; where it is taken, `dsd up` takes the next free one and says so."""
    mlflow_port: int = 5055
    """Port of MLflow, chosen alike."""
    api_key: str | None = Field(default=None, repr=False)
    """Bearer token that every request under /api/v1 must carry. None: no authentication (bind to loopback)."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ("localhost", "127.0.0.1", "[::1]")
    """Host headers the API answers to, comma-separated; `*` for any."""
    data_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders below which datasets and weights may lie, separated by colons. Empty: anywhere the workers can read."""

    lease_s: float = 30.0
    """A job whose worker has not been heard of for this long is given to another."""
    heartbeat_s: float = 5.0
    """Between two signs of life of a worker; also the time a cancel takes to arrive."""
    tick_s: float = 5.0
    """Between two rounds of the controller. The outbox is relayed at most 0.5 s after a submission all the same."""
    grace_s: float = 30.0
    """A training process asked to stop has this long to write its checkpoint before it is killed."""
    redispatch_s: float = 15.0
    """A queued job nobody claimed is announced again after this time where a worker is idle, else after 20 times it."""
    max_attempts: int = 3
    """A job is tried this often before it fails; orderly shutdowns of a worker and pauses do not count."""
    backoff_s: float = 5.0
    """The wait before the second try of a job that failed by itself; doubles with each further one, up to 600 s."""
    stall_s: float = 300.0
    """A training process that does nothing for this long, or for 20 of its steps, is ended and tried again."""
    first_step_s: float = 1800.0
    """The same up to its first step, which may read and check large data."""
    cutoff_s: float = 900.0
    """A worker that has not reached the database for this long stops with a checkpoint; the job goes on elsewhere."""
    deaf_s: float = 60.0
    """An idle worker that hears of no job although some have waited for this long starts anew."""
    devices: str = "auto"
    """What a worker trains on: `cpu`, GPUs as `0` or `0,1`, or `auto`: all GPUs, else the CPU."""
    worker_labels: Annotated[dict[str, str], NoDecode] = {}
    """Labels of a worker that jobs can ask for, `key=value` separated by commas."""
    warm: bool = True
    """Keep a process with torch imported, from which training processes start in a fraction of the time."""
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts that a job's webhook may name, comma-separated. Empty: jobs may name none."""
    webhook_secret: str | None = Field(default=None, repr=False)
    """Key of the HMAC-SHA256 that signs the body of webhooks. None: they are not signed."""
    keep_checkpoint_days: float = Field(default=7.0, ge=0)
    """Checkpoints of jobs that ended longer ago are deleted."""
    keep_days: float | None = Field(default=None, ge=0)
    """Everything but a registered student of jobs that ended longer ago is deleted. None: kept."""
    keep_bytes: ByteSize | None = None
    """While the storage holds more, the jobs that ended first lose checkpoints, then logs and pictures, then students
    without an alias; `500GB` can be written. None: no limit."""
    max_body_bytes: int = 256 * 1024
    """Largest request body the API reads."""
    workers: int = 1
    """Worker processes that `dsd up` starts; one job each at a time."""

    @field_validator("storage", mode="before")
    @classmethod
    def _a_folder_or_a_bucket(cls, value: object) -> object:
        place = str(value) if isinstance(value, Path) else value
        if isinstance(place, str) and "://" in place and not re.fullmatch(r"s3://[^/\s]+(/\S*)?", place):
            raise ValueError(f"{place!r} is no place for run folders: write a folder, or s3://bucket/prefix.")
        return place

    @field_validator("allowed_hosts", "webhook_hosts", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return _parts(value, ",")

    @field_validator("worker_labels", mode="before")
    @classmethod
    def _split_labels(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
        if any(not (key and equals) for key, equals, _ in pairs):
            raise ValueError("write labels as key=value, separated by commas, such as gpu=a100,zone=eu.")
        return {key: label for key, _, label in pairs}

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split_at_colons(cls, value: object) -> object:
        return _parts(value, ":")

    @property
    def home_dir(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def bucket(self) -> str | None:
        """`bucket/prefix` where the storage is one; None where it is a folder."""
        place = self.storage or ""
        return place.removeprefix("s3://").rstrip("/") if place.startswith("s3://") else None

    @property
    def storage_dir(self) -> Path:
        """The storage, where it is a folder; else the home, where this host keeps its copies of run folders."""
        if self.bucket is not None:
            return self.home_dir
        return Path(self.storage or self.home_dir / "storage").expanduser().absolute()

    @property
    def signals_dir(self) -> Path:
        return (self.signals or self.storage_dir / "signals").expanduser().absolute()

    @property
    def db_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home_dir / 'jobs.db'}"

    def run_dir(self, job_id: str) -> Path:
        """The run folder of a job on this host: spec.json, events.jsonl, log.txt, checkpoints/, pictures/, student/."""
        return self.storage_dir / "runs" / job_id


@lru_cache
def settings() -> Settings:
    """The settings of this process. Raises pydantic.ValidationError that names the variable."""
    return Settings()


def _parts(value: object, separator: str) -> object:
    """The non-empty parts of a text; anything else unchanged."""
    return tuple(p.strip() for p in value.split(separator) if p.strip()) if isinstance(value, str) else value
