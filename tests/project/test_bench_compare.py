"""bench/compare: green for a run like the baseline, red for a slower hot path, silent about figures it cannot judge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPARE = ROOT / "bench" / "compare"

CASE = "demo and memcpy"
SLOWDOWN = 0.5  # of the time that a byte takes: a third of the rate
ATTEMPTS = 3  # a neighbour's burst widens an interval, and then hides what was planted
PLANTED = """\
#include <time.h>

/* Planted: a busy loop in proportion to the frame. */
static inline void
af_planted(uint64_t nbytes)
{
	struct timespec then, now;

	clock_gettime(CLOCK_MONOTONIC, &then);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - then.tv_sec) * 1000000000ll + now.tv_nsec - then.tv_nsec < (long long)(nbytes * %.6f));
}

#endif
"""


def run_of(others: float = 0.0, **ratios: tuple[float, float, float]) -> dict[str, Any]:
    """A run of one case, as pytest-benchmark writes it."""
    values = {
        name: {"median": median, "low": low, "high": high, "rounds": 15} for name, (low, median, high) in ratios.items()
    }
    return {"benchmarks": [{"name": "case", "extra_info": {"ratios": values, "others": others}}]}


def compared(tmp_path: Path, baseline: dict[str, Any], new: dict[str, Any]) -> tuple[int, str]:
    """Exit code and output of bench/compare."""
    paths = []
    for name, run in (("baseline", baseline), ("new", new)):
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(run))
    result = subprocess.run([sys.executable, str(COMPARE), *paths], capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def test_intervals_that_overlap_are_the_same(tmp_path) -> None:
    code, text = compared(tmp_path, run_of(speed=(0.95, 1.0, 1.05)), run_of(speed=(0.85, 0.93, 1.0)))
    assert code == 0
    assert "same" in text


def test_a_ratio_that_fell_beyond_its_interval_is_worse(tmp_path) -> None:
    code, text = compared(tmp_path, run_of(speed=(0.98, 1.0, 1.02)), run_of(speed=(0.78, 0.80, 0.82)))
    assert code == 1
    assert "WORSE" in text
    assert "-20.0%" in text


def test_a_better_ratio_is_no_regression(tmp_path) -> None:
    code, text = compared(tmp_path, run_of(speed=(0.98, 1.0, 1.02)), run_of(speed=(1.18, 1.20, 1.22)))
    assert code == 0
    assert "better" in text


def test_a_busy_machine_leaves_only_cpu_time_to_judge(tmp_path) -> None:
    baseline = run_of(speed=(0.98, 1.0, 1.02), cpu=(0.98, 1.0, 1.02))
    slow = run_of(0.3, speed=(0.3, 0.4, 0.5), cpu=(0.97, 0.99, 1.01))
    code, text = compared(tmp_path, baseline, slow)
    assert code == 0
    assert "busy" in text
    dear = run_of(0.3, speed=(0.3, 0.4, 0.5), cpu=(0.78, 0.80, 0.82))
    assert compared(tmp_path, baseline, dear)[0] == 1


def test_a_run_in_which_nothing_can_be_judged_is_not_green(tmp_path) -> None:
    code, text = compared(tmp_path, run_of(speed=(1, 1, 1)), run_of(p50=(1, 1, 1)))
    assert code == 2
    assert "Nothing could be judged" in text


# ---- the real thing ----


def measured(tree: Path, result: Path, rounds: int) -> dict[str, Any]:
    """A run of one case with the package of `tree`."""
    command = [
        *(sys.executable, "-m", "pytest", "bench/test_peers.py", "--benchmark-enable", "-q", "-k", CASE),
        *(f"--rounds={rounds}", "--seconds=300", f"--benchmark-json={result}", "-p", "no:cacheprovider"),
    ]
    done = subprocess.run(
        command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run: dict[str, Any] = json.loads(result.read_text())
    (case,) = run["benchmarks"]
    assert Path(case["extra_info"]["aiflow_about"]["package"]) == tree / "aiflow"
    return run


def planted_tree(where: Path, ns_per_byte: float) -> Path:
    """A built copy of this tree whose sender and receiver take longer over each frame."""
    for name in ("aiflow", "bench", "include", "tools"):
        shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, where / name)
    headers = where / "include" / "aiflow"
    agent = (headers / "rt/agent.h").read_text()
    assert agent.endswith("#endif\n")
    (headers / "rt/agent.h").write_text(agent.removesuffix("#endif\n") + PLANTED % ns_per_byte)
    for header, line, size in (
        ("rx/rx_agent.h", "port->count.rx_bytes += len;", "len"),
        ("tx/segment.h", "port->count.tx_bytes += size;", "size"),
        ("rx/reassembly.h", "count.rx_bytes += target->nbytes;", "target->nbytes"),
        ("tx/segment.h", "port->count.tx_bytes += placed;", "placed"),
    ):
        text = (headers / header).read_text()
        assert text.count(line) == 1, f"{header} has changed: plant the slowdown where each frame passes"
        (headers / header).write_text(text.replace(line, f"{line} af_planted({size});"))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=where, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return where


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_third_slower_is_red_and_the_same_again_is_green(tmp_path) -> None:
    rounds = 15
    baseline = measured(ROOT, tmp_path / "first.json", rounds)
    ns_per_byte = SLOWDOWN * baseline["benchmarks"][0]["extra_info"]["aiflow_cpu_s_per_gb"] / 2
    tree = planted_tree(tmp_path / "planted", ns_per_byte)
    for attempt in range(ATTEMPTS):
        again = measured(ROOT, tmp_path / f"again{attempt}.json", rounds)
        code, text = compared(tmp_path, baseline, again)
        assert code == 0, text
        code, text = compared(tmp_path, baseline, measured(tree, tmp_path / f"slow{attempt}.json", rounds))
        if code == 1:
            break
        baseline = again
    assert code == 1, text
    assert "WORSE" in text
