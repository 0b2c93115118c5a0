"""Move collections: copy them, compare them, to files and back, to another model.

Each function is there twice: `copy_nodes` blocks, `acopy_nodes` does not block the event loop. The
same from a shell: `python -m llama_index_milvus_async --help`.
"""

from ._aliases import acurrent_collection, current_collection
from ._checking import CheckReport, Difference, acheck_nodes, check_nodes
from ._copying import CopyReport, acopy_nodes, copy_nodes
from ._parquet import aexport_nodes, aimport_nodes, export_nodes, import_nodes
from ._progress import Progress, ProgressCallback
from ._reembedding import ReembedReport, areembed, reembed

__all__ = [
    "CheckReport",
    "CopyReport",
    "Difference",
    "Progress",
    "ProgressCallback",
    "ReembedReport",
    "acheck_nodes",
    "acopy_nodes",
    "acurrent_collection",
    "aexport_nodes",
    "aimport_nodes",
    "areembed",
    "check_nodes",
    "copy_nodes",
    "current_collection",
    "export_nodes",
    "import_nodes",
    "reembed",
]

# Tracebacks and pickles show the names that users import.
for _name in __all__:
    if _name != "ProgressCallback":  # an alias of a type, which has no module of its own
        globals()[_name].__module__ = __name__
