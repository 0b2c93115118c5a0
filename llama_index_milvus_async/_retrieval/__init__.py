"""From a query to searches, and from hits to a result. Pure."""
