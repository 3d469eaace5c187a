"""The two programs at the top of README.md, as they are, as two processes of an ordinary user, and what they print."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from code_blocks import as_pattern
from wait import wait_for

README = Path(__file__).parents[2] / "README.md"
(RECEIVER, RECEIVER_PRINTS), (SENDER, SENDER_PRINTS) = re.findall(
    r"^```python\n(.*?)^```\n```text\n(.*?)^```", README.read_text(), re.M | re.S
)


@dataclass
class User:
    """The user that runs the programs, and the interpreter."""

    interpreter: str
    path: str  # PYTHONPATH; "" where none is needed
    directory: Path  # its own
    identity: dict[str, object]  # for subprocess

    def start(self, code: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.directory),
            "AIFLOW_RUNTIME_DIR": str(self.directory / "run"),
            "PYTHONUNBUFFERED": "1",  # a terminal sees each line at once; so do we
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if self.path:
            environment["PYTHONPATH"] = self.path
        (program := self.directory / f"program-{len(list(self.directory.iterdir()))}.py").write_text(code)
        program.chmod(0o644)
        return subprocess.Popen(
            [self.interpreter, program],
            cwd=self.directory,
            env=environment,
            stdout=open(program.with_suffix(".out"), "w"),
            stderr=open(program.with_suffix(".err"), "w"),
            **self.identity,  # type: ignore[call-overload]
        )


def ordinary_identity() -> dict[str, object]:
    """The owner of the checkout, else the user "nobody"; this process's own user when that is not root."""
    if os.geteuid() != 0:
        return {}
    owner = README.stat()
    entry = pwd.getpwuid(owner.st_uid) if owner.st_uid else pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    identity = ordinary_identity()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"

    def can(interpreter: str, code: str, **environment: str) -> bool:
        try:
            done = subprocess.run(
                [interpreter, "-c", f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}\n{code}"],
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **environment},
                capture_output=True,
                **identity,  # type: ignore[call-overload]
            )
        except OSError:  # it cannot even be reached
            return False
        return bool(done.returncode == 0)

    candidates = [sys.executable, f"/usr/bin/python{version}"]
    interpreter = next((candidate for candidate in candidates if can(candidate, "")), None)
    if interpreter is None:
        pytest.skip(f"an ordinary user can run none of {candidates}: they lie in root's home, or are another Python")
    with tempfile.TemporaryDirectory(prefix="aiflow-readme-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        specs = [importlib.util.find_spec(package) for package in ("aiflow", "numpy")]
        roots = [str(Path(spec.origin).parents[1]) for spec in specs]  # type: ignore[arg-type, union-attr]
        path = next(
            (path for path in ("", ":".join(roots)) if can(interpreter, "import aiflow, numpy", PYTHONPATH=path)), None
        )
        if path is None:  # out of reach: a copy
            for root, package in zip(roots, ("aiflow", "numpy"), strict=True):
                for part in (package, f"{package}.libs"):
                    if (source := Path(root, part)).exists():
                        shutil.copytree(
                            source, directory / "packages" / part, ignore=shutil.ignore_patterns("__pycache__", "tests")
                        )
            subprocess.run(["chmod", "-R", "a+rX", directory / "packages"], check=True)
            path = str(directory / "packages")
            assert can(interpreter, "import aiflow, numpy", PYTHONPATH=path)
        home = directory / "home"
        home.mkdir()
        if identity:
            os.chown(home, int(identity["user"]), int(identity["group"]))  # type: ignore[call-overload]
        yield User(interpreter, path, home, identity)


def said(process: subprocess.Popen[str], stream: str = "out") -> str:
    return Path(str(process.args[1])).with_suffix(f".{stream}").read_text()  # type: ignore[index]


NO_RECEIVER = "no receiver answered"
START_S = 3.0
"""A second program that takes longer to start may miss the first one's time-out of ten seconds."""


@pytest.mark.parametrize("first", ["receiver", "sender"])
def test_the_programs_of_the_readme_run_as_they_are(user: User, first: str) -> None:
    """Where the machine did not let the second one start in time, they are started again."""
    assert "aiflow.Receiver(" in RECEIVER
    assert "aiflow.Sender(" in SENDER
    while not run_both(user, first):
        pass


def run_both(user: User, first: str) -> bool:
    """Run the two; False when the sender timed out before the receiver was able to start."""
    programs = {"receiver": RECEIVER, "sender": SENDER}
    second = "sender" if first == "receiver" else "receiver"
    processes = {}
    try:
        processes[first] = user.start(programs[first])
        wait_for(lambda: has_ports(processes[first]), "the first program to open its side", 120)
        assert processes[first].poll() is None  # it waits for the other
        assert said(processes[first]) == ""
        began = time.monotonic()
        processes[second] = user.start(programs[second])
        receiver, sender = processes["receiver"], processes["sender"]
        wait_for(lambda: processes[second].poll() is not None or has_ports(processes[second]), "the second one", 120)
        late = time.monotonic() - began > START_S
        if user.identity:
            assert Path(f"/proc/{receiver.pid}").stat().st_uid == user.identity["user"] != 0
        if sender.wait(120) and late and NO_RECEIVER in said(sender, "err"):
            return False
        assert sender.returncode == 0, said(sender, "err")
        wait_for(lambda: said(receiver).count("\n") >= 2, "the receiver to print both elements")
        assert said(receiver) == RECEIVER_PRINTS
        assert receiver.poll() is None  # it waits for the next slice
        assert re.fullmatch(as_pattern(SENDER_PRINTS), said(sender))
        assert said(sender, "err") == said(receiver, "err") == ""
        return True
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(60)


def has_ports(process: subprocess.Popen[str]) -> bool:
    return "librte_ethdev" in Path(f"/proc/{process.pid}/maps").read_text()
