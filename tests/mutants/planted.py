"""Bugs to plant in the code, one at a time, and for each the tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass

from dsd_core.signals.locks import LOCKS


@dataclass(frozen=True)
class Mutant:
    """A bug: in `file`, `code` (which stands there once) becomes `bug`. At least one of `tests` must fail then."""

    name: str
    file: str
    code: str
    bug: str
    tests: tuple[str, ...]


CLAIMS = "tests/jobs/test_claims.py"
SIGNALS = "tests/core/signals/test_signal_store.py"

MUTANTS = (
    Mutant(
        "a claim that was lost still counts",
        "jobs/store/claims.py",
        "return JobRow.id == claim.job_id, JobRow.fence == claim.fence, JobRow.status.in_(HELD)",
        "return JobRow.id == claim.job_id, JobRow.status.in_(HELD)",
        (f"{CLAIMS}::test_a_lost_claim_changes_nothing[sqlite]",),
    ),
    Mutant(
        "a job is claimed whatever its status",
        "jobs/store/queueing.py",
        "return and_(queued, or_(",
        "return and_(or_(",
        (
            "tests/jobs/test_queueing.py::test_a_job_that_the_version_before_has_queued_or_claimed_is_treated_rightly[sqlite]",
        ),
    ),
    Mutant(
        "a job is claimed out of no line",
        "jobs/store/claims.py",
        "JobRow.line.is_not(None), JobRow.attempt == attempt",
        "JobRow.attempt == attempt",
        ("tests/jobs/test_requests.py::test_a_paused_job_is_not_claimed_until_it_is_resumed[sqlite]",),
    ),
    Mutant(
        "a message of an attempt before starts the job",
        "jobs/store/claims.py",
        "JobRow.line.is_not(None), JobRow.attempt == attempt",
        "JobRow.line.is_not(None)",
        (f"{CLAIMS}::test_a_message_of_another_attempt_is_ignored[sqlite]",),
    ),
    Mutant(
        "a back-off is not waited for",
        "jobs/store/queueing.py",
        "or_(JobRow.not_before.is_(None), JobRow.not_before <= now)",
        "or_(JobRow.not_before.is_(None), JobRow.not_before.is_not(None))",
        ("tests/jobs/test_queueing.py::test_a_further_try_waits_for_its_back_off[sqlite]",),
    ),
    Mutant(
        "a heartbeat does not prolong the lease",
        "jobs/store/claims.py",
        ".values(heartbeat_at=now, lease_expires_at=now + timedelta(seconds=lease_s), updated_at=now)",
        ".values(heartbeat_at=now, updated_at=now)",
        (f"{CLAIMS}::test_a_beat_prolongs_the_lease[sqlite]",),
    ),
    Mutant(
        "a job that is being cancelled can succeed",
        "jobs/store/claims.py",
        "    if row.status == Status.CANCELLING:\n        return Status.CANCELLED, {}\n",
        "",
        (f"{CLAIMS}::test_a_cancelling_job_becomes_cancelled_however_it_ends[finished]",),
    ),
    Mutant(
        "a lease without an end never expires",
        "jobs/store/claims.py",
        "(JobRow.lease_expires_at.is_(None)) | (JobRow.lease_expires_at < now)",
        "JobRow.lease_expires_at < now",
        (f"{CLAIMS}::test_a_lease_without_an_end_counts_as_lapsed[sqlite]",),
    ),
    Mutant(
        "a live lease is taken",
        "jobs/store/claims.py",
        "select(JobRow).where(JobRow.status.in_(HELD), lapsed)",
        "select(JobRow).where(JobRow.status.in_(HELD))",
        (f"{CLAIMS}::test_only_a_lapsed_lease_is_taken_away[sqlite]",),
    ),
    Mutant(
        "a job that is queued again keeps its fence",
        "jobs/store/claims.py",
        '{"fence": JobRow.fence + 1, "worker": None,',
        '{"worker": None,',
        (f"{CLAIMS}::test_a_lost_worker_costs_an_attempt_and_the_job_is_announced_again[sqlite]",),
    ),
    Mutant(
        "tries have no limit",
        "jobs/store/claims.py",
        "again = row.attempt < row.max_attempts and",
        "again =",
        (f"{CLAIMS}::test_a_worker_lost_on_the_last_attempt_fails_the_job[sqlite]",),
    ),
    Mutant(
        "a shutdown of the worker costs an attempt",
        "jobs/store/claims.py",
        'return Status.QUEUED, {"releases": JobRow.releases + 1}',
        'return Status.QUEUED, {"attempt": JobRow.attempt + 1}',
        (f"{CLAIMS}::test_a_released_job_keeps_its_attempt[sqlite]",),
    ),
    Mutant(
        "a pause is forgotten when the worker is lost",
        "jobs/store/claims.py",
        "    if row.request == Request.PAUSE:\n        return",
        "    if row.request == Request.PAUSE and reason is Reason.PAUSED:\n        return",
        ("tests/jobs/test_requests.py::test_a_pause_holds_although_the_worker_is_lost[sqlite]",),
    ),
    Mutant(
        "events that were sent twice are there twice",
        "jobs/store/claims.py",
        "for event, offset in events if offset > row.events_offset]",
        "for event, offset in events]",
        (f"{CLAIMS}::test_events_are_copied_once_however_often_they_are_sent[sqlite]",),
    ),
    Mutant(
        "a move is not written into the history",
        "jobs/store/moves.py",
        "    record_move(s, after, before, after.worker or worker, now)\n",
        "",
        ("tests/jobs/test_requests.py::test_a_retry_is_a_new_job_that_knows_where_to_go_on[sqlite]",),
    ),
    Mutant(
        "a further try is not announced",
        "jobs/store/queueing.py",
        "if announced is None and waits:",
        "if announced is None and waits and row.attempt == 1:",
        (f"{CLAIMS}::test_a_lost_worker_costs_an_attempt_and_the_job_is_announced_again[sqlite]",),
    ),
    Mutant(
        "a job that was claimed keeps its message",
        "jobs/store/queueing.py",
        "elif announced is not None and not waits:",
        "elif announced is not None and row.paused_at is not None:",
        (f"{CLAIMS}::test_a_claim_raises_the_fence_and_takes_the_message_away[sqlite]",),
    ),
    Mutant(
        "a paused job stays in its line",
        "jobs/store/queueing.py",
        "row.status == Status.QUEUED and row.paused_at is None and row.needs_left == 0",
        "row.status == Status.QUEUED and row.needs_left == 0",
        ("tests/jobs/test_requests.py::test_a_paused_job_is_not_claimed_until_it_is_resumed[sqlite]",),
    ),
    Mutant(
        "the end of a job does not free those that need it",
        "jobs/store/moves.py",
        "            row.needs_left = needs_left(s, row.id)\n",
        "",
        ("tests/jobs/test_needs.py::test_a_job_starts_when_all_it_needs_have_succeeded[sqlite]",),
    ),
    Mutant(
        "a job waits for ever for one that has failed",
        "jobs/store/moves.py",
        "            move(s, row, Status.FAILED, Reason.NEED_FAILED, now,",
        "            row.status == Status.QUEUED or move(s, row, Status.FAILED, Reason.NEED_FAILED, now,",
        (
            "tests/jobs/test_needs.py::test_what_needs_a_job_that_does_not_succeed_fails_with_it_to_the_last[sqlite-fails]",
        ),
    ),
    Mutant(
        "two relays publish the same message",
        "jobs/store/outbox.py",
        "row.next_try_at = now + timedelta(seconds=RELAY_HOLD_S)",
        "row.next_try_at = now",
        ("tests/jobs/test_outbox.py::test_two_relays_get_different_messages[sqlite]",),
    ),
    Mutant(
        "a lost message is never sent again",
        "jobs/store/outbox.py",
        "lost = OutboxRow.sent_at < now - timedelta(seconds=wait_s)",
        "lost = OutboxRow.sent_at > now",
        (
            "tests/jobs/test_outbox.py::"
            "test_a_lost_message_is_sent_again_as_soon_as_a_worker_that_is_idle_should_have_come[sqlite]",
        ),
    ),
    Mutant(
        "a key used for another request gives the old job",
        "jobs/store/submission.py",
        "if used.fingerprint != fingerprint:",
        "if not used.fingerprint:",
        ("tests/jobs/test_submission.py::test_the_same_key_for_another_request_is_refused[sqlite]",),
    ),
    Mutant(
        "news that come while MLflow is written to are left out",
        "jobs/store/tracking.py",
        'values["tracking"] = case((behind, "pending"), else_="synced")',
        'values["tracking"] = case((behind, "synced"), else_="synced")',
        ("tests/jobs/test_tracking.py::test_a_job_that_moved_on_meanwhile_stays_due[sqlite]",),
    ),
    Mutant(
        "the reconciler gives workers no time after it was cut off itself",
        "worker/controller.py",
        "lost = store.expire_leases(s) if now >= self.patient_until else []",
        "lost = store.expire_leases(s)",
        ("tests/worker/test_controller.py::test_after_a_time_without_the_database_workers_get_one_lease_again",),
    ),
    Mutant(
        "a message counts as sent while the broker is away",
        "worker/controller.py",
        "            break\n",
        "            pass\n",
        ("tests/worker/test_controller.py::test_a_message_stays_in_the_outbox_while_the_broker_is_away",),
    ),
    Mutant(
        "the name of a checkpoint is not made durable",
        "dsd_core/checkpoint.py",
        "disk.sync_folder(folder)\n",
        "pass\n",
        (
            "tests/core/test_checkpoint_crashes.py::"
            "test_a_crash_at_any_step_of_the_writer_leaves_the_old_checkpoint_or_the_new_one",
        ),
    ),
    Mutant(
        "a checkpoint that does not match its manifest is taken",
        "dsd_core/checkpoint.py",
        "if _manifest(contents) != manifest:",
        "if not manifest:",
        ("tests/core/test_checkpoint.py::test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so",),
    ),
    Mutant(
        "a record is served whatever its digest says",
        "dsd_core/signals/entry.py",
        "record is not None and self._digest(number, record) == digest",
        "record is not None",
        (f"{SIGNALS}::test_a_flipped_bit_is_never_served_and_is_mended_by_filling[data]",),
    ),
    Mutant(
        "a digest does not know whose it is",
        "dsd_core/signals/entry.py",
        "xxhash.xxh3_128(self.key.encode(), seed=number)",
        "xxhash.xxh3_128(self.key.encode())",
        (f"{SIGNALS}::test_a_record_in_the_place_of_another_is_not_served",),
    ),
    Mutant(
        "a record is filled without its lock",
        "dsd_core/signals/entry.py",
        "mine = not self._held[number] and self._lock.try_lock(1 + number, exclusive=True)",
        "mine = True",
        (f"{SIGNALS}::test_processes_that_fill_one_entry_fill_each_record_once[{LOCKS.__name__}]",),
    ),
    Mutant(
        "a record that another has filled meanwhile is written over",
        "dsd_core/signals/entry.py",
        "            if self._record(number) is not None:  # by one",
        "            if False:  # by one",
        (
            f"{SIGNALS}::test_who_has_waited_too_long_for_a_stopped_process_fills_the_records_and_they_stay"
            f"[{LOCKS.__name__}]",
        ),
    ),
    Mutant(
        "an entry that came into use is removed",
        "dsd_core/signals/store.py",
        "if not lock.try_lock(IN_USE, exclusive=True) or not is_locked(path, lock):",
        "if not is_locked(path, lock):",
        (f"{SIGNALS}::test_an_entry_that_is_opened_while_it_is_removed_stays[{LOCKS.__name__}]",),
    ),
)
