"""What counts as a number: not `True` and `False`, although Python has them among the integers."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, of Python or numpy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, of Python or numpy; NaN and infinity are."""
    number = isinstance(value, (int, float, np.integer, np.floating))
    return number and not isinstance(value, bool)
