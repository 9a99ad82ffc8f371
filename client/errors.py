"""What can go wrong between a client and the service."""

from __future__ import annotations

from typing import Any, Self

import httpx

from dsd_core.errors import DsdError


class ApiError(DsdError):
    """The service refused a request; `problem` is its RFC 9457 document."""

    exit_code = 1

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status, self.problem = status, problem
        errors = [error for error in problem.get("errors") or [] if isinstance(error, dict)]
        first = errors[0] if errors else {}
        detail = problem.get("detail") or problem.get("title") or f"The service answered with status {status}."
        wrong = [(error.get("field") or "/", error.get("message")) for error in errors[:20]]
        lines = [detail, *[f"  {field}: {message}" for field, message in wrong if str(message) not in detail]]
        super().__init__(
            "\n".join(lines),
            field=first.get("field"),
            hint=problem.get("hint") or first.get("hint") or _hint(status),
        )

    @property
    def refused(self) -> bool:
        """The request is wrong and will be refused again; else repeating it may help."""
        return 400 <= self.status < 500 and self.status not in (408, 429)

    @classmethod
    def of(cls, answer: httpx.Response) -> Self:
        """The error an HTTP response carries, problem document or not."""
        try:
            problem = answer.json()
        except ValueError:
            problem = {"detail": f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}."}
        return cls(answer.status_code, problem if isinstance(problem, dict) else {})

    def as_dict(self) -> dict[str, str | None]:
        return super().as_dict() | {"code": self.problem.get("code") or f"http_{self.status}"}


class ServiceAway(DsdError):
    """The service does not answer."""

    code = "service_away"
    exit_code = 1

    def __init__(self, url: str) -> None:
        super().__init__(f"The service does not answer at {url}.", hint="Start it with `dsd up` or set DSD_URL.")


class DownloadError(DsdError):
    """A file did not arrive as it was sent."""

    code = "download"
    exit_code = 1


def _hint(status: int) -> str | None:
    return "Set DSD_API_KEY to the key of this service." if status in (401, 403) else None
