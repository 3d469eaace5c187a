"""`FlowControl` by the name that programs know it by."""

from aiflow._policy.flow_control import FlowControl
from aiflow.config import FLOW_CONTROLS, parse_rate

__all__ = ["FLOW_CONTROLS", "FlowControl", "parse_rate"]
