"""The holder of a lock owns a name, whatever its process id, and whatever a cleaner of temporary files removes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from subprocesses import environment, run
from wait import wait_for

import aiflow
from aiflow._ports import registry, rendezvous_receiver
from aiflow._ports.runtime_dir import runtime_directory
from aiflow.errors import PortError, SliceTimeout
from aiflow.names import live_names
from aiflow.names import runtime_directory as names_directory


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own; short, as sockets need it."""
    path = Path(f"/tmp/af-n{os.getpid()}")
    path.mkdir(mode=0o700)
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def ports() -> dict[str, object]:
    """The document that ``aiflow ports --json`` prints."""
    return json.loads(run("from aiflow.cli.app import run; run(['ports', '--json'])"))


def delivered(rx: aiflow.Receiver, endpoint: str) -> bool:
    """Does a new sender reach this receiver?"""
    with aiflow.Sender(endpoint) as tx:
        ticket = tx.send([b"x"], wait=False)
        try:
            rx.recv(timeout=20).release()
        except SliceTimeout:
            ticket.cancel()
            return False
        ticket.result(20)
        return True


# -------------------------------------------------------------------------------------------------------- process ids

RECEIVER = """
    import aiflow, os, sys
    with aiflow.Receiver(sys.argv[1], memory="16MiB") as rx:
        print(os.getpid(), flush=True)
        for time_slice in rx: print(time_slice[0].tobytes().decode(), flush=True)
"""
IN_A_CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


class Boxed:
    """A receiver in a PID namespace of its own."""

    def __init__(self, endpoint: str, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*(prefix or IN_A_CONTAINER), sys.executable, "-c", textwrap.dedent(RECEIVER), endpoint],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Boxed:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()


SEND = "import aiflow, sys; aiflow.Sender(sys.argv[1]).send([sys.argv[1].encode()], timeout=30)"


@pytest.mark.root
@pytest.mark.parametrize("scheme", ["local", "vhost"])
def test_containers_with_equal_process_ids_share_a_directory(directory: Path, scheme: str) -> None:
    endpoints = [f"{scheme}:one", f"{scheme}:two"]
    with Boxed(endpoints[0]) as one, Boxed(endpoints[1]) as two:
        assert one.line() == two.line() == "1"
        for endpoint, box in zip(endpoints, (one, two), strict=True):
            run(SEND, endpoint, prefix=IN_A_CONTAINER)
            assert box.line() == endpoint
        assert [name.endpoint for name in registry.live()] == endpoints
        with pytest.raises(PortError, match=r"process 1 of another container"):
            aiflow.Receiver(endpoints[0], memory="16MiB")
    wait_for(lambda: registry.live() == [], "their end")


@pytest.mark.root
def test_a_container_that_starts_again_with_the_same_process_id(directory: Path) -> None:
    for _ in range(2):
        with Boxed("local:again") as box:
            assert box.line() == "1"
            run(SEND, "local:again")
            assert box.line() == "local:again"
        wait_for(lambda: registry.live() == [], "its end")  # though a process 1 is there
    assert len(list(directory.glob("sock-????????"))) == 1  # the second's: it has removed the first's


@pytest.mark.root
def test_a_directory_that_each_container_sees_at_another_path(directory: Path) -> None:
    elsewhere = f"/tmp/af-m{os.getpid()}"
    mounted = f'mkdir -p {elsewhere}; mount --bind {directory} {elsewhere}; AIFLOW_RUNTIME_DIR={elsewhere} exec "$@"'
    try:
        with Boxed("local:moved", "unshare", "--mount", "sh", "-c", mounted, "sh") as box:
            box.line()
            run(SEND, "local:moved")
            assert box.line() == "local:moved"
    finally:
        os.rmdir(elsewhere)


def test_a_process_that_lives_is_not_taken_for_the_owner(directory: Path) -> None:
    """The files of a killed receiver, whose process id now belongs to a living process."""
    left = directory / "local-stale"
    left.mkdir(mode=0o700)
    (left / "lock").write_text(f"{os.getpid()}\n")
    assert registry.live() == []
    with aiflow.Receiver("local:stale", memory="16MiB") as rx:
        assert delivered(rx, "local:stale")


def test_the_command_ports_lists_them(directory: Path) -> None:
    with aiflow.Receiver(["local:a", "vhost:b"], memory="16MiB"):
        document = ports()
    assert document["runtime_directory"] == str(directory)
    assert document["live_names"] == [
        {"endpoint": endpoint, "process": os.getpid(), "owner": f"process {os.getpid()}"}
        for endpoint in ("local:a", "vhost:b")
    ]
    assert ports()["live_names"] == []


# ----------------------------------------------------------------------------------------------------------- cleaners

CLEANED: dict[str, Callable[[Path], object]] = {
    "lock": lambda root: (root / "local-x/lock").unlink(),
    "control": lambda root: (root / "local-x/control").unlink(),
    "proxy": lambda root: (root / "local-x/memif").unlink(),
    "driver's socket": lambda root: [path.unlink() for path in root.glob("sock-*")],
    "name's directory": lambda root: shutil.rmtree(root / "local-x"),
    "all": shutil.rmtree,
}


@pytest.mark.parametrize("what", CLEANED)
def test_what_a_cleaner_removes_is_made_anew(directory: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(rendezvous_receiver, "_RENEWAL_INTERVAL", 0.1)
    with aiflow.Receiver("local:x", memory="16MiB") as rx:
        assert delivered(rx, "local:x")
        CLEANED[what](directory)
        wait_for(lambda: (directory / "local-x/control").exists() and registry.live(), "the name", 10)
        assert delivered(rx, "local:x")
        with pytest.raises(PortError, match="another receiver has this name"):
            aiflow.Receiver("local:x", memory="16MiB")
    assert registry.live() == []


def test_a_directory_above_that_is_missing_for_a_while(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /run/user/UID between a logout and the next login."""
    monkeypatch.setattr(rendezvous_receiver, "_RENEWAL_INTERVAL", 0.05)
    above = directory / "up"
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(above / "here"))
    with aiflow.Receiver("local:x", memory="16MiB") as rx, aiflow.Sender("local:x") as tx:
        tx.send([b"x"], wait=False).result(20)
        shutil.rmtree(above)
        rx.recv(timeout=20).release()
        with pytest.raises(SliceTimeout):  # several looks later it is no error
            rx.recv(timeout=0.5)
        tx.send([b"x"], wait=False).result(20)  # a connected sender stays connected
        above.mkdir(mode=0o700)
        wait_for(registry.live, "the name", 10)
        rx.recv(timeout=20).release()
        wait_for(lambda: (above / "here/local-x/control").exists(), "the socket", 10)
        assert delivered(rx, "local:x")


@pytest.mark.parametrize(
    ("what", "first_to_close"),
    [
        ("lock", "the first"),
        ("lock", "the second"),
        ("name's directory", "the first"),
        ("all", "the first"),
        ("all", "the second"),
    ],
)
def test_a_receiver_whose_name_was_taken_meanwhile_is_told(
    directory: Path, monkeypatch: pytest.MonkeyPatch, what: str, first_to_close: str
) -> None:
    monkeypatch.setattr(rendezvous_receiver, "_RENEWAL_INTERVAL", 1.0)
    with contextlib.ExitStack() as ends:
        first = ends.enter_context(aiflow.Receiver("local:x", memory="16MiB"))
        CLEANED[what](directory)
        second = ends.enter_context(aiflow.Receiver("local:x", memory="16MiB"))  # before the first has looked
        with pytest.raises(PortError, match=rf"taken over.*process {os.getpid()}.*lock in {directory}/local-x"):
            first.recv(timeout=10)
        if first_to_close == "the first":
            first.close()
            assert [name.endpoint for name in registry.live()] == ["local:x"]
            assert delivered(second, "local:x")
        else:
            second.close()
            with aiflow.Receiver("local:x", memory="16MiB") as third:
                first.close()
                assert delivered(third, "local:x")


def test_a_sender_goes_over_to_the_receiver_that_took_the_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous_receiver, "_RENEWAL_INTERVAL", 0.5)
    with contextlib.ExitStack() as ends:
        first = ends.enter_context(aiflow.Receiver("local:x", memory="16MiB"))
        tx = ends.enter_context(aiflow.Sender("local:x"))
        ticket = tx.send([b"x"], wait=False)
        first.recv(timeout=20).release()
        ticket.result(20)
        CLEANED["lock"](directory)
        second = ends.enter_context(aiflow.Receiver("local:x", memory="16MiB"))
        with pytest.raises(PortError, match="taken over"):
            first.recv(timeout=10)
        ticket = tx.send([b"y"], wait=False)
        assert second.recv(timeout=10)[0].tobytes() == b"y"
        ticket.result(20)


def test_cleaners_are_shown_that_a_directory_is_in_use(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TOUCH_INTERVAL", 0.0)
    monkeypatch.setattr(rendezvous_receiver, "_RENEWAL_INTERVAL", 0.1)
    with aiflow.Receiver("local:x", memory="16MiB"):
        for path in (directory, directory / "local-x"):  # as systemd-tmpfiles does
            opened = os.open(path, os.O_RDONLY)
            try:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(opened)
        paths = [directory, directory / "local-x", directory / "local-x/lock", directory / "local-x/control"]
        for path in paths:
            os.utime(path, (0, 0))
        wait_for(lambda: all(path.stat().st_mtime > 0 for path in paths), "a sign of use", 10)


def test_a_killed_process_leaves_nothing_once_the_next_has_started(directory: Path) -> None:
    with Boxed("local:killed", "env") as box:
        box.line()
        run(SEND, "local:killed")
        os.kill(box.process.pid, signal.SIGKILL)
        box.process.wait()
    ours = {path.name for path in directory.iterdir()}
    assert "local-killed" in ours
    with aiflow.Receiver("local:next", memory="16MiB"):
        assert [path.name for path in directory.iterdir() if path.name in ours] == []


def test_files_of_others_in_the_directory_stay(directory: Path) -> None:
    """AIFLOW_RUNTIME_DIR may name a directory that has other files in it."""
    kept = [
        "local-x/notes", "local-y/notes", "local-y/lock", "memif-z/lock/notes", "my-data/lock", "my-data/notes",
        "sock-drawer.lock", "sock-drawer", "sock-00000000",
    ]  # fmt: skip
    for name in kept:
        (directory / name).parent.mkdir(mode=0o700, exist_ok=True, parents=True)
        (directory / name).write_text("theirs")
    (directory / "my-empty").mkdir()
    left = [directory / "local-w/lock", directory / "sock-0123abcd.lock"]
    left[0].parent.mkdir()
    for path in left:
        path.touch()
        os.utime(path, (0, 0))
    (directory / "local-v").mkdir()
    for _ in range(2):
        with aiflow.Receiver("local:x", memory="16MiB") as rx:
            assert delivered(rx, "local:x")
    assert [name for name in kept if (directory / name).read_text() != "theirs"] == []
    assert (directory / "my-empty").is_dir()
    assert [path for path in (*left, directory / "local-v", directory / "local-w") if path.exists()] == []


# --------------------------------------------------------------------------------------------------- runtime directory

WORKING = ["with space", "é-ü", "%41;:#!", "a[b]", "'q\"", "a+b@c~"]
UNUSABLE = {"a,b": "','", "a=b": "'='", "a\nb": "printed", "a\x1b[31m": "printed", "x" * 40: "too long"}


@pytest.mark.parametrize(("scheme", "name"), [*(("local", name) for name in WORKING), ("vhost", " a[b]")])
def test_directories_of_any_name_work(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str) -> None:
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(directory / name))
    with aiflow.Receiver(f"{scheme}:q", memory="16MiB") as rx:
        assert delivered(rx, f"{scheme}:q")


def test_a_relative_directory_is_meant_from_here(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", "relative")
    with aiflow.Receiver("local:q", memory="16MiB") as rx, aiflow.Sender("local:q") as tx:
        monkeypatch.chdir("/")
        ticket = tx.send([b"x"], wait=False)
        rx.recv(timeout=20)
        ticket.result(20)
    assert [path.name for path in directory.iterdir()] == ["relative"]


@pytest.mark.parametrize("side", [aiflow.Receiver, aiflow.Sender])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_directory_that_cannot_be_used_is_named_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, side: Callable[[str], object]
) -> None:
    monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(directory / name))
    with pytest.raises(PortError, match="AIFLOW_RUNTIME_DIR") as refused:
        side("local:q")
    assert UNUSABLE[name] in str(refused.value)
    assert str(directory) in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("base", ["a,b", "a=b", "a\nb", "relative", "x" * 40, "missing", "file"])
def test_a_session_directory_that_cannot_be_used_is_passed_over(
    directory: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.delenv("AIFLOW_RUNTIME_DIR")
    monkeypatch.chdir(directory)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    expected = runtime_directory()
    if base == "file":
        (directory / base).touch()
    elif base != "missing":
        (directory / base).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", base if base == "relative" else str(directory / base))
    assert runtime_directory() == expected


def test_a_name_in_another_directory_of_ours_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIFLOW_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    with aiflow.Receiver("vhost:q", memory="16MiB"):
        monkeypatch.setenv("AIFLOW_RUNTIME_DIR", str(directory / "other"))
        (said,) = registry.elsewhere(aiflow.config.parse_endpoint("local:q"), runtime_directory())
    assert f"vhost:q in {directory}/aiflow" in said
    assert "AIFLOW_RUNTIME_DIR" in said


def test_scripts_list_the_names_on_this_host(directory: Path) -> None:
    with aiflow.Receiver("local:listed", memory="16MiB"):
        assert list(live_names()) == [("local:listed", os.getpid())]
    assert list(live_names()) == []
    assert names_directory() == directory
