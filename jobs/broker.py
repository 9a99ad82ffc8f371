"""Kombu's transport for Redis and Valkey, with one more way for a broker to be away: it answers, but with an error."""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ResponseError


class Transport(redis.Transport):
    """A server that becomes a replica refuses to write, and to wait for messages. It is one to connect to again; kombu
    takes it for a mistake of the program, which ends a worker, and with it the job it runs."""

    connection_errors = (*redis.Transport.connection_errors, ResponseError)


def use() -> None:
    """Let URLs that begin with redis and rediss mean this transport, in this process."""
    place = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES.update({"redis": place, "rediss": place})
