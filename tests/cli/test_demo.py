"""The main job, and the photographs it is made of."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
for package in ("skimage", "sklearn", "matplotlib"):  # looked for, not imported: that takes seconds in each process
    if find_spec(package) is None:
        pytest.skip(f"needs the extra demo ({package})", allow_module_level=True)

from aiflow._samples import photos  # noqa: E402
from aiflow.cli.demo_picture import rates_by_port  # noqa: E402

FEW = {"nb_photos": 6, "total_bytes": 6 * 267_578}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> photos.PhotoSet:
    return photos.photo_set(tmp_path_factory.mktemp("cache"), **FEW)


@pytest.mark.unit
def test_photographs_are_jpeg_files_of_a_cameras_size(few: photos.PhotoSet) -> None:
    assert len(few.photos) == FEW["nb_photos"]
    assert abs(few.nbytes - FEW["total_bytes"]) < 300_000
    for photo, content in few.read():
        assert 220_000 <= photo.nbytes == len(content) <= 310_000
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "JPEG"
            pixels = np.asarray(image)
        assert pixels.shape[0] * pixels.shape[1] > 400_000
        assert pixels.std() > 5  # a picture of something
    assert len({photo.sha256 for photo in few.photos}) == len(few.photos)


@pytest.mark.unit
def test_the_same_seed_gives_the_same_photographs_and_another_seed_others(few: photos.PhotoSet, tmp_path: Path) -> None:
    again = photos.photo_set(tmp_path, **FEW)
    other = photos.photo_set(tmp_path, **FEW, seed=7)
    assert again.photos == few.photos
    assert other.directory != again.directory
    assert not {photo.sha256 for photo in other.photos} & {photo.sha256 for photo in few.photos}


@pytest.mark.unit
def test_cached_photographs_are_not_made_again_unless_damaged(few: photos.PhotoSet) -> None:
    def no_progress(_: int) -> None:
        raise AssertionError("made again")

    root = few.directory.parent
    assert photos.photo_set(root, **FEW, progress=no_progress).photos == few.photos

    victim = few.directory / few.photos[3].name
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    mended = photos.photo_set(root, **FEW)
    assert mended.photos == few.photos
    assert mended.intact()
    assert [path.name for path in root.iterdir()] == [few.directory.name]  # nothing temporary is left


def _make(root: Path, results: multiprocessing.SimpleQueue[bool]) -> None:
    results.put(photos.photo_set(root, **FEW).intact())


@pytest.mark.unit
def test_two_processes_that_make_them_at_once_end_with_one_good_set(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    makers = [spawn.Process(target=_make, args=(tmp_path, results)) for _ in range(2)]
    for maker in makers:
        maker.start()
    assert [results.get() for _ in makers] == [True, True]
    for maker in makers:
        maker.join(60)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.unit
def test_the_cache_goes_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert photos.cache_root() == tmp_path / "aiflow"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert photos.cache_root() == Path.home() / ".cache" / "aiflow"


@pytest.mark.unit
def test_rates_add_up_to_the_bytes_received() -> None:
    samples = [(10 + 0.02 * n, {"p#0": 1_000_000 * min(n, 50), "p#1": 3_000_000 * min(n, 50)}) for n in range(100)]
    names, times, rates = rates_by_port(samples)
    assert names == ["p#0", "p#1"]
    assert rates.shape == (2, times.size)
    width = times[1] - times[0]
    np.testing.assert_allclose(rates.sum(axis=1) * width * 1e9 / 8, [50e6, 150e6], rtol=0.01)
    assert rates_by_port([])[0] == []
    assert rates_by_port([(0.0, {"p#0": 0}), (1.0, {"p#0": 0})])[0] == []


def run_demo(tmp_path: Path, *arguments: str) -> tuple[dict, str]:
    command = [sys.executable, "-m", "aiflow", "demo", "--json", "--report", str(tmp_path / "report.png"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert run.returncode == 0, run.stderr + run.stdout
    return json.loads(run.stdout), run.stderr


@pytest.mark.slow
def test_the_main_job_delivers_512_photographs_identical(tmp_path: Path) -> None:
    started = time.monotonic()
    photos.photo_set()  # made now, or cached by an earlier run
    cached = time.monotonic()
    result, _ = run_demo(tmp_path)
    seconds = time.monotonic() - cached

    assert result["error"] is None
    assert result["identical"] == result["elements"] == 512
    assert abs(result["nbytes"] - 137_000_000) <= 1_000_000
    assert result["slices_identical"] == len(result["slices"]) >= 2
    assert len(result["ports"]) == 4
    assert all(port["frames"] > 0 for port in result["ports"])
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1920, 1080)
    print(f"photographs {cached - started:.1f} s, the rest {seconds:.1f} s")


def test_a_small_demo_on_one_port_and_a_single_slice(tmp_path: Path) -> None:
    result, stderr = run_demo(tmp_path, "--images", "8", "--ports", "1", "--seconds", "0")
    assert (result["identical"], len(result["slices"]), len(result["ports"])) == (8, 1, 1)
    assert stderr == ""


class RunningDemo:
    """A demo that goes on for long, on a terminal, where it shows what it does."""

    def __init__(self, tmp_path: Path) -> None:
        self._terminal, other_end = os.openpty()
        self._text = ""
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aiflow", "demo", "--images", "64", "--ports", "2", "--seconds", "60"],
            stdout=subprocess.DEVNULL,
            stderr=other_end,
            env=environment,
            cwd=tmp_path,
        )
        os.close(other_end)

    def _read(self, wanted: str | None) -> None:
        """Read what it shows, up to `wanted` or to its end."""
        deadline = time.monotonic() + 120
        while wanted is None or wanted not in self._text:
            assert time.monotonic() < deadline, self._text
            if select.select([self._terminal], [], [], 1)[0]:
                try:
                    self._text += os.read(self._terminal, 65536).decode(errors="replace")
                except OSError:  # no process has the other end any more
                    break

    def peers(self) -> dict[str, int]:
        """Wait until the first slice has arrived; find the receiver and the sender, which are started in this order."""
        self._read("sending further slices")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        pids = sorted(int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())
        return dict(zip(("receiver", "sender"), pids, strict=True))

    def ends(self, exit_code: int) -> str:
        self._read(None)
        assert self.process.wait(60) == exit_code, self._text
        assert "Traceback" not in self._text
        return self._text

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.fixture
def running_demo(tmp_path: Path) -> Iterator[RunningDemo]:
    demo = RunningDemo(tmp_path)
    yield demo
    demo.close()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_takes_its_processes_with_it(running_demo: RunningDemo, number: signal.Signals) -> None:
    peers = running_demo.peers()
    running_demo.process.send_signal(number)
    assert "aiflow: interrupted" in running_demo.ends(130)
    assert all(gone(pid) for pid in peers.values())


@pytest.mark.parametrize("victim", ["receiver", "sender"])
def test_a_demo_that_loses_a_process_says_so_and_ends_with_1(running_demo: RunningDemo, victim: str) -> None:
    peers = running_demo.peers()
    os.kill(peers[victim], signal.SIGKILL)
    assert "aiflow: " in running_demo.ends(1)
    assert all(gone(pid) for pid in peers.values())


def test_fault_56_a_cache_that_cannot_be_written_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")  # a file where the directory should go: stops root, too
    run = subprocess.run(
        [sys.executable, "-m", "aiflow", "demo", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        cwd=tmp_path,
    )
    assert run.returncode == 1, run.stderr
    assert "XDG_CACHE_HOME" in json.loads(run.stdout)["error"]["message"]


def test_a_report_in_a_missing_directory_is_bad_usage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aiflow", "demo", "--report", str(tmp_path / "missing" / "report.png")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "there is no such directory" in run.stderr


def test_ctrl_c_while_photographs_are_made_ends_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aiflow", "demo"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, start_new_session=True
    ) as demo:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("aiflow/.photos-*/*.jpg")):
            assert demo.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
        _, stderr = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert "aiflow: interrupted" in stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "aiflow").iterdir()) == []


def test_the_demo_needs_its_extra_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('PIL', 'matplotlib') else find(name, *a)\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    run = subprocess.run(
        [sys.executable, "-m", "aiflow", "demo"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
    )
    assert run.returncode == 2
    assert "pip install 'aiflow-dpdk[demo]'" in run.stderr
    assert "pillow, matplotlib" in run.stderr
    assert "Traceback" not in run.stderr
