"""Strings -> ids, all of it inside the graph."""
