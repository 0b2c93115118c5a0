"""Equal items that are asked for at the same time are sent once ("single flight")."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .coalescing import Coalescer, Entry, RequestKind
from .exceptions import own_copy
from .slices import Slices

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Flight:
    """An item that waits or is under way, for all who ask for it."""

    entry: Entry
    passengers: int = 0


class SingleFlight:
    """Submits items to a coalescer, equal ones together: one is sent, and all get its result.

    One instance serves one event loop.
    """

    def __init__(self, coalescer: Coalescer) -> None:
        self.coalescer = coalescer
        self._flights: dict[tuple[RequestKind[Any, Any, Any], Hashable], _Flight] = {}
        self._slices = Slices()

    async def submit(
        self, kind: RequestKind[None, Item, Result], items: Sequence[tuple[Item, int]]
    ) -> list[Result]:
        """Send items, in as few calls as the kind allows, and await their results.

        Args:
            kind: What is asked.
            items: The items, and the bytes of each.

        Returns:
            The results in the order of the items. Callers that asked for equal items get the same
            object.

        Raises:
            Exception: What the call of one of the items raised, as a copy of this caller's own. The
                other items are then withdrawn.
        """
        flights: list[_Flight] = []

        def board(item: tuple[Item, int]) -> None:
            flight = self._flight(kind, *item)
            flight.passengers += 1
            flights.append(flight)

        try:
            await self._slices.convert(items, board)
            for flight in flights:
                # Shielded: a caller that is cancelled does not end what others wait for.
                await asyncio.shield(flight.entry.future)
                if flight.entry.error is not None:
                    raise own_copy(flight.entry.error)
            return [flight.entry.result for flight in flights]
        finally:
            for flight in flights:
                self._leave(flight)

    def _flight(self, kind: RequestKind[None, Item, Any], item: Item, size: int) -> _Flight:
        flight = self._flights.get((kind, item))
        if flight is None or flight.entry.future.done():
            entry = self.coalescer.enqueue(kind, None, item, size=size)
            flight = self._flights[kind, item] = _Flight(entry)
        else:
            flight.entry.lane.stats.calls += 1
        return flight

    def _leave(self, flight: _Flight) -> None:
        flight.passengers -= 1
        if flight.passengers:
            return
        entry = flight.entry
        flown = entry.lane.kind, entry.item
        if self._flights.get(flown) is flight:
            del self._flights[flown]
        if entry.future.done():
            entry.error = None  # or the exception, its traceback and its frames would be a cycle
        else:
            self.coalescer.withdraw(entry)
