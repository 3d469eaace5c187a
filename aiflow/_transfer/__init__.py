"""A slice in flight, from the side of its user."""
