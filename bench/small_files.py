"""Many small files: `aiflow send` beside tar, in turns.

Usage: python bench/small_files.py [--files N] [--bytes N] [--pairs N] [--dir DIRECTORY]

Prints three times of each pair, in seconds, and the median ratios of rates:

- ``aiflow``: `aiflow send DIR` to `aiflow recv OUT` over ``local:``, from the start of sending to the confirmation that
  every file is written and synced;
- ``tar``: `tar c DIR | tar x -C OUT`, then a sync of OUT's file system;
- ``of a tar``: `aiflow send` of one file, the tar of DIR, in the same way.

The first two write the same files to the same file system. The start of both processes does not count: it takes 0.5 s,
however many files there are.
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
    rows: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory(dir=asked.dir, prefix="small-files-") as name:
        base = Path(name)
        make(base / "source", asked.files, asked.bytes)
        (base / "tar").mkdir()
        subprocess.run(["tar", "cf", base / "tar" / "source.tar", "-C", base / "source", "."], check=True)
        for number in range(asked.pairs):
            row = []
            for turn, measure in enumerate(
                (
                    lambda out, n=number: aiflow(base / "source", out, 2 * n),
                    lambda out: tar(base / "source", out),
                    lambda out, n=number: aiflow(base / "tar", out, 2 * n + 1),
                )
            ):
                out = base / f"out-{turn}"
                synced()
                row.append(measure(out))
                shutil.rmtree(out)
            rows.append((row[0], row[1], row[2]))
            print(f"aiflow {row[0]:.2f} s, tar {row[1]:.2f} s, of a tar {row[2]:.2f} s", flush=True)
    for index, name in ((1, "tar"), (2, "aiflow of a tar")):
        ratio = statistics.median(row[index] / row[0] for row in rows)
        print(f"{asked.files} files of {asked.bytes} bytes: {ratio:.2f} × the rate of {name}")


if __name__ == "__main__":
    main()
