"""What `store.stats()` counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KindStats"]


@dataclass
class KindStats:
    """Counts of one kind since the start.

    Attributes:
        calls: Items submitted.
        rpcs: Calls sent.
        items: Items sent; those sent again count again, as do their bytes.
        bytes: Bytes sent, as estimated by the callers.
        bisections: Batches sent again in halves.
        resends: Batches sent again after an overload or a lost connection.
        cancelled: Items whose caller was cancelled.
        timed_out: Items whose deadline passed.
        waiting_seconds: Time before sending, summed over items.
        wire_seconds: Time under way, summed over calls.
    """

    calls: int = 0
    rpcs: int = 0
    items: int = 0
    bytes: int = 0
    bisections: int = 0
    resends: int = 0
    cancelled: int = 0
    timed_out: int = 0
    waiting_seconds: float = 0.0
    wire_seconds: float = 0.0

    @property
    def items_per_rpc(self) -> float:
        """The mean number of items that share a call."""
        return self.items / self.rpcs if self.rpcs else 0.0

    @property
    def retries(self) -> int:
        """Batches that were sent again, for either reason."""
        return self.bisections + self.resends
