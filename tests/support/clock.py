"""A ledger whose clock tests set forward, so that leases expire without anybody waiting."""

from __future__ import annotations

from api.jobs.ledger import SERVER_CLOCK, Ledger

_KEY = "test_clock"
# The server's clock goes on, so that no two moments are the same, and so many seconds are added.
ADVANCED_CLOCK = f"""{SERVER_CLOCK}
local server_time = now
local function now()
  return server_time() + tonumber(redis.call('GET', ARGV[1] .. ':{_KEY}') or '0')
end
"""


def advance(ledger: Ledger, seconds: float) -> None:
    """Set the clock of a ledger forward, which must have been made with `ADVANCED_CLOCK`."""
    before = ledger.now()
    ledger._client.incrbyfloat(ledger._key(_KEY), seconds)
    assert ledger.now() >= before + seconds
