"""Fixtures of several modules of fault tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from netns import Namespace, Net
from scene import Scene, begin

import aiflow


@pytest.fixture
def scene(net) -> Iterator[Scene]:
    scene = Scene(net)
    scene.forger.join()
    yield scene
    scene.close()


@pytest.fixture
def flowing(scene) -> Scene:
    """In mid-slice."""
    begin(scene)
    return scene


@pytest.fixture
def host(net: Net) -> Iterator[Namespace]:
    """A namespace that this thread is in."""
    namespace = net.namespace("host")
    with namespace.entered():
        yield namespace


@pytest.fixture
def pair() -> Iterator[aiflow.Pair]:
    with aiflow.pair(memory="16MiB") as both:
        yield both
