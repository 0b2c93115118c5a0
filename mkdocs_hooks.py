"""What the site has beside the pages of docs/: notebooks, the plot, and drawings.

MkDocs loads this file (`hooks` in mkdocs.yml); `make docs` builds the site.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
#: Files of the site that are not in docs/; their paths in the site are those in the repository.
ELSEWHERE = [
    "benchmarks/results/seconds.png",
    "benchmarks/results/scale_load.png",
    "benchmarks/results/scale_queries.png",
    *(f"notebooks/{file.name}" for file in sorted((ROOT / "notebooks").glob("*.ipynb"))),
]


def on_config(config: Any) -> None:
    """Have blocks of the language `mermaid` drawn."""
    fence = {"name": "mermaid", "class": "mermaid", "format": _draw}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}


def on_files(files: Any, config: Any) -> None:
    """Add what is kept elsewhere in the repository."""
    from mkdocs.structure.files import File

    for path in ELSEWHERE:
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))


# Before mkdocs-jupyter, which looks for notebooks among the files at this event.
on_files.mkdocs_priority = 100  # type: ignore[attr-defined]


def _draw(source: str, language: str, css_class: str, *args: Any, **kwargs: Any) -> str:
    """Draw a diagram as SVG, so that a reader's browser loads no script for it."""
    from merm import render_diagram

    return f'<div class="drawing">{render_diagram(source, theme="neutral")}</div>'
