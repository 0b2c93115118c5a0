"""Points in time, as columns of type TIMESTAMPTZ take them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_TEXT = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def point_in_time(text: str) -> datetime | None:
    """The point in time that a text is, to the microsecond.

    Without an offset a text means another time in each place; Milvus Lite refuses it, and a server
    takes it for one of the time zone that it is set to.

    Returns:
        The point in time; `None` for any other text, and for one without an offset.
    """
    if (match := _TEXT.fullmatch(text)) is None:
        return None
    date, time, fraction, offset = match.groups()
    # As Python 3.10 reads it.
    fraction, offset = (fraction or ".0")[:7].ljust(7, "0"), offset.replace("Z", "+00:00")
    try:
        return datetime.fromisoformat(f"{date}T{time}{fraction}{offset}")
    except ValueError:  # there is no such day
        return None


def from_microseconds(microseconds: int) -> datetime:
    """The point in time that is so long after the beginning of 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)
