"""Checks where webhooks go. Tenants choose the URLs, so a URL may aim at our internal network.

A URL is checked twice: its form when the job is submitted, its addresses when a message is sent.
The name is resolved once and every address is checked. The connection is made to one of the checked
addresses, so a name that resolves differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from strucprune_core.errors import InvalidSpec

FIELD = "notifications.webhook_url"
MAX_URL_LENGTH = 2048
_PRINTABLE = re.compile(r"[!-~]+")
_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*\.?")
# Names that resolvers read as an address: 127.1, 0x7f.1, 2130706433, 017700000001.
_NUMERIC = re.compile(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*\.?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Addresses that are not of the internet, although Python calls some of them global. Some services
# of clouds (metadata, name servers, agents of the host) have addresses that look public.
_NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure: its platform, reached from every machine there
            "100.100.100.200/32",  # Alibaba: metadata
            "192.0.0.192/32",  # Oracle: metadata
            "161.26.0.0/16",  # IBM: its services, reached from every machine there
            "166.8.0.0/14",
            "192.88.99.0/24",  # relays to 6to4, withdrawn
            "::/96",  # IPv4-compatible, withdrawn
            "::ffff:0:0:0/96",  # IPv4-translated (SIIT)
            "64:ff9b:1::/48",  # NAT64 of a local network
            "100::/64",  # discarded
            "2001::/23",  # Teredo, benchmarking, ORCHID and other protocols
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
            "5f00::/16",  # segment routing
            "fc00::/7",  # private
            "fe80::/10",  # of a link
            "fec0::/10",  # of a site, withdrawn but routed in places
            "ff00::/8",  # multicast
        ),
    )
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]


class WebhookNotAllowed(InvalidSpec):
    """Webhooks may not go to this URL."""

    code = "webhook_not_allowed"


@dataclass(frozen=True, slots=True)
class Policy:
    """Where webhooks may go.

    Attributes:
        hosts: If not empty, these hosts and no others; they may have private addresses.
        allow_http: Whether messages may go unencrypted: only inside a closed network.
    """

    hosts: frozenset[str] = frozenset()
    allow_http: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL; `path` includes the query."""

    secure: bool
    host: str
    port: int
    path: str


def parse_target(url: str, policy: Policy) -> Target:
    """Check the form of a URL, without resolving its host.

    Raises:
        WebhookNotAllowed: it is malformed, not https, or its host is not allowed.
    """
    if len(url) > MAX_URL_LENGTH or not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise _refused("is malformed", "Use https://host/path in printable ASCII.")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        raise _refused("is malformed", "Use https://host/path.") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and policy.allow_http):
        raise _refused("is not https", "Use https://host/path.")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise _refused("holds a user name, password or fragment", "Leave it out.")
    if port == 0:
        raise _refused("names port 0", "Name another port, or none.")
    _check_host(host, policy)
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure, host, port or (443 if secure else 80), path)


def _check_host(host: str, policy: Policy) -> None:
    literal = _literal(host)
    if literal is None and (not _HOST.fullmatch(host) or _NUMERIC.fullmatch(host)):
        raise _refused("has no valid host name", "Use https://host/path.")
    if policy.hosts:
        if host not in policy.hosts:
            raise _refused(
                "names a host that is not on the service's list",
                "Ask the service's operator to add it.",
            )
    elif literal is not None:
        if not is_public(literal):
            raise _refused("names an address that is not public", "Use a public host.")
    elif "." not in host:
        raise _refused("names a host of a local network", "Use a public host.")


def addresses(target: Target, policy: Policy, resolve: Resolve | None = None) -> list[str]:
    """The addresses that a connection may be made to.

    Raises:
        WebhookNotAllowed: an address of the host is not public, and the host is not on the list.
        OSError: the name does not resolve.
    """
    found = (resolve or _resolve)(target.host, target.port)
    if not policy.hosts and not all(is_public(ipaddress.ip_address(text)) for text in found):
        # One bad address is enough: an attacker may mix it with good ones.
        raise _refused("leads to an address that is not public", "Use a public host.")
    return found


def _resolve(host: str, port: int) -> list[str]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, and so is the IPv4 address that it wraps."""
    if any(address.version == never.version and address in never for never in _NEVER):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = _wrapped(address)
        if wrapped is not None:
            return is_public(wrapped)
        if address.scope_id is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to this one may end up at."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _refused(reason: str, remedy: str) -> WebhookNotAllowed:
    # The URL is not quoted, since it often holds a secret.
    return WebhookNotAllowed(f"the URL {reason}", field=FIELD, remedy=remedy)
