"""Teachers' signals over HTTP: what is kept, what is damaged, and what goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsd_core.signals.store import Store
from tests.api.conftest import Service, problem_in, serving
from tests.core.signals.records import KEY, SIZES, fill

SIGNALS = "/api/v1/signals"
OLD, OTHER = "a1", "b1"


@pytest.fixture
def store(service: Service) -> Store:
    """Three entries of two records, of which one was last used in 2001."""
    made = Store(service.settings.signals_dir)
    for key in (OLD, OTHER, KEY):
        with made.open(key, SIZES, {"kind": "image", "teacher": "a-teacher", "dataset": "camvid"}) as entry:
            fill(entry, [0, 1])
    os.utime(made.folder / f"{OLD}.signals" / "lock", (1e9, 1e9))
    return made


def kept(service: Service) -> list[str]:
    return [entry["key"] for entry in service.http.get(SIGNALS).json()["data"]]


def test_a_service_that_has_kept_nothing_says_where_and_how_much_it_may(service: Service) -> None:
    place = str(service.settings.storage_dir / "signals")
    assert service.http.get(SIGNALS).json() == {"place": place, "limit_bytes": 20 * 2**30, "bytes": 0, "data": []}
    assert service.http.post(f"{SIGNALS}/prune").json() == {"dry_run": False, "bytes": 0, "data": [], "in_use": []}


def test_what_is_kept_is_listed_and_counts_as_use_of_the_storage(service: Service, store: Store) -> None:
    held = service.http.get(SIGNALS).json()
    assert [entry["key"] for entry in held["data"]] == [OLD, OTHER, KEY]
    entry = held["data"][0]
    assert entry["about"] == {"kind": "image", "teacher": "a-teacher", "dataset": "camvid"}
    assert (entry["records"], entry["filled"], entry["in_use"], entry["whole"]) == (len(SIZES), 2, False, True)
    assert entry["used_at"] == "2001-09-09T01:46:40.000Z" and entry["bytes"] > 0
    assert held["bytes"] == sum(entry["bytes"] for entry in held["data"])
    used = service.http.get("/api/v1/storage").json()
    assert (used["signal_bytes"], used["runs"], used["bytes"]) == (held["bytes"], 0, 0)


def test_what_is_damaged_is_found_and_forgotten(service: Service, store: Store) -> None:
    data = store.folder / f"{KEY}.signals" / "data"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    (store.folder / f"{OLD}.signals" / "about.json").write_text("{}")
    assert service.http.post(f"{SIGNALS}/verify?key=b").json()["damaged"] == 0
    found = service.http.post(f"{SIGNALS}/verify").json()
    assert found["damaged"] == 2
    assert found["data"] == [
        {"key": OLD, "filled": 0, "damaged": 0, "whole": False},
        {"key": OTHER, "filled": 2, "damaged": 0, "whole": True},
        {"key": KEY, "filled": 1, "damaged": 1, "whole": True},
    ]
    assert service.http.post(f"{SIGNALS}/verify").json()["damaged"] == 0 and kept(service) == [OTHER, KEY]


@pytest.mark.parametrize(
    ("query", "going"),
    [
        ("", []),
        ("key=c0f", [KEY]),
        ("older_than_days=30", [OLD]),
        ("to_bytes=0", [OLD, OTHER, KEY]),
        ("to_bytes=1KiB", [OLD, OTHER, KEY]),
        ("to_bytes=1GB", []),
        ("older_than_days=0&key=a1", [OLD]),
        ("older_than_days=30&key=b1", []),
    ],
)
def test_pruning_takes_what_all_parameters_let_go(service: Service, store: Store, query: str, going: list[str]) -> None:
    dry = service.http.post(f"{SIGNALS}/prune?{query}&dry_run=true").json()
    assert dry["dry_run"] and [entry["key"] for entry in dry["data"]] == going and len(kept(service)) == 3
    done = service.http.post(f"{SIGNALS}/prune?{query}").json()
    assert done == dry | {"dry_run": False}
    assert kept(service) == [key for key in (OLD, OTHER, KEY) if key not in going]


def test_what_a_job_uses_stays_and_is_named(service: Service, store: Store) -> None:
    with store.open(OTHER, SIZES, {}):
        done = service.http.post(f"{SIGNALS}/prune?to_bytes=0").json()
    assert [entry["key"] for entry in done["in_use"]] == [OTHER] == kept(service)


def test_without_parameters_what_is_beyond_the_limit_goes(
    tmp_path: Path, small_camvid: Path, sqlite_url: str, service: Service, store: Store
) -> None:
    room = sum(held.bytes for held in store.entries()[1:])
    with serving(tmp_path, small_camvid, sqlite_url, signals=store.folder, signals_bytes=room) as smaller:
        done = smaller.http.post(f"{SIGNALS}/prune").json()
        assert [entry["key"] for entry in done["data"]] == [OLD] and kept(smaller) == [OTHER, KEY]


@pytest.mark.parametrize(
    ("query", "code", "field", "said"),
    [
        ("key=ffff", "invalid_spec", "query:key", "no entry of teacher signals named 'ffff'"),
        ("older_than_days=-1", "invalid_request", "query:older_than_days", "greater than or equal to 0"),
        ("to_bytes=many", "invalid_request", "query:to_bytes", "byte"),
        ("to_bytes=-5", "invalid_request", "query:to_bytes", "byte string"),
    ],
)
def test_a_wrong_parameter_is_named(
    service: Service, store: Store, query: str, code: str, field: str, said: str
) -> None:
    problem = problem_in(service.http.post(f"{SIGNALS}/prune?{query}"), 422, code)
    assert problem["errors"][0]["field"] == field and said in problem["errors"][0]["message"]


def test_a_key_that_begins_two_is_refused_with_both(service: Service, store: Store) -> None:
    store.open("a12", SIZES, {}).close()
    problem = problem_in(service.http.post(f"{SIGNALS}/verify?key=a"), 422, "invalid_spec")
    assert "a1, a12" in problem["hint"]
    assert len(service.http.post(f"{SIGNALS}/verify?key=a1").json()["data"]) == 1, "a whole key is that one"
