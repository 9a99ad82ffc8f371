"""Every error a user can meet, as one tree.

    DsdError                  something a user can read and act on
    ├── SpecError             the job file asks for something that does not exist or does not fit
    ├── DataError             the dataset is missing, unreadable or labelled out of range
    │   └── NoSplitError      the dataset is there, but not this split of it
    ├── WeightsError          a weights file is missing, damaged or of another shape
    ├── WeakTeacherError      the teacher scores below the floor on the job's own validation split
    ├── DivergedError         a loss became NaN or infinite
    ├── OutOfMemoryError      the device or the machine has too little memory
    ├── StorageError          the disk is full or cannot be written
    ├── NothingToKeepError    the run was to stop and keep its best student, but has none yet
    ├── PeerLostError         another process of the same run has ended
    └── Interrupted           the run was asked to stop; its checkpoint is safe

Each class carries a stable `code` (also the reason a job ends with, `jobs.status.Reason`) and the exit code of a
training process that ends with it. Domain errors know nothing of HTTP; `api.errors` holds the table from class to
status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar


class DsdError(Exception):
    """Something went wrong that the message explains."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70

    def __init__(self, message: str | None = None, *, field: str | None = None, hint: str | None = None) -> None:
        """`message` says what is wrong and where, `hint` what to do; `field` is a JSON pointer into the spec."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.field = field
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def as_dict(self) -> dict[str, str | None]:
        return {"code": self.code, "message": self.message, "hint": self.hint, "field": self.field}


class SpecError(DsdError):
    """The job specification cannot be run."""

    code = "invalid_spec"
    exit_code = 78


class DataError(DsdError):
    """The dataset cannot be used."""

    code = "invalid_data"
    exit_code = 65

    def __init__(
        self,
        message: str | None = None,
        *,
        field: str | None = None,
        hint: str | None = None,
        files: Sequence[str] = (),
    ) -> None:
        """`files` are all that the message is about, where it lists only the first of many."""
        super().__init__(message, field=field, hint=hint)
        self.files = tuple(files)


class NoSplitError(DataError):
    """The dataset has no such split."""


class WeightsError(DsdError):
    """The weights file cannot be used."""

    code = "invalid_weights"
    exit_code = 66


class WeakTeacherError(DsdError):
    """The teacher scores below the floor."""

    code = "weak_teacher"
    exit_code = 67


class DivergedError(DsdError):
    """A loss became NaN or infinite."""

    code = "diverged"
    exit_code = 77


class OutOfMemoryError(DsdError):
    """The device or the machine has too little memory for this job."""

    code = "out_of_memory"
    exit_code = 71


class StorageError(DsdError):
    """The run folder cannot be written."""

    code = "storage"
    exit_code = 74


class NothingToKeepError(DsdError):
    """The run was stopped before its student had been trained at all."""

    code = "nothing_to_keep"
    exit_code = 69


class PeerLostError(DsdError):
    """Another process of this run has ended."""


class Interrupted(DsdError):
    """The run was asked to stop; it continues from its checkpoint when started again."""

    code = "interrupted"
    exit_code = 75


def unknown(kind: str, name: str, known: Iterable[str], *, field: str | None = None) -> SpecError:
    """An error for a name that does not exist: says the nearest known names, and all of them where they are few."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    listed = near or known[:20]
    more = f" (and {len(known) - len(listed)} more)" if len(known) > len(listed) else ""
    hint = f"{'Did you mean' if near else 'Known'}: {', '.join(listed)}{more}{'?' if near else '.'}"
    return SpecError(f"There is no {kind} named {name!r}.", field=field, hint=hint)


LISTED_NAMES = 20


def listed(names: Sequence[str]) -> str:
    """Up to 20 names for a message, and how many more there are."""
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(map(shown, names[:LISTED_NAMES])) + more


def shown(name: object) -> str:
    """A name or path for a message: as it is where it can be printed on one line, else escaped and in quotes."""
    text = str(name)
    return text if text.isprintable() else ascii(text)
