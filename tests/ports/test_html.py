"""What a notebook shows of each object: it says what is there, escapes what came from elsewhere, and never raises."""

from __future__ import annotations

import base64
import io
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from subprocesses import environment

import aiflow
from aiflow._html.markup import bar, rate_of
from aiflow.notebook import LivePlot

NASTY = "<script>alert('cam')</script>"
RNG = np.random.default_rng(seed=7)


class Page(HTMLParser):
    """Reads one output: every tag is closed, in order; collects its text and the addresses of its pictures."""

    VOID = frozenset(["img", "br"])

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.images: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.images += [value or "" for name, value in attrs if name == "src"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def page(thing: Any) -> Page:
    return Page(thing._repr_html_())


@pytest.fixture
def sides() -> Iterator[tuple[aiflow.Sender, aiflow.Receiver]]:
    with aiflow.pair(nb_ports=2) as (tx, rx):
        yield tx, rx


def sent(sides: tuple[aiflow.Sender, aiflow.Receiver], elements: Any) -> tuple[aiflow.SliceReport, aiflow.TimeSlice]:
    tx, rx = sides
    ticket = tx.send(elements, wait=False)
    time_slice = rx.recv(timeout=30)
    return ticket.result(timeout=30), time_slice


def jpeg(width: int = 640, height: int = 480) -> bytes:
    image = pytest.importorskip("PIL.Image")
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    image.fromarray(pixels).save(file := io.BytesIO(), "jpeg")
    return file.getvalue()


def size_of(address: str) -> tuple[int, int]:
    from PIL import Image

    kind, _, content = address.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        image.load()
        return image.size


def test_a_report_shows_each_port_with_its_share(sides: Any) -> None:
    report, _ = sent(sides, {"cam-0": np.zeros((480, 640, 3), np.uint8)})
    shown = page(report)
    assert "slice 1 delivered: 1 elements, 922 kB" in re.sub(r"\s+", " ", shown.text)
    assert all(port.name in shown.text for port in report.ports)
    assert shown.text.count("%") == len(report.ports) == 2


def test_images_are_shown_small_and_other_elements_as_a_table(sides: Any) -> None:
    elements = {
        "colour": RNG.integers(0, 256, (480, 640, 3), dtype=np.uint8),
        "grey": RNG.integers(0, 256, (64, 48), dtype=np.uint8),
        "deep": RNG.integers(0, 65536, (100, 200), dtype=np.uint16),
        "mask": RNG.integers(0, 2, (32, 32)).astype(bool),
        "tensor": RNG.random((3, 224, 224), dtype=np.float32),
        "file": jpeg(),
        "lidar": RNG.normal(size=(1000, 3)).astype(np.float32),
        "count": np.int64(3),
    }
    _, time_slice = sent(sides, elements)
    shown = page(time_slice)
    assert [size_of(image) for image in shown.images] == [
        *[(144, 108), (48, 64), (144, 72), (32, 32), (144, 144), (144, 108)]
    ]
    for stream, dtype in [("lidar", "float32"), ("count", "int64"), ("file", "uint8")]:
        assert stream in shown.text
        assert dtype in shown.text
    assert page(time_slice["lidar"]).images == []
    assert size_of(*page(time_slice["colour"]).images) == (288, 216)
    assert "3" in page(time_slice["count"]).text


def test_a_picture_shows_the_pixels_of_the_element(sides: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = RNG.integers(0, 256, (40, 50), dtype=np.uint8)  # no larger than a thumbnail: nothing is resampled
    _, time_slice = sent(sides, {"cam": pixels})
    (address,) = page(time_slice).images
    with image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as shown:
        assert np.array_equal(np.asarray(shown), pixels)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff" + b"no JPEG" * 20, jpeg()[:300], b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_file_that_only_looks_like_an_image_is_a_row(sides: Any, content: bytes) -> None:
    _, time_slice = sent(sides, {"file": content})
    shown = page(time_slice)
    assert shown.images == []
    assert "file" in shown.text


def png(width: int, height: int) -> bytes:
    """A black picture of one bit a pixel, which is a small file."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_small_file_of_very_many_pixels_is_a_row(sides: Any) -> None:
    pytest.importorskip("PIL")
    _, time_slice = sent(sides, {"many": png(10_000, 9_900), "few": png(64, 64)})
    with warnings.catch_warnings(action="error"):
        shown = page(time_slice)
    assert [size_of(image) for image in shown.images] == [(64, 64)]
    assert "many" in shown.text


def test_the_pictures_of_a_cell_have_one_budget(sides: Any) -> None:
    pytest.importorskip("PIL")
    file = png(4000, 4000)
    _, time_slice = sent(sides, {f"file {number}": file for number in range(8)})
    assert len(page(time_slice).images) == 2


def test_a_number_that_is_not_known_is_a_dash() -> None:
    assert bar(float("nan")) == rate_of(float("nan")) == "–"


def test_two_sides_of_one_name_have_lines_of_their_own(endpoint: str) -> None:
    with (
        aiflow.Receiver(endpoint) as rx,
        aiflow.Sender(endpoint, name="same") as tx,
        aiflow.Sender(endpoint, name="same") as other,
    ):
        for sender in (tx, other):
            ticket = sender.send({"a": b"x"}, wait=False)
            rx.recv(timeout=60).release()
            ticket.result(60)
        plot = LivePlot((tx, other), span=10, interval=1)
        plot._sample()
        time.sleep(0.001)
        plot._sample()
        assert len(plot.rates) == len(tx.port_table) + len(other.port_table) == 2


def test_names_are_escaped(sides: Any) -> None:
    image = np.zeros((16, 16), np.uint8)
    _, time_slice = sent(sides, {NASTY: image, "b": b"<b>"})
    for shown in (page(time_slice), page(time_slice[NASTY]), page(time_slice.shards(2)[0])):
        assert "script" not in shown.tags
        assert NASTY in shown.text


def test_a_large_slice_shows_some_of_it(sides: Any) -> None:
    _, time_slice = sent(sides, [(f"cam-{number % 500}", np.zeros((16, 16), np.uint8)) for number in range(5000)])
    shown = page(time_slice)
    assert len(shown.images) == 12
    assert "and 480 more streams" in shown.text
    assert len(time_slice._repr_html_()) < 50_000


def test_a_released_slice_says_so(sides: Any) -> None:
    _, time_slice = sent(sides, {"x": np.arange(5)})
    element = time_slice["x"]
    time_slice.release()
    assert "was released" in page(time_slice).text
    assert "was released" in page(element).text


def test_showing_a_slice_keeps_none_of_its_memory(sides: Any) -> None:
    _, rx = sides
    _, time_slice = sent(sides, {"cam": np.zeros((480, 640, 3), np.uint8), "file": jpeg()})
    page(time_slice)
    page(time_slice["cam"])
    time_slice.release()
    assert rx.memory_used == 0


def test_both_sides_show_their_ports_and_what_they_counted(sides: Any) -> None:
    tx, rx = sides
    sent(sides, {"x": np.zeros(100_000)})
    for side, kind in ((tx, "Sender"), (rx, "Receiver")):
        shown = page(side)
        assert kind in shown.text
        assert "net_ring" in shown.text
        assert all(row.name in shown.text for row in side.port_table)
    assert "slices 1" in page(rx).text
    tx.close()
    rx.close()
    assert "closed" in page(tx).text
    assert "closed" in page(rx).text


def test_a_port_table_has_a_row_a_port(sides: Any) -> None:
    sent(sides, {"x": np.zeros(10)})
    assert page(sides[0].port_table).tags.count("tr") == 3


def test_without_pillow_the_table_says_what_to_install() -> None:
    code = """
import sys
sys.modules["PIL"] = None
import aiflow, numpy as np
with aiflow.pair() as (tx, rx):
    ticket = tx.send({"cam": np.zeros((64, 64), np.uint8)}, wait=False)
    print(rx.recv(timeout=30)._repr_html_())
    ticket.result(timeout=30)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "aiflow-dpdk[notebook]" in Page(done.stdout).text
