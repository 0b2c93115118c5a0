"""Which behaviours do the tests cover, whatever the files, engines and kinds of calls?

    .venv/bin/python -m pytest --collect-only -q > before.txt
    ...
    .venv/bin/python -m tests.behaviours before.txt

A behaviour is the name of a test with its parameters, but for those that say where and how it runs.
Printed is what was there before and is not now (-), and what is new (+); what only moved from one
file to another is neither.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

#: Parameters that say where and how a test runs.
NOT_PART_OF_IT = {"lite", "standalone", "external", "sync", "async"}


def behaviours(ids: Iterable[str]) -> set[str]:
    """The behaviours of tests, of which pytest has printed the ids."""
    return {behaviour(line.strip()) for line in ids if "::" in line}


def behaviour(test_id: str) -> str:
    name, _, parameters = test_id.partition("::")[2].partition("[")
    kept = [each for each in parameters[:-1].split("-") if each not in NOT_PART_OF_IT]
    return f"{name}[{'-'.join(kept)}]" if any(kept) else name


def collected() -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the behaviours that tests cover.")
    parser.add_argument("before", type=Path, help="what pytest --collect-only -q has printed")
    parser.add_argument("after", type=Path, nargs="?", help="the same, of now if it is left out")
    parser.add_argument("--names", action="store_true", help="without parameters")
    given = parser.parse_args()
    before = behaviours(given.before.read_text(encoding="utf-8").splitlines())
    after = behaviours(
        given.after.read_text(encoding="utf-8").splitlines() if given.after else collected()
    )
    if given.names:
        before, after = ({re.sub(r"\[.*", "", each) for each in of} for of in (before, after))
    for each in sorted(before - after):
        print("-", each)
    for each in sorted(after - before):
        print("+", each)
    print(f"{len(before)} before, {len(after)} now")


if __name__ == "__main__":
    main()
