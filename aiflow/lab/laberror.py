"""The error of the cluster."""

from __future__ import annotations

from aiflow.errors import AiflowError

__all__ = ["LabError"]


class LabError(AiflowError):
    """The cluster could not be created or used. The message says what to do."""
