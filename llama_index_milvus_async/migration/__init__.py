"""Move collections: copy them, compare them, to files and back.

Each function is there twice: `copy_nodes` blocks, `acopy_nodes` does not block the event loop. The
same from a shell: `python -m llama_index_milvus_async --help`.
"""

from ._checking import CheckReport, Difference, acheck_nodes, check_nodes
from ._copying import CopyReport, acopy_nodes, copy_nodes
from ._parquet import aexport_nodes, aimport_nodes, export_nodes, import_nodes
from ._progress import Progress, ProgressCallback

__all__ = [
    "CheckReport",
    "CopyReport",
    "Difference",
    "Progress",
    "ProgressCallback",
    "acheck_nodes",
    "acopy_nodes",
    "aexport_nodes",
    "aimport_nodes",
    "check_nodes",
    "copy_nodes",
    "export_nodes",
    "import_nodes",
]

# Tracebacks and pickles show the names that users import.
for _public in (
    CheckReport,
    CopyReport,
    Difference,
    Progress,
    acheck_nodes,
    acopy_nodes,
    aexport_nodes,
    aimport_nodes,
    check_nodes,
    copy_nodes,
    export_nodes,
    import_nodes,
):
    _public.__module__ = __name__
