"""Answers that last: event streams and long-polls. They hold a connection and ask the ledger often.

Counted in this process, of each tenant and of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from api.problems import ApiError, too_many, unavailable

# Clients that were refused a stream poll meanwhile, or come back.
_RETRY_AFTER_SECONDS = 10


class LongAnswers:
    """How many answers last. For one event loop.

    Args:
        most: Of all tenants together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()

    @contextmanager
    def place(self, tenant: str, limit: int) -> Iterator[None]:
        """Count an answer while the context lasts.

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
        """Why there is no room for one more; None if there is."""
        if self._held[tenant] >= limit:
            return too_many(
                "too_many_streams",
                f"{limit} event streams and waiting requests of your organisation are open, which "
                "is as many as may be. Close some, or read pages of events.",
                _RETRY_AFTER_SECONDS,
            )
        if self._held.total() >= self._most:
            return unavailable(
                "too_many_streams", "Too many event streams are open.", seconds=_RETRY_AFTER_SECONDS
            )
        return None
