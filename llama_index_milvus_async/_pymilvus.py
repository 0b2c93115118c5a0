"""Imports pymilvus, before everything else of this package does.

pymilvus takes `MILVUS_URI` from the environment, or from a file `.env`, for the default connection
of its older interface, which this package does not use. It does so while it is imported, and its
import fails where the value is not the address of a server: at the path of a `.db` file, which is
what a user of Milvus Lite writes there.
"""

from __future__ import annotations

import importlib
import os
import sys

_VARIABLE = "MILVUS_URI"


def import_pymilvus() -> None:
    """Import pymilvus; where it refuses what is in the environment, without that.

    The environment is afterwards as pymilvus has found it, with what it has read from `.env`.
    """
    try:
        importlib.import_module("pymilvus")
    except ImportError:
        raise
    except Exception:
        _import_without_uri()


def _import_without_uri() -> None:
    # Imported halfway, its modules have kept what they had read.
    for name in [name for name in sys.modules if name.partition(".")[0] == "pymilvus"]:
        del sys.modules[name]
    found = os.environ.get(_VARIABLE)
    # Emptied, not removed, or pymilvus would look for it elsewhere.
    os.environ[_VARIABLE] = ""
    try:
        importlib.import_module("pymilvus")
    finally:
        if found is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = found


import_pymilvus()
