"""Every operation of the store, written once, as a coroutine."""
