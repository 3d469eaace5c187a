"""Golden frames: the wire format stays the same, byte for byte.

tests/golden/frames.json holds the first frame of each kind that the simulator's worlds send, the manifests of some
elements, and the SHA-256 of every frame of 10,000 worlds. An intended change of the wire has a new version and writes
the file again: ``python tests/unit/test_golden.py``.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiflow import _encode, _wire
from aiflow._transfer.filemarks import FileMark, Marked

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/frames.json"
SEEDS = 10_000
# Worlds drawn from seeds, one in which users confirm and refuse slices, and one whose nodes share memory.
WORLDS = (
    ("draw=1", "seeds=10"),
    ("confirm=5", "loss=300", "slices=60", "small=1", "bytes=300"),
    ("hub=1", "nodes=3", "share=15", "named=1", "slices=6", "bytes=3000"),
)
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
ELEMENTS: dict[str, Any] = {
    "nothing": [],
    "bytes": [b"abc", b"de", b"fg", b"hij"],
    "arrays": [GRID, GRID + 1, GRID.reshape(6, 4), GRID.view(np.int32), GRID.astype(">f4"), GRID > 3],
    "structures": [np.zeros(2, "u1,f4"), np.zeros(3, [("a", "<i4", (2,)), ("b", "S3")]), np.array(["a", "bc"])],
    "times": [GRID.astype("M8[s]"), GRID.astype("m8[3D]")],
    "names": {"left": GRID, "right": GRID, "größe": b"abc", "": b"", "\udcff": b"x"},
    "files": [
        Marked("a", b"abc", FileMark("file", mode=0o644, mtime_ns=1)),
        Marked("b", b"abc", FileMark("part", mode=0o600, mtime_ns=-1, offset=1 << 33, size=1 << 40)),
        Marked("c", b"", FileMark("directory", mode=0o755)),
    ],
}


def built(directory: Path) -> Path:
    program = directory / "simulate"
    # Floating point must not depend on this CPU.
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-ffp-contract=off", "-w", "-pthread", "-I", str(ROOT / "include")]
    source = ROOT / "tests/core/simulate.c"
    subprocess.run(["gcc", *flags, str(source), "-o", str(program)], check=True, timeout=250)
    return program


def frames(program: Path, *options: str) -> Iterator[bytes]:
    log = subprocess.run([program, *options, "log=1"], env={}, capture_output=True, check=True, timeout=100).stdout
    at = 0
    while at < len(log):
        end = at + 12 + int.from_bytes(log[at + 10 : at + 12], "big")
        yield log[at + 12 : end]
        at = end


def tells_a_place(frame: bytes) -> bool:
    """Whether it is a GRANT that ends with extension 1, of one entry."""
    return frame[14] & 15 == _wire.KINDS["GRANT"] and frame[-16:-12] == b"\0\1\0\x0c"


def first_of_each_kind(program: Path) -> dict[str, list[str]]:
    kinds = {number: kind for kind, number in _wire.KINDS.items()}
    found: dict[str, list[str]] = {kind: [] for kind in _wire.KINDS}
    for world in WORLDS:
        for frame in frames(program, *world):
            some = found[kinds[frame[14] & 15]]
            if len(some) < 2 or (len(some) < 4 and len(frame) not in {len(one) // 2 for one in some}):
                some.append(frame.hex())
    found["GRANT-places"] = [next(frame for frame in frames(program, *WORLDS[-1]) if tells_a_place(frame)).hex()]
    return found


def whole_log(program: Path, seeds: int) -> str:
    digest = hashlib.sha256()
    command = [str(program), "draw=1", f"seeds={seeds}", "log=1"]
    with subprocess.Popen(command, env={}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        while block := running.stdout.read(1 << 20):
            digest.update(block)
    assert running.returncode == 0
    return digest.hexdigest()


def manifests() -> dict[str, str]:
    return {name: _encode.encode(elements)[0].hex() for name, elements in ELEMENTS.items()}


def produced(directory: Path) -> dict[str, Any]:
    program = built(directory)
    return {
        "version": _wire.VERSION,
        "frames": first_of_each_kind(program),
        "manifests": manifests(),
        "log": {"seeds": SEEDS, "sha256": whole_log(program, SEEDS)},
    }


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return built(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def test_a_frame_of_each_kind_is_byte_for_byte_as_before(program, golden) -> None:
    assert all(golden["frames"].values())
    assert first_of_each_kind(program) == golden["frames"]


def test_manifests_are_byte_for_byte_as_before(golden) -> None:
    assert manifests() == golden["manifests"]


@pytest.mark.slow
def test_every_frame_of_ten_thousand_worlds_is_as_before(program, golden) -> None:
    assert whole_log(program, golden["log"]["seeds"]) == golden["log"]["sha256"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        GOLDEN.write_text(json.dumps(produced(Path(directory)), indent=1) + "\n")
