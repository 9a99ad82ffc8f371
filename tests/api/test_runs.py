"""A job's log and numbers while it runs and after."""

from __future__ import annotations

import pytest

from tests.api.conftest import JOBS, Service, problem_in
from tests.client.scenes import progress

LOG = b"".join(b"line %d \xc3\xa9\n" % number for number in range(1, 3001))


@pytest.fixture
def logs(service: Service) -> str:
    """The path of the logs of a job that has printed LOG."""
    job_id = service.submit()["id"]
    (service.folder(job_id) / "log.txt").write_bytes(LOG)
    return f"{JOBS}/{job_id}/logs"


def test_a_job_that_has_not_started_has_an_empty_log(service: Service) -> None:
    path = f"{JOBS}/{service.submit()['id']}/logs"
    for query in ("", "?tail=5", "?offset=7"):
        answer = service.http.get(path + query)
        assert (answer.status_code, answer.content, answer.headers["x-log-size"]) == (200, b"", "0")


def test_the_log_is_plain_text_in_utf_8(service: Service, logs: str) -> None:
    answer = service.http.get(logs)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-log-size"] == answer.headers["content-length"] == str(len(LOG))
    assert answer.content == LOG


@pytest.mark.parametrize("lines", [1, 2, 2999, 3000, 5000])
def test_the_tail_of_the_log_is_its_last_lines(service: Service, logs: str, lines: int) -> None:
    assert service.http.get(f"{logs}?tail={lines}").content == b"".join(LOG.splitlines(keepends=True)[-lines:])


def test_an_unfinished_last_line_counts_as_a_line(service: Service) -> None:
    job_id = service.submit()["id"]
    (service.folder(job_id) / "log.txt").write_bytes(b"one\n\ntwo\rthree")
    assert service.http.get(f"{JOBS}/{job_id}/logs?tail=2").content == b"\ntwo\rthree"


def test_what_came_after_an_offset_can_be_fetched(service: Service, logs: str) -> None:
    assert service.http.get(f"{logs}?offset=10").content == LOG[10:]
    assert service.http.get(f"{logs}?offset={len(LOG)}").content == b""
    assert service.http.get(f"{logs}?offset={10 * len(LOG)}").content == b""


def test_a_range_of_the_log_can_be_fetched(service: Service, logs: str) -> None:
    answer = service.http.get(logs, headers={"Range": "bytes=5-9"})
    assert (answer.status_code, answer.content) == (206, LOG[5:10])
    beyond = service.http.get(logs, headers={"Range": f"bytes={len(LOG)}-"})
    problem_in(beyond, 416, "range_not_satisfiable")


def test_a_log_that_leads_elsewhere_is_not_followed(service: Service) -> None:
    job_id = service.submit()["id"]
    (service.folder(job_id) / "log.txt").symlink_to("/etc/passwd")
    assert service.http.get(f"{JOBS}/{job_id}/logs").content == b""


def test_numbers_are_series_over_all_phases(service_on_each: Service) -> None:
    claim = service_on_each.succeed()
    data = service_on_each.http.get(f"{JOBS}/{claim.job_id}/metrics").json()["data"]
    assert [step for step, _ in data["student/loss/loss"]] == [120, 160, 200]
    assert data["student/miou"] == [[200, 0.55]] and data["teacher/miou"] == [[0, 0.65]]
    assert data["student/iou/road"] == [[200, 0.9]]
    assert "student/loss/csd" not in data  # it was never a number


def test_some_series_can_be_chosen(service: Service) -> None:
    path = f"{JOBS}/{service.succeed().job_id}/metrics"
    for query in ("names=student/miou&names=teacher/miou", "names=student/miou,teacher/miou,nothing"):
        assert set(service.http.get(f"{path}?{query}").json()["data"]) == {"student/miou", "teacher/miou"}


def test_long_series_are_thinned_and_keep_their_ends(service: Service) -> None:
    claim = service.run()
    service.say(claim, [progress("student", step, 2500, step) for step in range(1, 2501)])
    path = f"{JOBS}/{claim.job_id}/metrics?names=student/loss/loss"
    points = service.http.get(f"{path}&points=100").json()["data"]["student/loss/loss"]
    steps = [step for step, _ in points]
    assert (len(steps), steps[0], steps[-1]) == (100, 1, 2500)
    assert steps == sorted(set(steps))
    assert len(service.http.get(f"{path}&points=20000").json()["data"]["student/loss/loss"]) == 2500


def test_a_job_without_numbers_has_no_series(service: Service) -> None:
    assert service.http.get(f"{JOBS}/{service.submit()['id']}/metrics").json() == {"data": {}}
