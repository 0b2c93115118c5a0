"""How fast the store is, beside the plugin it replaces and the bare client; see README.md."""
