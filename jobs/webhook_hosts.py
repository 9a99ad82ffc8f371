"""Whom the service may call for a job: hosts that the operator has listed, over https, at public addresses. Pure.

A job comes from anyone who may submit; the service stands where it reaches what they do not: the cloud's metadata, the
broker, other machines behind the firewall. So the host must be one of DSD_WEBHOOK_HOSTS, and what its name leads to a
public address, unless that very address is listed too. `localhost` lists the loopback addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from dsd_core.errors import SpecError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def check_address(url: str, hosts: Collection[str]) -> None:
    """Raise SpecError for a webhook whose host is not listed, or that is neither https nor on this machine."""
    parts = urlsplit(url)
    host = _plain(parts.hostname or "")
    if host not in map(_plain, hosts):
        raise SpecError(
            f"This service calls no webhooks at {host[:200]!r}.",
            field="/webhook",
            hint=f"It calls {', '.join(hosts)}." if hosts else "Its operator can list hosts in DSD_WEBHOOK_HOSTS.",
        )
    if parts.scheme != "https" and not _is_loopback(host):
        raise SpecError(
            "A webhook needs https: who listens on the way would read the message, and could change it.",
            field="/webhook",
            hint=f"Write https://{host[:200]}/…",
        )


def may_connect(host: str, address: str, hosts: Collection[str]) -> bool:
    """Whether a listed host may be called at the address its name leads to."""
    found = _address(address)
    listed = {_plain(entry) for entry in hosts}
    if _plain(host) not in listed or found is None:
        return False
    return _is_public(found) or str(found) in listed or (found.is_loopback and "localhost" in listed)


def _plain(host: str) -> str:
    """Lower case, without the brackets of IPv6 and the dot of the root; an IP address in its shortest form."""
    text = host.strip("[]").rstrip(".").lower()
    address = _address(text)
    return text if address is None else str(address)


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _is_public(address: Address) -> bool:
    """Not private, loopback, link-local, shared, reserved or multicast, nor an IPv6 form that carries an IPv4 one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address.sixtofour or address.teredo or address in NAT64 or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
