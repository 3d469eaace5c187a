"""Decisions once a slice. Nothing here is compiled."""
