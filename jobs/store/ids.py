"""Ids of jobs: short, and in the order of submission."""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.tables import JobRow


def new_id(s: Session, now: datetime) -> str:
    """Microseconds since 1970 and 40 random bits, in base 32. Ids rise even when the clock stands or is set back."""
    micros = int(now.timestamp() * 1e6)
    newest = s.execute(select(func.max(JobRow.id))).scalar_one()
    if newest:
        micros = max(micros, _from_base32(newest[:11]) + 1)
    return _to_base32(micros, 11) + _to_base32(secrets.randbits(40), 8)


_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


def _to_base32(number: int, length: int) -> str:
    return "".join(_DIGITS[number >> 5 * i & 31] for i in reversed(range(length)))


def _from_base32(text: str) -> int:
    number = 0
    for digit in text:
        number = number * 32 + _DIGITS.index(digit)
    return number
