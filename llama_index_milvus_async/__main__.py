"""The command line: `python -m llama_index_milvus_async --help`."""

import sys

from .migration._command_line import main

if __name__ == "__main__":
    sys.exit(main())
