"""What can go wrong with a cluster."""

from __future__ import annotations

from aiflow.errors import AiflowError

__all__ = ["LabError"]


class LabError(AiflowError):
    """The cluster could not be made or used; the message says what to do."""
