"""How embedding models are called: how they take lists, in which threads, and how many at once."""
