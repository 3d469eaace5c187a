"""Checks of a host for ``aiflow doctor``: each looks at one thing, and names the command that mends it."""
