"""Request coalescing: items in, one call out, results back to their owners.

Callers `submit` one item each and await its result. Items of the same kind and key wait in one
queue; what waits there when the queue's turn comes travels in one call, as much as the bounds
allow.

*When.* The first item starts the task of a call. A task takes its first step at the end of the
running iteration of the loop, and only then does it take items: all that one `gather` submits
travel together, and a lone item leaves at once. No timer is involved. While as many calls as
allowed are under way, items collect; when a call ends, the next queue has its turn. One call
starts in each iteration.

*Whose turn.* First in, first out within a key; kinds of the same priority take turns, and so do the
keys of a kind. The last free slot goes only to a kind that has no call under way, so that a query
need not wait behind the calls of a bulk insert.

*Failures.* A refusal that concerns data halves the batch, until the bad item is alone (at most
2 k ⌈log2 n⌉ more calls for k bad items of n). After an overload or a lost connection, where sending
again does no harm, the number of calls of that kind in flight is halved, the kind pauses for a
while, and the same batch is sent again; each round of successes adds one in flight: additive
increase, multiplicative decrease, as in TCP (RFC 5681). Any other error goes to every item of the
call.

*Leaving.* A caller that is cancelled or whose deadline passes withdraws its own item. When nobody
is left who waits for a call, the call is cancelled.

*Memory.* Each kind bounds the bytes of its items that wait or travel; callers beyond the bound
stand in line. Per kind, or a bulk insert would keep queries out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import insort
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar, cast

from ..stats import KindStats
from .backoff import MAX_RESENDS, NotSentError, pause_after
from .exceptions import own_copy

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")

_batch_sizes: ContextVar[dict[str, int] | None] = ContextVar("batch_sizes", default=None)


@contextmanager
def recording_batch_sizes() -> Iterator[dict[str, int]]:
    """Note, for what is submitted inside, how many items the calls that carried it had.

    Yields:
        Name of the kind to the most items of a call.
    """
    sizes: dict[str, int] = {}
    token = _batch_sizes.set(sizes)
    try:
        yield sizes
    finally:
        _batch_sizes.reset(token)


@dataclass(frozen=True, eq=False)
class RequestKind(Generic[Key, Item, Result]):
    """What can be asked; make each kind once, two of them never share a call.

    Attributes:
        name: For statistics, log and task names.
        call: Sends one call: key, items, the seconds that it may take (`None`: as many as it
            likes). Returns one result for each item, in their order.
        max_items: Most items of one call.
        max_weight: Most weight of one call, in the unit of `submit`'s `weight`.
        max_bytes: Most bytes of one call. An item beyond a bound travels alone.
        is_separable: Whether an error is a refusal of data that has certainly done nothing.
        may_resend: Whether, after an error, a call of this key may be sent again later: it has
            done nothing, or doing it twice does no harm.
        max_in_flight: Most calls of this kind under way at once; by default the coalescer's.
        priority: Nothing of a lower one starts while items of a higher one could.
        after: What to tell after several attempts: the error of the earlier ones, that of the last
            one, which may be changed.
    """

    name: str
    call: Callable[[Key, Sequence[Item], float | None], Awaitable[Sequence[Result]]]
    max_items: int
    max_weight: int
    max_bytes: int
    is_separable: Callable[[Exception], bool]
    may_resend: Callable[[Key, Exception], bool]
    max_in_flight: int | None = None
    priority: int = 0
    after: Callable[[Exception, Exception], Exception] = lambda earlier, last: last


# Without `repr`: asyncio's debug log shows callbacks, and would show everybody's items.
@dataclass(slots=True, eq=False, repr=False)
class Entry:
    """One caller's item.

    Attributes:
        future: Done once there is a result or an error.
        result: What the call returned for the item.
        error: What the caller is to raise.
    """

    lane: _Lane
    key: Hashable
    item: Any
    weight: int
    size: int
    deadline: float  # infinite without one
    since: float  # when it began to wait
    number: int  # the order of arrival
    context: Context
    # It never holds an exception: one that nobody retrieves is reported by the loop, and that
    # happens where the caller is cancelled just when it is woken.
    future: asyncio.Future[None]
    place: _Entries | None = None  # where it waits or travels; None once settled
    batch: _Batch | None = None  # the call that it travels in
    refusals: int = 0  # for overload
    companions: int = 0  # items of the call that it last travelled in, itself included
    result: Any = None
    error: BaseException | None = None

    def settle(self, result: Any = None, error: BaseException | None = None) -> None:
        """Wake the caller, unless it has left."""
        self.place = None
        if not self.future.done():
            self.result, self.error = result, error
            self.future.set_result(None)


# An ordered dict is a queue from whose middle a caller can leave in constant time.
_Entries: TypeAlias = "OrderedDict[Entry, None]"


@dataclass(slots=True, eq=False, repr=False)
class _Queue:
    """What waits of one kind and key; never empty while its lane has it."""

    key: Hashable
    entries: _Entries = field(default_factory=OrderedDict)
    resend_first: list[_Entries] = field(
        default_factory=list
    )  # to send again as they are, and first

    @property
    def front(self) -> _Entries:
        return self.resend_first[0] if self.resend_first else self.entries


@dataclass(slots=True, eq=False, repr=False)
class _Batch:
    """The items of one call."""

    queue: _Queue
    window: int
    task: asyncio.Task[None] | None = None
    sent: list[Entry] = field(default_factory=list)
    live: _Entries = field(default_factory=OrderedDict)  # those of them whose callers still wait


@dataclass(slots=True, eq=False, repr=False)
class _Lane:
    """The state of one kind."""

    kind: RequestKind[Any, Any, Any]
    max_in_flight: int
    limit: int  # of calls in flight; moved by overload and success
    stats: KindStats = field(default_factory=KindStats)
    overflow: _Entries = field(
        default_factory=OrderedDict
    )  # waiting for room; not counted in bytes
    queues: OrderedDict[Hashable, _Queue] = field(default_factory=OrderedDict)  # next turn first
    bytes: int = 0  # waiting in queues and under way
    under_way: set[_Batch] = field(default_factory=set)
    window: int = 0  # counts the halvings: only calls sent after one tell whether it was enough
    successes: int = 0  # since the limit last changed
    refusals: int = 0  # windows refused since the last success, or since nothing waited
    pause: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        return len(self.under_way)

    def entries(self) -> Iterator[Entry]:
        """All that wait or travel, and some that are settled."""
        yield from self.overflow
        for queue in self.queues.values():
            for part in (*queue.resend_first, queue.entries):
                yield from part
        for batch in self.under_way:
            yield from batch.live

    def queue(self, key: Hashable) -> _Queue:
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = _Queue(key)
        return queue

    def tidy(self, key: Hashable) -> None:
        """Drop a queue that became empty, and the pause when nothing waits for its end."""
        queue = self.queues.get(key)
        if queue is not None:
            queue.resend_first = [part for part in queue.resend_first if part]
            if not queue.front:
                del self.queues[key]
        if self.pause is not None and not self.queues:
            self.pause.cancel()
            self.pause = None
            self.refusals = 0


class Coalescer:
    """Sends what concurrent callers submit in as few calls as the bounds allow.

    One instance serves one event loop. Idle, it has neither tasks nor handles.

    Args:
        max_in_flight: Calls under way at once. From two on, a single kind uses all but one.
        max_queued_bytes: Most bytes of items that wait or travel, for each kind. An item that is
            larger alone goes when nothing else does.
        coalesce: `False` sends each item in its own call, within the same limits.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        max_queued_bytes: int,
        coalesce: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._max_in_flight = max_in_flight
        self._max_queued_bytes = max_queued_bytes
        self._coalesce = coalesce
        self._clock = clock
        self._lanes: OrderedDict[RequestKind[Any, Any, Any], _Lane] = (
            OrderedDict()
        )  # next turn first
        self._tasks: set[asyncio.Task[None]] = set()  # one for each call, from its turn on
        self._starting: _Batch | None = None  # whose task has not taken its items yet
        # For the earliest deadline. One timer for each entry would cost as much as all else here.
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    async def submit(
        self,
        kind: RequestKind[Key, Item, Result],
        key: Key,
        item: Item,
        *,
        weight: int = 1,
        size: int = 0,
        timeout: float | None = None,
    ) -> Result:
        """Send an item, in one call with others of the same kind and key, and await its result.

        Args:
            kind: What is asked.
            key: All that items of one call have in common.
            item: What differs.
            weight: The item's part of `kind.max_weight`.
            size: The item's bytes.
            timeout: Seconds for this item, waiting included.

        Raises:
            asyncio.TimeoutError: No result within `timeout`; caused by the last attempt's error
                where there was one. A `NotSentError` where no attempt was under way.
            Exception: What the call raised. Callers that share a call get copies.
        """
        entry = self.enqueue(kind, key, item, weight=weight, size=size, timeout=timeout)
        try:
            await entry.future
        except asyncio.CancelledError:
            self.withdraw(entry)
            raise
        if (shares := _batch_sizes.get()) is not None:
            shares[kind.name] = max(shares.get(kind.name, 0), entry.companions)
        error, entry.error = entry.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or the exception, its traceback and this frame would be a cycle
        return cast(Result, entry.result)

    def enqueue(
        self,
        kind: RequestKind[Key, Item, Any],
        key: Key,
        item: Item,
        *,
        weight: int = 1,
        size: int = 0,
        timeout: float | None = None,
    ) -> Entry:
        """Queue an item; the arguments are those of `submit`.

        Returns:
            The entry. Its future is done once it has a result or an error. Who no longer waits for
            it withdraws it.
        """
        lane = self._lanes.get(kind)
        if lane is None:
            most = min(kind.max_in_flight or self._max_in_flight, self._max_in_flight)
            lane = self._lanes[kind] = _Lane(kind, most, limit=most)
            self._lanes.move_to_end(kind, last=False)  # it has had no turn yet
        lane.stats.calls += 1
        loop, now = asyncio.get_running_loop(), self._clock()
        deadline = math.inf if timeout is None else now + timeout
        number, context, future = lane.stats.calls, copy_context(), loop.create_future()
        entry = Entry(lane, key, item, weight, size, deadline, now, number, context, future)
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        entry.place = lane.overflow
        lane.overflow[entry] = None
        self._admit(lane)
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Take out an item whose caller was cancelled; nothing happens where it is settled."""
        entry.lane.stats.cancelled += 1
        self._withdraw(entry)

    def stats(self) -> Mapping[str, KindStats]:
        """A snapshot of the counts, by the name of the kind."""
        return {kind.name: replace(lane.stats) for kind, lane in list(self._lanes.items())}

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        lanes = self._lanes.values()
        return not self._tasks and not any(lane.queues or lane.overflow for lane in lanes)

    # The way of an entry: from the line to a queue to a batch, and there it is settled, or goes
    # back to the queue.

    def _admit(self, lane: _Lane) -> None:
        """Let those in line in, as far as there is room."""
        while lane.overflow:
            entry = next(iter(lane.overflow))
            if lane.bytes and lane.bytes + entry.size > self._max_queued_bytes:
                break
            del lane.overflow[entry]
            lane.bytes += entry.size
            entry.place = lane.queue(entry.key).entries
            entry.place[entry] = None
        self._dispatch()

    def _dispatch(self) -> None:
        """Start the next call, if there is a slot and none is starting.

        The one that starts dispatches again: what calls compute in their first step, such as the
        packing of rows, is spread over iterations of the loop and does not add up to a stall.
        """
        free = self._max_in_flight - len(self._tasks)
        if self._starting is not None or not free:
            return
        chosen: _Lane | None = None
        for lane in self._lanes.values():
            reserved = free == 1 and lane.in_flight > 0
            if (
                lane.queues
                and lane.pause is None
                and lane.in_flight < lane.limit
                and not reserved
                and (chosen is None or lane.kind.priority > chosen.kind.priority)
            ):
                chosen = lane
        if chosen is not None:
            self._start(chosen, next(iter(chosen.queues.values())))

    def _start(self, lane: _Lane, queue: _Queue) -> None:
        self._lanes.move_to_end(lane.kind)
        lane.queues.move_to_end(queue.key)
        first = next(iter(queue.front))
        batch = _Batch(queue, lane.window)
        # The class and not `loop.create_task`: an eager task would leave before others arrive.
        batch.task = first.context.run(
            asyncio.Task,
            self._send(lane, batch, first),
            loop=asyncio.get_running_loop(),
            name=f"coalesced {lane.kind.name}",
        )
        batch.task.add_done_callback(partial(self._ended, lane, batch))
        self._tasks.add(batch.task)
        self._starting = batch
        lane.under_way.add(batch)

    async def _send(self, lane: _Lane, batch: _Batch, first: Entry) -> None:
        """The task of one call, in the context of the first item's caller."""
        started = self._clock()
        self._take(lane, batch, first, started)
        self._starting = None
        self._dispatch()
        if not batch.sent:
            return
        items = [entry.item for entry in batch.sent]
        size = sum([entry.size for entry in batch.sent])
        waits = [started - entry.since for entry in batch.sent]
        deadline = max([entry.deadline for entry in batch.sent])
        lane.stats.rpcs += 1
        lane.stats.items += len(items)
        lane.stats.bytes += size
        lane.stats.waiting_seconds += sum(waits)
        outcome = "cancelled"
        try:
            timeout = None if deadline == math.inf else deadline - started
            results = await lane.kind.call(batch.queue.key, items, timeout)
        except Exception as error:
            outcome = type(error).__name__
            self._refused(lane, batch, error)
        else:
            outcome = self._answered(lane, batch, results)
        finally:
            wire = self._clock() - started
            lane.stats.wire_seconds += wire
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug(
                    "call kind=%s items=%d bytes=%d waited_ms=%.3f wire_ms=%.3f outcome=%s",
                    lane.kind.name,
                    len(items),
                    size,
                    max(waits) * 1000,
                    wire * 1000,
                    outcome,
                )

    def _take(self, lane: _Lane, batch: _Batch, first: Entry, now: float) -> None:
        """Move what may share a call from the front of the queue to the batch."""
        kind, front = lane.kind, batch.queue.front
        max_items = kind.max_items if self._coalesce else 1
        taken: list[Entry] = []
        gone: list[Entry] = []
        weight = size = 0
        for entry in front:
            # Its caller was cancelled, or its deadline passed, but the loop has not said so yet.
            if entry.future.done() or entry.deadline <= now:
                gone.append(entry)
                continue
            weight += entry.weight
            size += entry.size
            full = len(taken) >= max_items or weight > kind.max_weight or size > kind.max_bytes
            if taken and full:
                break
            taken.append(entry)
        # Another item's call needs another context, hence another task.
        if taken and taken[0] is first:
            batch.sent = taken
            for entry in taken:
                del front[entry]
                batch.live[entry] = None
                entry.place, entry.batch = batch.live, batch
                entry.companions = len(taken)
        for entry in gone:
            self._expire(entry)
        lane.tidy(batch.queue.key)

    def _answered(self, lane: _Lane, batch: _Batch, results: Sequence[Any]) -> str:
        if len(results) != len(batch.sent):
            problem = f"{lane.kind.name}: {len(results)} results for {len(batch.sent)} items"
            _fail(list(batch.live), RuntimeError(problem))
            return "wrong number of results"
        for entry, result in zip(batch.sent, results, strict=True):
            entry.settle(result)
        if batch.window == lane.window:
            lane.refusals = 0
            lane.successes += 1
            if lane.successes >= lane.limit < lane.max_in_flight:
                lane.limit += 1
                lane.successes = 0
        return "ok"

    def _refused(self, lane: _Lane, batch: _Batch, error: Exception) -> None:
        """Send again what may be sent again, and tell the other callers."""
        live = list(batch.live)
        if lane.kind.may_resend(batch.queue.key, error):
            again = []
            for entry in live:
                entry.refusals += 1
                # In case that the deadline passes.
                entry.error = _after(entry, error) if entry.error else error
                if entry.refusals <= MAX_RESENDS or entry.deadline < math.inf:
                    again.append(entry)
            self._requeue(lane, again)
            lane.stats.resends += bool(again)
            self._slow_down(lane, batch)
        elif len(batch.sent) > 1 and lane.kind.is_separable(error):
            middle = (len(live) + 1) // 2
            self._requeue(lane, live[:middle])
            self._requeue(lane, live[middle:])
            lane.stats.bisections += 1
        _fail([entry for entry in live if entry.place is batch.live], error)

    def _requeue(self, lane: _Lane, entries: Sequence[Entry]) -> None:
        """Have entries of one key sent again, together and before what has not been sent."""
        if not entries:
            return
        part, now = OrderedDict.fromkeys(entries), self._clock()
        for entry in entries:
            entry.place, entry.batch, entry.since = part, None, now
        insort(
            lane.queue(entries[0].key).resend_first, part, key=lambda part: next(iter(part)).number
        )

    def _slow_down(self, lane: _Lane, batch: _Batch) -> None:
        # Calls that were under way together are refused together, and halve the limit once.
        if batch.window == lane.window:
            lane.window += 1
            lane.limit = max(1, lane.limit // 2)
            lane.successes = 0
            lane.refusals += 1
        if lane.pause is None and lane.queues:
            lane.pause = asyncio.get_running_loop().call_later(
                pause_after(lane.refusals), self._resume, lane
            )

    def _resume(self, lane: _Lane) -> None:
        lane.pause = None
        self._admit(lane)

    def _set_alarm(self, deadline: float) -> None:
        """Be called at a deadline, in place of what was set before; never for an infinite one."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_at = deadline
        if deadline < math.inf:
            self._alarm = asyncio.get_running_loop().call_later(
                deadline - self._clock(), self._expire_all, context=Context()
            )

    def _expire_all(self) -> None:
        """End the waits of all whose deadlines have passed."""
        now = self._clock()
        waiting = [
            entry
            for lane in self._lanes.values()
            for entry in lane.entries()
            if not entry.future.done()
        ]
        left = [entry.deadline for entry in waiting if entry.deadline > now]
        self._set_alarm(min(left, default=math.inf))
        for entry in waiting:
            if entry.deadline <= now:
                self._expire(entry)

    def _expire(self, entry: Entry) -> None:
        """End the wait of a caller whose deadline has passed, unless it has ended."""
        under_way = entry.batch is not None
        self._withdraw(entry)
        if not entry.future.done():
            entry.lane.stats.timed_out += 1
            kind = asyncio.TimeoutError if under_way else NotSentError
            error = kind(f"{entry.lane.kind.name}: no result in time")
            error.__cause__ = entry.error
            entry.settle(error=error)

    def _withdraw(self, entry: Entry) -> None:
        """Take an item out, wherever it is."""
        lane, place, entry.place = entry.lane, entry.place, None
        if place is None:
            return
        del place[entry]
        if entry.batch is not None:
            # Its bytes are under way until the call ends.
            if not place and entry.batch.task is not None:
                entry.batch.task.cancel()
            return
        if place is not lane.overflow:
            lane.bytes -= entry.size
            lane.tidy(entry.key)
        self._admit(lane)
        self._rest()

    def _ended(self, lane: _Lane, batch: _Batch, task: asyncio.Task[None]) -> None:
        """Free the slot of a call, and give others their turns."""
        self._tasks.discard(task)
        lane.under_way.discard(batch)
        if self._starting is batch:  # cancelled before its first step
            self._starting = None
        error = None if task.cancelled() else task.exception()
        # Some still wait after a cancellation from outside, or a bug in a predicate.
        left = [entry for entry in batch.sent if entry.place is batch.live]
        if error is None or isinstance(error, (KeyboardInterrupt, SystemExit)):
            for entry in left:
                entry.place = None
                entry.future.cancel()
        else:
            _fail(left, error)
        if not lane.in_flight and not lane.queues:
            # Who comes now does not pay for those who gave up.
            lane.refusals = 0
        lane.bytes -= sum([entry.size for entry in batch.sent if entry.batch is batch])
        # Entry and batch refer to each other; rows should not wait for the garbage collector.
        batch.sent.clear()
        batch.live.clear()
        self._admit(lane)
        self._rest()

    def _rest(self) -> None:
        """Keep no timer where nobody waits."""
        if self._alarm is not None and self.is_idle:
            self._set_alarm(math.inf)


def _fail(entries: Sequence[Entry], error: BaseException) -> None:
    for entry in entries:
        if entry.error is None:
            entry.settle(error=error if len(entries) == 1 else own_copy(error))
        else:
            entry.settle(error=_after(entry, error))


def _after(entry: Entry, error: BaseException) -> BaseException:
    """An error that comes after earlier ones of an entry, for its caller alone."""
    own = own_copy(error)
    if not isinstance(entry.error, Exception) or not isinstance(own, Exception):
        return own
    return entry.lane.kind.after(entry.error, own)
