"""Limits answers that take long: event streams and long-polls.

Each holds a connection and asks the ledger often. They are counted in this process, for each tenant
and in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from api.problems import ApiError, too_many, unavailable

# A client that was refused a stream may poll meanwhile.
_RETRY_AFTER_SECONDS = 10


class LongAnswers:
    """Counts long answers. For one event loop.

    Args:
        most: Limit for all tenants together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()

    @contextmanager
    def place(self, tenant: str, limit: int) -> Iterator[None]:
        """Count an answer for as long as the context lasts.

        Raises:
            ApiError: 429 if the tenant has `limit` of them, 503 if all tenants have too many.
        """
        refusal = self.refusal(tenant, limit)
        if refusal is not None:
            raise refusal
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]

    def refusal(self, tenant: str, limit: int) -> ApiError | None:
        """Why one more is not allowed; None if it is."""
        if self._held[tenant] >= limit:
            return too_many(
                "too_many_streams",
                f"Your organisation has {limit} event streams and waiting requests open, which is "
                "its limit. Close some, or read pages of events.",
                _RETRY_AFTER_SECONDS,
            )
        if self._held.total() >= self._most:
            return unavailable(
                "too_many_streams", "Too many event streams are open.", seconds=_RETRY_AFTER_SECONDS
            )
        return None
