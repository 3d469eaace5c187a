"""docs/containers.md: with the capabilities that it adds to a container, and no others, slices cross an interface."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from netns import Net
from subprocesses import run, start

pytestmark = pytest.mark.root

PAGE = Path(__file__).parents[2] / "docs/containers.md"

RECEIVE = """
    import sys, aiflow
    with aiflow.Receiver(sys.argv[1], until="bye") as rx:
        print("ready", flush=True)
        print([bytes(element.array) for time_slice in rx for element in time_slice])
"""

SEND = """
    import sys, aiflow
    with aiflow.Sender(sys.argv[1], peer_timeout=60) as tx:
        tx.send([b"1234"])
"""


def rights(scheme: str) -> tuple[str, ...]:
    """A command's prefix: root with the capabilities that the page adds, and no others."""
    (line,) = re.findall(rf"^\| `{scheme}:eth1` of the host \| (.*)", PAGE.read_text(), re.M)
    added = [name.lower() for name in re.findall(r"--cap-add (\w+)", line)]
    assert "net_raw" in added
    return ("setpriv", ",".join(["--bounding-set=-all", *(f"+{name}" for name in added)]), "--inh-caps=-all")


@pytest.mark.parametrize("scheme", ["af_packet", "af_xdp"])
def test_the_capabilities_of_the_page_are_enough(net: Net, scheme: str) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    source, sink = net.namespace("source"), net.namespace("sink")
    net.veth(source, "s0", sink, "r0")
    receiver = start(RECEIVE, f"{scheme}:r0", prefix=(*sink.prefix, *rights(scheme)))
    try:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        run(SEND, f"{scheme}:s0", prefix=(*source.prefix, *rights(scheme)))
        assert receiver.communicate(timeout=60)[0] == "[b'1234']\n"
    finally:
        receiver.kill()
        receiver.wait()
