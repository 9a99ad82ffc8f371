"""Whom the service calls for a job, and at which addresses."""

from __future__ import annotations

import pytest

from dsd_core.errors import SpecError
from jobs.webhook_hosts import check_address, may_connect

HOOKS = ("hooks.example.org",)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("https://hooks.example.org/dsd?job=1", HOOKS),
        ("https://HOOKS.example.org.:8443/", HOOKS),
        ("https://203.0.113.9/", ("203.0.113.9",)),
        ("http://localhost:9000/", ("localhost",)),
        ("http://127.0.0.1:9000/", ("127.0.0.1",)),
        ("http://[::1]:9000/", ("::1",)),
    ],
)
def test_listed_hosts_may_be_named(url: str, hosts: tuple[str, ...]) -> None:
    check_address(url, hosts)


@pytest.mark.parametrize(
    ("url", "hosts", "says"),
    [
        ("https://hooks.example.org/", (), "list hosts in DSD_WEBHOOK_HOSTS"),
        ("https://example.org/", HOOKS, "It calls hooks.example.org"),
        ("https://evil-hooks.example.org/", HOOKS, "no webhooks at 'evil-hooks"),
        ("https://hooks.example.org.evil.org/", HOOKS, "no webhooks at"),
        ("https://127.1/", ("127.0.0.1",), "no webhooks at '127.1'"),
        ("https://0x7f000001/", ("127.0.0.1",), "no webhooks at"),
        ("http://hooks.example.org/", HOOKS, "needs https"),
        ("http://10.0.0.1/", ("10.0.0.1",), "needs https"),
    ],
)
def test_other_hosts_and_plain_http_are_refused_with_what_is_allowed(
    url: str, hosts: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SpecError, match=says) as refused:
        check_address(url, hosts)
    assert refused.value.field == "/webhook"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fd00::1", "ff02::1"),
        *("::ffff:169.254.169.254", "::ffff:8.8.8.8", "2002:a00:1::", "64:ff9b::a00:1", "fec0::1", "fe80::1%eth0"),
    ],
)
def test_a_name_that_leads_inside_is_not_followed_there(address: str) -> None:
    assert not may_connect("hooks.example.org", address, HOOKS)


def test_a_name_that_leads_to_a_public_address_is_followed() -> None:
    assert may_connect("hooks.example.org", "8.8.8.8", HOOKS)
    assert may_connect("hooks.example.org", "2606:4700::1111", HOOKS)
    assert not may_connect("other.example.org", "8.8.8.8", HOOKS)


def test_an_address_inside_is_called_where_it_is_listed_itself() -> None:
    assert may_connect("hooks.corp", "10.1.2.3", ("hooks.corp", "10.1.2.3"))
    assert may_connect("10.1.2.3", "10.1.2.3", ("10.1.2.3",))
    assert may_connect("localhost", "::1", ("localhost",))
    assert not may_connect("hooks.corp", "127.0.0.1", ("hooks.corp", "10.1.2.3"))
