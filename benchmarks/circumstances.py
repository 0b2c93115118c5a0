"""Where, when and with what something was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any


def circumstances(packages: Iterable[str]) -> dict[str, Any]:
    """The circumstances as results keep them: date, machine, its load now, versions.

    Args:
        packages: Whose versions are kept, where they are installed.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} on {platform.machine()}",
        "load": f"{os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else "unknown",
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := version_of(name))},
    }


def version_of(package: str) -> str:
    """The installed version, or an empty string."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def packages_text(results: Mapping[str, Any]) -> str:
    """The packages of results and their versions."""
    return ", ".join(f"{name} {version}" for name, version in results["packages"].items())


def circumstances_text(results: Mapping[str, Any], engine: str) -> str:
    """All circumstances of results that were measured on an engine."""
    return (
        f"{results['date']}, {results['machine']}, load {results['load']}, Python "
        f"{results['python']}; {engine}, {packages_text(results)}."
    )
