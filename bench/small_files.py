"""Many small files: `aiflow send` beside tar, in turns.

Usage: python bench/small_files.py [--files N] [--bytes N] [--pairs N] [--dir DIRECTORY]

Prints four times of each round, in seconds, and the median ratios of rates:

- ``aiflow``: `aiflow send DIR` to `aiflow recv OUT` over ``local:``, from the start of sending to the confirmation that
  every file is written and synced;
- ``tar``: `tar c DIR | tar x -C OUT`, then a sync of OUT's file system;
- ``of a tar``: `aiflow send` of one file, the tar of DIR, in the same way;
- ``start``: `aiflow send` of one small file, in the same way. DPDK starts in this time, and the peers connect.

The first two write the same files to the same file system. The first ratio counts all of `aiflow send` but the start of
Python. The second one leaves out ``start``, too, which takes the same time for any number of files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make(directory: Path, nb_files: int, nbytes: int) -> None:
    """Files of `nbytes` bytes, a hundred in each directory."""
    octets = os.urandom(nbytes)
    for number in range(nb_files):
        above = directory / f"{number // 100:04}"
        if number % 100 == 0:
            above.mkdir(parents=True)
        (above / f"{number:06}.jpg").write_bytes(octets)


def synced() -> None:
    os.sync()


def aiflow(source: Path, out: Path, number: int) -> float:
    """Seconds that `aiflow send` reports."""
    endpoint = f"local:small-{os.getpid()}-{number}"
    command = [sys.executable, "-m", "aiflow"]
    recv = subprocess.Popen([*command, "recv", out, "-p", endpoint, "--json"], stdout=subprocess.PIPE, stderr=-1)
    assert recv.stderr is not None
    recv.stderr.readline()  # it is ready
    sent = subprocess.run([*command, "send", source, "-p", endpoint, "--json"], stdout=subprocess.PIPE, check=True)
    recv.communicate()
    return float(json.loads(sent.stdout)["seconds"])


def tar(source: Path, out: Path) -> float:
    """Seconds of tar, and of the sync behind it."""
    out.mkdir()
    started = time.perf_counter()
    subprocess.run(["sh", "-c", f"tar c -C '{source}' . | tar x -C '{out}' && sync -f '{out}'"], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dir", help="directory on the file system to measure; default: that of temporary files")
    asked = parser.parse_args()
    rows: list[tuple[float, float, float, float]] = []
    with tempfile.TemporaryDirectory(dir=asked.dir, prefix="small-files-") as name:
        base = Path(name)
        make(base / "source", asked.files, asked.bytes)
        make(base / "one", 1, asked.bytes)
        (base / "tar").mkdir()
        subprocess.run(["tar", "cf", base / "tar" / "source.tar", "-C", base / "source", "."], check=True)
        for number in range(asked.pairs):
            row = []
            for turn, measure in enumerate(
                (
                    lambda out, n=number: aiflow(base / "source", out, 3 * n),
                    lambda out: tar(base / "source", out),
                    lambda out, n=number: aiflow(base / "tar", out, 3 * n + 1),
                    lambda out, n=number: aiflow(base / "one", out, 3 * n + 2),
                )
            ):
                out = base / f"out-{turn}"
                synced()
                row.append(measure(out))
                shutil.rmtree(out)
            rows.append((row[0], row[1], row[2], row[3]))
            print(
                f"aiflow {row[0]:.2f} s, tar {row[1]:.2f} s, of a tar {row[2]:.2f} s, start {row[3]:.2f} s", flush=True
            )
    print(f"{asked.files} files of {asked.bytes} bytes:")
    for name, rate in {
        "of tar": lambda files, tar, one_tar, start: tar / files,
        "of tar, without the start": lambda files, tar, one_tar, start: tar / (files - start),
        "of aiflow of a tar": lambda files, tar, one_tar, start: one_tar / files,
        "of aiflow of a tar, without the start": lambda files, tar, one_tar, start: (one_tar - start) / (files - start),
    }.items():
        print(f"{statistics.median(rate(*row) for row in rows):.2f} × the rate {name}")


if __name__ == "__main__":
    main()
