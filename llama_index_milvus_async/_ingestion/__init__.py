"""How documents become rows: read, transformed, embedded and written at the same time."""
