"""A proxy for TCP and Unix sockets that can fail the way networks do, while connections are open."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal

Address = Path | tuple[str, int]  # of a Unix socket, or host and port
Mode = Literal["pass", "cut", "blackhole", "half_open"]
CHUNK_BYTES = 65536


class Proxy:
    """Listens at `address` and hands everything on to `server`, until told otherwise.

    Modes: `pass`; `cut` closes what is open and refuses what comes; `blackhole` accepts and keeps silent in both
    directions; `half_open` hands requests on, but no answers.
    """

    def __init__(self, address: Address, server: Address) -> None:
        self.address = address
        self.server = server
        self.mode: Mode = "pass"
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.connections: set[_Connection] = set()
        self.resets = 0
        self._doomed_commit: tuple[bytes, bool] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name=f"proxy {address}", daemon=True)
        self._thread.start()
        self._listener = self._run(self._listen())

    def listens_at(self) -> Any:
        """The address with the port that was found free, where it was given as 0."""
        return self._listener.sockets[0].getsockname()

    def set(self, mode: Mode) -> None:
        """Change the mode, for open connections as well."""
        self.mode = mode
        if mode == "cut":
            self.reset()

    def reset(self) -> None:
        """Break every open connection; TCP clients hear a reset, others an end."""
        self._run(self._break(tuple(self.connections)))

    def reset_at_commit(self, after: bytes, *, reaches_server: bool) -> None:
        """Break the connection that sends COMMIT in a transaction that has sent `after`; once.

        Where the COMMIT reaches the server the client cannot tell whether it did.
        """
        self._doomed_commit = after, reaches_server

    def close(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> asyncio.Server:
        if isinstance(self.address, Path):
            return await asyncio.start_unix_server(self._serve, self.address)
        return await asyncio.start_server(self._serve, *self.address)

    async def _end(self) -> None:
        self._listener.close()
        await self._break(tuple(self.connections))

    async def _break(self, connections: tuple[_Connection, ...]) -> None:
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.ended.wait() for connection in connections))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        if self.mode == "cut":
            connection.abort()
            return
        self.connections.add(connection)
        try:
            with suppress(OSError, asyncio.CancelledError):
                await self._join(connection, reader)
        finally:
            connection.abort()
            self.connections.discard(connection)
            connection.ended.set()

    async def _join(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        where = self.server
        opening = asyncio.open_unix_connection(where) if isinstance(where, Path) else asyncio.open_connection(*where)
        answers, connection.server = await opening
        connection.pumps = [
            asyncio.ensure_future(self._pump(connection, reader, connection.server, requests=True)),
            asyncio.ensure_future(self._pump(connection, answers, connection.client, requests=False)),
        ]
        await asyncio.wait(connection.pumps, return_when=asyncio.FIRST_COMPLETED)

    async def _pump(
        self, connection: _Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, requests: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                if requests and self._breaks_at_commit(connection, data):
                    await self._deliver_and_break(connection, sink, data)
                    return
                await self._wait(len(data), requests)
                sink.write(data)
                await sink.drain()

    async def _wait(self, size: int, requests: bool) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.bytes_per_s:
            await asyncio.sleep(size / self.bytes_per_s)
        while self.mode == "blackhole" or (self.mode == "half_open" and not requests):
            await asyncio.sleep(0.02)

    def _breaks_at_commit(self, connection: _Connection, data: bytes) -> bool:
        if self._doomed_commit is None:
            return False
        connection.sent += data
        if b"COMMIT" not in data:
            return False
        doomed = self._doomed_commit[0] in connection.sent
        connection.sent.clear()
        return doomed

    async def _deliver_and_break(self, connection: _Connection, sink: asyncio.StreamWriter, data: bytes) -> None:
        assert self._doomed_commit is not None
        _, reaches_server = self._doomed_commit
        self._doomed_commit = None
        self.resets += 1
        if reaches_server:
            connection.pumps[1].cancel()  # the answer must not get through
            sink.write(data)
            await sink.drain()
            await asyncio.sleep(0.3)  # the server works on it
        connection.abort()


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    pumps: list[asyncio.Future[None]] = field(default_factory=list)
    sent: bytearray = field(default_factory=bytearray)  # by the client since its last COMMIT
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def abort(self) -> None:
        """End both sides at once; TCP as a reset, not as an orderly end."""
        for pump in self.pumps:
            pump.cancel()
        for writer in (self.client, self.server):
            if writer is not None:
                _never_linger(writer)
                writer.transport.abort()


def _never_linger(writer: asyncio.StreamWriter) -> None:
    own: socket.socket | None = writer.get_extra_info("socket")
    if own is not None and own.family != socket.AF_UNIX and not writer.transport.is_closing():
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
