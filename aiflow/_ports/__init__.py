"""From endpoints to open ports."""
