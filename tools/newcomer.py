"""A new user's first hour: in a fresh clone, every command and program of README.md, tutorial and how-tos is pasted.

Usage: tools/newcomer.py [--keep] [PAGE ...]        `make newcomer`; ten minutes, and pip downloads packages

The commands are read from the pages. Each page that PAGES lists is gone through from top to bottom, in two terminals of
a user who has nothing: an empty home with the clone in it. Under root the user is one without an account, and a third
terminal is root's. A block is pasted if the tests of pages run it (tests/support/code_blocks.py), or if a mark says
that a file does. It fails if a command does, or if it does not print what the page shows. Blocks that say why they are
not run are listed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

from code_blocks import Block, as_pattern, blocks_of  # noqa: E402

PAGES = {
    "README.md": "~/aiflow",
    "docs/install.md": "~/aiflow",
    "docs/tutorial.md": "~",
    "docs/jupyter.md": "~/aiflow",
    "docs/receivers.md": "~",
    "docs/shell.md": "~",
    "docs/observe.md": "~",
}
"""Page → the directory in which a reader is at its top."""

LEFT_OUT = {"make test": "CI's first stage runs it, for half an hour"}
SERVERS = {"jupyter lab": "is running at", "aiflow metrics": "^metrics at"}
"""Commands that serve until Ctrl-C → what they print once they serve."""

DEADLINE_S = 900
SHELL = "bash --noprofile --norc"


class Stumbled(Exception):
    """A page that leads a newcomer into an error."""


class Terminal:
    """A shell of one user, into which blocks are pasted."""

    def __init__(self, home: Path, uid: int | None, path: str) -> None:
        self._home = home
        self._said: queue.Queue[str] = queue.Queue()
        self._count = 0
        environment = {"HOME": str(home), "PATH": path, "TERM": "dumb", "LANG": "C.UTF-8", "BROWSER": "true"}
        environment["USER"] = "root" if uid is None and os.geteuid() == 0 else "newcomer"
        passed = re.compile(r"PIP_\w+|SSL_CERT_\w+|https?_proxy|no_proxy", re.I)  # how this machine reaches the index
        environment |= {name: value for name, value in os.environ.items() if passed.fullmatch(name)}
        identity = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
        self.process = subprocess.Popen(
            SHELL.split(),
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that close ends whatever a block has left behind
            **identity,  # type: ignore[call-overload]
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line)

    def paste(self, code: str) -> None:
        """Give it lines; a command that fails ends the block, as a reader would stop there."""
        assert self.process.stdin is not None
        self._count += 1
        script = self._home / f".block-{self.process.pid}-{self._count}"  # each terminal has its own
        script.write_text(code)
        script.chmod(0o644)
        # In this shell, so that cd, activate and export last. set -e ends it at the first command that fails.
        line = f"set -e; trap 'echo aiflow-end $?' EXIT; . {script} </dev/null; set +e; echo aiflow-end 0\n"
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def until(self, pattern: str) -> str:
        """What it prints, up to a line with this pattern."""
        printed = ""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                line = self._said.get(timeout=1)
            except queue.Empty:
                if self.process.poll() is not None and self._said.empty():
                    raise Stumbled(f"{printed}the terminal has ended") from None
                continue
            if re.search(pattern, line):
                return printed + line
            if line.startswith("aiflow-end "):
                raise Stumbled(f"{printed}exit code {line.split()[1]}")
            printed += line
        raise Stumbled(f"{printed}it does not end, or does not say {pattern!r}")

    def finish(self) -> str:
        """What the block prints, once it has ended well."""
        printed = self.until("^aiflow-end 0$")
        return printed.rpartition("aiflow-end")[0]

    def interrupt(self) -> None:
        """Ctrl-C: for all programs of this terminal, but not for its shell."""
        for pid in descendants(self.process.pid):
            os.kill(pid, signal.SIGINT)

    def close(self) -> None:
        """Close it, and end what runs in it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def descendants(pid: int) -> list[int]:
    """The processes below this one."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


class Newcomer:
    """A user with an empty home, a clone and two terminals."""

    def __init__(self, home: Path, uid: int | None) -> None:
        self.home, self.uid = home, uid
        self.path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.first, self.second = (Terminal(home, uid, self.path) for _ in range(2))
        self._beside: Block | None = None

    def close(self) -> None:
        """Close both terminals."""
        self.first.close()
        self.second.close()

    def read(self, page: str) -> Iterator[tuple[int, str]]:
        """Go through a page: yields the line of each block, and what became of it."""
        text = (self.home / "aiflow" / page).read_text()
        blocks = [block for block in blocks_of(text) if block.language in ("sh", "python")]
        for terminal in (self.first, self.second):
            terminal.paste(f"cd {PAGES[page]}")
            terminal.finish()
        if page == "README.md":  # its two programs come first, and can run when aiflow is installed
            blocks.sort(key=lambda block: block.language == "python")
            programs = [block for block in blocks if block.language == "python"]
            programs[0].marks["beside the next"] = ""
        for block in blocks:
            began = time.monotonic()
            if "not run" in block.marks:
                yield block.line, f"not pasted: {block.marks['not run']}"
                continue
            try:
                left_out = self.paste(page, block)
            except Stumbled as error:
                raise Stumbled(f"{page}, line {block.line}:\n{block.code}\n{error}") from None
            yield block.line, f"{time.monotonic() - began:5.1f} s{left_out}"

    def paste(self, page: str, block: Block) -> str:
        """Run one block, and the one beside it."""
        lines = block.code.splitlines()
        without = {line: why for line in lines for begin, why in LEFT_OUT.items() if line.startswith(begin)}
        code = "\n".join(line for line in lines if line not in without) + "\n"
        if block.language == "python":
            program = self.home / f"{Path(page).stem.lower()}-{block.line}.py"
            program.write_text(block.first + code)
            code = f". ~/aiflow-env/bin/activate\npython -u {program}\n"
        else:
            code = block.first + code
        if "root" in block.marks.get("run by", ""):
            self.as_root(code)
        elif "beside the next" in block.marks:
            self._beside = block
            self.second.paste(". ~/aiflow-env/bin/activate\n" + code)
        else:
            self.in_first(code, block)
        return "".join(f"; without {line.split('#')[0].strip()!r}: {why}" for line, why in without.items())

    def in_first(self, code: str, block: Block) -> None:
        """Run a block in the first terminal, then see what the one in the second terminal has printed."""
        server = next((begin for begin in SERVERS if re.search(f"^{begin}", code, re.M)), None)
        self.first.paste(re.sub(f"^(?={server})", "set +e\n", code, flags=re.M) if server else code)
        if server is not None:
            self.first.until(SERVERS[server])
            self.first.interrupt()
            time.sleep(1)
            self.first.interrupt()  # Jupyter asks at the first one
            self.first.finish()
            return
        compare(block, self.first.finish())
        if self._beside is None:
            return
        beside, self._beside = self._beside, None
        if 'until="bye"' in beside.code or beside.language == "sh":
            compare(beside, self.second.finish())
        else:  # it waits for the next slice, until Ctrl-C
            last = (beside.output or "").splitlines()[-1]
            compare(beside, self.second.until(re.escape(last)))
            self.second.interrupt()
            self.second.until("^aiflow-end")
            self.second.close()
            self.second = Terminal(self.home, self.uid, self.path)

    def as_root(self, code: str) -> None:
        """Run a block in a terminal of root, which has the user's path."""
        if os.geteuid() != 0:
            raise Stumbled("this block needs root: start tools/newcomer.py as root")
        before = namespaces()
        terminal = Terminal(self.home, None, f"{self.home}/aiflow-env/bin:{self.path}")
        try:
            terminal.paste(code)
            terminal.finish()
        finally:
            terminal.close()
            for name in set(re.findall(r"^ip netns add (\S+)", code, re.M)) & (namespaces() - before):
                delete_namespace(name)  # the block has not come to its end


def namespaces() -> set[str]:
    """Names of the network namespaces."""
    directory = Path("/run/netns")
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


def delete_namespace(name: str) -> None:
    """End the processes in a network namespace, and delete it."""
    inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    for pid in map(int, inside.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], check=False)


def compare(block: Block, printed: str) -> None:
    """See that a block has printed what its page shows."""
    if block.output is None or "output differs" in block.marks:
        return
    if not re.fullmatch(as_pattern(block.output), printed):
        raise Stumbled(f"the page shows\n{block.output}and it prints\n{printed}")


@contextlib.contextmanager
def home_of_a_newcomer(keep: bool) -> Iterator[tuple[Path, int | None]]:
    """A home with a clone of the last commit, and the user who owns it; None: this process's own."""
    base = Path(tempfile.mkdtemp(prefix="aiflow-newcomer-"))
    base.chmod(0o755)
    home = base / "home"
    home.mkdir()
    uid = None
    if os.geteuid() == 0:
        taken = {entry.pw_uid for entry in pwd.getpwall()}
        uid = next(number for number in range(64000, 65000) if number not in taken)
    try:
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", f"file://{ROOT}", home / "aiflow"], check=True)
        if uid is not None:
            subprocess.run(["chown", "-R", f"{uid}:{uid}", home], check=True)
        yield home, uid
    finally:
        if keep:
            print(f"kept {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)
            if uid is not None:
                shutil.rmtree(f"/tmp/aiflow-{uid}", ignore_errors=True)  # the directory of names


def main() -> int:
    """Read all pages, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the home")
    parser.add_argument("pages", nargs="*", default=list(PAGES), metavar="PAGE", help="README.md docs/tutorial.md …")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with home_of_a_newcomer(options.keep) as (home, uid):
        newcomer = Newcomer(home, uid)
        try:
            for page in options.pages:
                for line, outcome in newcomer.read(page):
                    print(f"{page}:{line}: {outcome}", flush=True)
        except Stumbled as error:
            print(f"aiflow: a newcomer stumbles at {error}", file=sys.stderr)
            return 1
        finally:
            newcomer.close()
    print(f"aiflow: a newcomer needs {time.monotonic() - began:.0f} s, and stumbles nowhere")
    return 0


if __name__ == "__main__":
    sys.exit(main())
