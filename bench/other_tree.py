"""The demo slice carried by the package of another tree: the rounds of a `contest.Link` that runs there.

The modules in that tree's own bench/ drive its package. Nothing of bench/ is imported here, because the same file also
runs in the other tree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class TreeRound:
    """Seconds of a slice, and CPU seconds of both sides."""

    seconds: float
    cpu_source: float
    cpu_sink: float

    @property
    def cpu(self) -> float:
        """CPU seconds of both sides."""
        return self.cpu_source + self.cpu_sink


class Tree:
    """A link of aiflow with the package of `tree`, which is built in place.

    Parameters
    ----------
    tree : Path
    nb_images : int
        Images of the slice.
    cores : (int, int)
        CPUs of source and sink.
    """

    def __init__(self, tree: Path, nb_images: int, cores: tuple[int, int]) -> None:
        tree = tree.resolve()
        self.rounds: list[TreeRound] = []
        self._process = subprocess.Popen(  # -P: the modules beside this file are not the tree's own
            [sys.executable, "-P", __file__, str(nb_images), *map(str, cores)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "bench")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        opened = self._answer()
        self.pids: list[int] = opened["pids"]
        if Path(opened["package"]) != tree / "aiflow":
            self.close()
            raise SystemExit(f"{opened['package']} would be measured in place of {tree}/aiflow: build that tree")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the link of a tree has failed; see its error above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def round(self) -> TreeRound:
        """Carry the next slices. Return the average of all except the first one."""
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)
        self.rounds.append(TreeRound(**self._answer()))
        return self.rounds[-1]

    def close(self) -> None:
        """End its processes."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def serve(nb_images: int, cores: tuple[int, int]) -> None:
    """Run a link of this process's package: a round for each line of standard input."""
    from dataclasses import asdict

    from contest import Link
    from loads import demo

    with Link("aiflow", demo(nb_images), cores) as link:
        print(json.dumps({"package": link.about["package"], "pids": link.pids}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(asdict(link.round())), flush=True)


if __name__ == "__main__":
    images, source, sink = map(int, sys.argv[1:])
    serve(images, (source, sink))
