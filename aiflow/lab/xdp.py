"""A minimal XDP program: it passes every frame.

Between veths, a frame counts against its sender's socket buffer until the far end has processed it. A queue in the
middle of the network would slow the sender down, unlike a real wire. An interface with an XDP program copies arriving
frames to its own memory, as a switch does, and releases them from the sender's socket.
"""

from __future__ import annotations

import ctypes
import os
import platform

from aiflow.lab.laberror import LabError

__all__ = ["pass_program"]

_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_TYPE_XDP = 5, 6
_XDP_PASS = 2
# r0 = XDP_PASS; exit. Each: opcode u8, registers u8, offset s16, immediate s32 (Linux, uapi/linux/bpf.h)
_INSTRUCTIONS = b"\xb7\0\0\0" + _XDP_PASS.to_bytes(4, "little") + b"\x95\0\0\0\0\0\0\0"


class _ProgLoad(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("rest", ctypes.c_uint8 * 96),
    )


def pass_program() -> int:
    """Load the program.

    Returns
    -------
    int
        A file descriptor, which the caller must close. Interfaces keep the attached program.

    Raises
    ------
    LabError
        If the kernel refuses.
    """
    instructions, licence = ctypes.create_string_buffer(_INSTRUCTIONS), ctypes.create_string_buffer(b"Apache-2.0")
    load = _ProgLoad(_PROG_TYPE_XDP, len(_INSTRUCTIONS) // 8, ctypes.addressof(instructions), ctypes.addressof(licence))
    libc = ctypes.CDLL(None, use_errno=True)
    number = _BPF.get(platform.machine())
    if number is None:
        raise LabError(f"the cluster's switches need bpf(2), whose number on {platform.machine()} is unknown")
    descriptor = int(libc.syscall(number, _PROG_LOAD, ctypes.byref(load), ctypes.sizeof(load)))
    if descriptor < 0:
        reason = os.strerror(ctypes.get_errno())
        raise LabError(f"the kernel refused an XDP program: {reason}; it needs CAP_BPF and CAP_NET_ADMIN, or root")
    return descriptor
