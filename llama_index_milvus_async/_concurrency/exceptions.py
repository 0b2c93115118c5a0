"""Exceptions that several callers wait for."""

from __future__ import annotations

import copy


def own_copy(error: BaseException) -> BaseException:
    """An exception for one caller: raising it adds to its traceback and sets its context."""
    try:
        twin = copy.copy(error)
    except Exception:  # its constructor takes other arguments than it keeps
        return error
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    return twin.with_traceback(error.__traceback__)
