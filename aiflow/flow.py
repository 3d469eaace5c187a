"""`FlowControl` by the name that programs know it by."""

from aiflow._policy.flow_control import FlowControl

__all__ = ["FlowControl"]
