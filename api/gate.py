"""What every request passes first: the Host header must be one of ours. And what every answer carries."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import WrongHost, problem_of

_KNOWN = "dsd.host_is_known"


class KnownHosts:
    """Starlette's TrustedHostMiddleware, which refuses in plain text, made to refuse with a problem document."""

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.check = TrustedHostMiddleware(self._mark, list(allowed_hosts), www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.check(scope, receive, self._drop)
        if scope.pop(_KNOWN, False):
            await self.app(scope, receive, send)
            return
        error = WrongHost(
            "This service does not answer under the name in the Host header.", hint="DSD_ALLOWED_HOSTS lists its names."
        )
        await problem_of(error, scope["path"])(scope, receive, send)

    async def _mark(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_KNOWN] = True

    async def _drop(self, message: Message) -> None:
        """What the inner middleware would have answered."""


class NoSniff:
    """Answers are what their Content-Type says, whatever a browser makes of their bytes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, send_marked)
