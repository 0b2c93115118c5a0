"""Pauses between attempts, and the error of what was never sent."""

from __future__ import annotations

import asyncio
import random

#: Seconds of the pause after the first refusal for overload; doubled by each further one.
FIRST_PAUSE = 0.1
#: The longest pause, in seconds. A pause is shortened at random by up to a half, so that clients
#: that were refused together do not come back together.
LONGEST_PAUSE = 1.0
#: How often something without a deadline is sent again: the pauses add up to some 15 seconds. What
#: has a deadline is sent again until it passes.
MAX_RESENDS = 20


class NotSentError(asyncio.TimeoutError):
    """A deadline passed before the request was sent, or between two attempts."""


def pause_after(refusals: int) -> float:
    """Seconds to wait after so many refusals in a row."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(refusals - 1, 30))
    return longest * random.uniform(0.5, 1)
