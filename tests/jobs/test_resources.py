"""Which worker may run which job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.resources import Demand, Offer, demand_of, fits, parse_demand, queue_of, queues_of

CPU = Offer("one", "host", "cpu", memory_gib=8, labels={"zone": "a", "disk": "fast"})
CUDA = Offer("two", "host", "cuda", devices=("0", "3"), memory_gib=24)

demands = st.builds(
    Demand,
    device=st.sampled_from(["any", "cpu", "cuda"]),
    processes=st.integers(1, 8),
    memory_gib=st.none() | st.floats(0.1, 1000),
    labels=st.dictionaries(st.text(max_size=5), st.text(max_size=5)).map(lambda d: tuple(sorted(d.items()))),
)


@given(demands)
def test_a_demand_is_known_by_its_text(demand: Demand) -> None:
    assert parse_demand(str(demand)) == demand
    assert str(parse_demand(str(demand))) == str(demand)


def test_the_order_of_labels_and_the_form_of_numbers_make_no_other_demand() -> None:
    one = demand_of({"resources": {"labels": {"a": "1", "b": "2"}, "memory_gib": 4}})
    other = demand_of({"resources": {"memory_gib": 4.0, "labels": {"b": "2", "a": "1"}}})
    assert str(one) == str(other)


def test_a_spec_without_resources_runs_anywhere() -> None:
    assert demand_of({}) == Demand()
    assert fits(Demand(), CPU) and fits(Demand(), CUDA)


@pytest.mark.parametrize(
    ("resources", "on_cpu", "on_cuda"),
    [
        ({"device": "cpu"}, True, False),
        ({"device": "cuda"}, False, True),
        ({"processes": 2}, True, True),
        ({"processes": 3}, True, False),  # two GPUs
        ({"memory_gib": 8}, True, True),
        ({"memory_gib": 8.5}, False, True),
        ({"memory_gib": 25}, False, False),
        ({"labels": {"zone": "a"}}, True, False),
        ({"labels": {"zone": "a", "disk": "slow"}}, False, False),
    ],
)
def test_a_job_runs_where_all_it_needs_is(resources: dict[str, Any], on_cpu: bool, on_cuda: bool) -> None:
    demand = demand_of({"resources": resources})
    assert (fits(demand, CPU), fits(demand, CUDA)) == (on_cpu, on_cuda)


@given(demands)
def test_a_job_that_fits_is_announced_where_its_worker_listens(demand: Demand) -> None:
    for offer in (CPU, CUDA, replace(CUDA, devices=tuple("0123456789"), memory_gib=2000, labels=dict(demand.labels))):
        assert not fits(demand, offer) or queue_of(demand) in queues_of(offer)
