"""An element arrives with the dtype, shape and bytes that it was sent with, or it is refused with advice."""

from __future__ import annotations

import array
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from peer import name as local_name

import aiflow
from aiflow.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
PATIENCE_S = 20.0

try:
    from numpy._core._rational_tests import rational
except ImportError:  # numpy 1
    from numpy.core._rational_tests import rational

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None


class Way:
    """One way to send an element, and to read it at the receiver."""

    def __init__(self, receivers: int, send: Callable[..., Any], batch: bool = False, **options: Any) -> None:
        self.receivers = receivers
        self.send = send
        self.batch = batch
        self.options = options

    def wired(self, stack: ExitStack) -> tuple[aiflow.Sender, list[aiflow.Receiver]]:
        names = [local_name() for _ in range(self.receivers)]
        receivers = [stack.enter_context(aiflow.Receiver(f"ring:{name}", memory="16MiB")) for name in names]
        options = {**self.options, "to": names} if self.receivers > 1 else self.options
        return stack.enter_context(aiflow.Sender([f"ring:{name}" for name in names], **options)), receivers


def in_fortran_order(x: Any) -> Any:
    return np.asfortranarray(x) if type(x) is np.ndarray and x.ndim > 1 else x  # it would run a subclass's methods


WAYS = {
    "mapping": Way(1, lambda tx, x: tx.send({"w": x}, wait=False)),
    "pairs": Way(1, lambda tx, x: tx.send([("w", x)], wait=False)),
    "list": Way(1, lambda tx, x: tx.send([x], wait=False)),
    "iterator": Way(1, lambda tx, x: tx.send(iter([("w", x)]), wait=False)),
    "fortran": Way(1, lambda tx, x: tx.send({"w": in_fortran_order(x)}, wait=False)),
    "batch": Way(1, lambda tx, x: tx.send_batch("w", np.asarray(x)[None], wait=False), True),
    "put": Way(1, lambda tx, x: tx.put("w", x), slice_ms=5),
    "put in place": Way(1, lambda tx, x: tx.put("w", x, copy=False), slice_ms=5),
    "to two": Way(2, lambda tx, x: tx.send([("w", x), ("v", x)], wait=False)),
    "batch to two": Way(2, lambda tx, x: tx.send_batch("w", np.asarray(x)[None].repeat(2, axis=0), wait=False), True),
    "put to two": Way(2, lambda tx, x: tx.put("w", x), slice_ms=5),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def wired(request: pytest.FixtureRequest) -> Iterator[tuple[Way, aiflow.Sender, list[aiflow.Receiver]]]:
    with ExitStack() as stack:
        yield request.param, *request.param.wired(stack)


def arrived(way: Way, tx: aiflow.Sender, receivers: list[aiflow.Receiver], x: Any) -> np.ndarray[Any, Any]:
    """The array that arrives when `x` was sent."""
    way.send(tx, x)
    got = []
    for rx in receivers:
        with rx.recv(timeout=PATIENCE_S) as time_slice:
            got += [element.array for element in time_slice]
    return got[0]


# ---- what cannot be described ----

FOREIGN: dict[str, Callable[[], Any]] = {
    "numpy's rational": lambda: np.array([rational(1, 2), rational(3, 4)] * 3).reshape(2, 3),
    "no axis": lambda: np.array(rational(1, 2)),
    "a field": lambda: np.zeros((2, 3), [("a", "u1"), ("r", rational)]),
    "a field of a field": lambda: np.zeros(3, [("a", [("r", rational)])]),
    "a field of several": lambda: np.zeros(3, [("r", rational, (2,))]),
    "no element": lambda: np.zeros((0, 3), rational),
    "overlapping fields": lambda: np.zeros(
        3, np.dtype({"names": ["a", "b"], "formats": ["u4", "u4"], "offsets": [0, 2], "itemsize": 8})
    ),
}
NAMES = (
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e8m0fnu", "float6_e2m3fn"),
    *("float4_e2m1fn", "int4", "uint4", "int2", "complex32"),
)


def extension(name: str) -> Any:
    kind = getattr(ml_dtypes, name, None)
    if kind is None:
        pytest.skip("this ml_dtypes does not have it" if ml_dtypes else "needs ml_dtypes")
    return np.arange(6).astype(kind).reshape(2, 3)


FOREIGN |= {name: lambda name=name: extension(name) for name in NAMES}
FOREIGN |= {
    "scalar bfloat16": lambda: extension("bfloat16")[1, 1],
    "0-d float8_e5m2": lambda: np.array(extension("float8_e5m2")[1, 1]),
    "field bfloat16": lambda: np.zeros(3, [("a", extension("bfloat16").dtype)]),
}


def judged(cases: dict[str, Any], check: Callable[[Any], None]) -> dict[str, str]:
    """The mistake of each case. All use one Sender, since opening one takes longer than all cases."""
    wrong = {}
    for name, case in cases.items():
        try:
            check(case)
        except (Exception, pytest.fail.Exception) as error:
            wrong[name] = f"{type(error).__name__}: {error}"
        except pytest.skip.Exception:  # an older ml_dtypes, or none
            continue
    return wrong


def test_what_a_receiver_could_not_read_back_is_refused_with_a_view_that_goes(wired) -> None:
    way, tx, receivers = wired

    def check(make: Callable[[], Any]) -> None:
        x = make()
        with pytest.raises(TypeError, match=r"\.view\(") as refused:
            way.send(tx, x)
        advice = re.search(r"\.view\((?:np\.)?'?(\w+)'?\)", str(refused.value))
        assert advice
        if x.size:  # the advice can be followed, and what comes out viewed back
            got = arrived(way, tx, receivers, np.asarray(x).view(advice[1]))
            assert got.shape == x.shape
            assert got.view(x.dtype).tobytes() == np.asarray(x).tobytes()

    assert judged(FOREIGN, check) == {}


# ---- what can ----

SOUND = {
    "float16": np.arange(6, dtype="f2").reshape(2, 3),
    "longdouble": np.arange(6, dtype="g").reshape(2, 3),
    "clongdouble": np.arange(6, dtype="G").reshape(2, 3),
    "big-endian": np.arange(6, dtype=">f4").reshape(2, 3),
    "bool": np.array([[True, False]]),
    "datetime64": np.array(["2026-01-01", "NaT"], "M8[ns]"),
    "timedelta64": np.arange(4).astype("m8[25s]").reshape(2, 2),
    "bytes": np.array([b"ab", b"c"]),
    "text": np.array(["größe", "x"]),
    "void": np.zeros((2, 2), "V3"),
    "structured": np.ones((2, 2), [("a", "u1"), ("b", "<f8", (2,)), ("c", [("d", ">i2")])]),
    "with a title": np.ones(3, [(("title", "a"), "u1")]),
    "with gaps": np.ones(3, {"names": ["a", "b"], "formats": ["u1", "f4"], "offsets": [3, 8], "itemsize": 20}),
    "align=True": np.ones(3, np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "metadata": np.ones(3, np.dtype("f4", metadata={"unit": "m"})),
}


def test_what_numpy_describes_arrives_as_it_was_sent(wired) -> None:
    way, tx, receivers = wired

    def check(x: np.ndarray[Any, Any]) -> None:
        got = arrived(way, tx, receivers, x)
        assert (got.dtype, got.shape, got.tobytes()) == (x.dtype, x.shape, x.tobytes())
        for name, field in (x.dtype.fields or {}).items():
            assert got.dtype.fields[name][1] == field[1]  # the offset

    assert judged(SOUND, check) == {}


# ---- subclasses: plain arrays, by no method of theirs ----


class Quantity(np.ndarray):
    """Carries a unit; nothing of it may run, and nothing of it arrives."""

    unit = "m"

    def _never(self, *args: object, **kwargs: object) -> Any:
        raise AssertionError("a subclass's method was called")

    reshape = view = ravel = transpose = __getitem__ = __array_wrap__ = tobytes = astype = _never
    T = property(_never)
    flags = property(_never)  # type: ignore[assignment]


SUBCLASSES: dict[str, Callable[[], Any]] = {
    "with a unit": lambda: np.arange(6.0).reshape(2, 3).view(Quantity),
    "matrix": lambda: np.matrix("1 2 3; 4 5 6"),
    "matrix in Fortran order": lambda: np.asmatrix(np.asfortranarray(np.arange(6).reshape(2, 3))),
    "matrix with gaps": lambda: np.asmatrix(np.arange(12).reshape(2, 6))[:, ::2],
    "recarray": lambda: np.rec.array([(1, 2.0), (3, 4.0)], dtype="i4,f8"),
    "chararray": lambda: np.char.array([b"ab", b"c"]),
}


def test_subclasses_travel_as_plain_arrays(wired) -> None:
    way, tx, receivers = wired

    def check(make: Callable[[], Any]) -> None:
        x = make()
        plain = np.asarray(x)
        if way.batch:
            tx.send_batch("w", x, wait=False)
        else:
            way.send(tx, x)
        got = [element.array for rx in receivers for element in rx.recv(PATIENCE_S)]
        rows = np.stack(got) if way.batch else got[0]
        assert (type(rows), rows.dtype, rows.shape) == (np.ndarray, plain.dtype, plain.shape)
        assert rows.tobytes() == plain.tobytes()

    assert judged(SUBCLASSES, check) == {}
    assert "subclass" in (aiflow.Sender.send.__doc__ or "")


SCALARS = {repr(x): x for x in (np.bytes_(b"ab"), np.str_("ab"), np.float32(2), np.datetime64("2026", "D"))}


def test_numpy_scalars_keep_their_dtype(wired) -> None:
    way, tx, receivers = wired

    def check(scalar: Any) -> None:
        got = arrived(way, tx, receivers, scalar)
        assert (got.dtype, got.shape, got[()]) == (scalar.dtype, (), scalar)

    assert judged(SCALARS, check) == {}


# ---- refused, each with the one thing to do ----


class Frame:
    """Like pandas, xarray and PIL: numpy can make an array of it."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.zeros(3, dtype)

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2, 3])


class Tensor:
    def __init__(self, device: int = 1, requires_grad: bool = False) -> None:
        self.device = device
        self.requires_grad = requires_grad

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("this library's reason")

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


def released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


def closed() -> mmap.mmap:
    pages = mmap.mmap(-1, 4096)
    pages.close()
    return pages


ADVICE: dict[str, tuple[Callable[[], Any], str, str]] = {
    "__array__": (Frame, "np.asarray", "DLPack"),
    "requires_grad": (lambda: Tensor(requires_grad=True), "detach", "CPU|view"),
    "on a GPU": (lambda: Tensor(device=2), "CPU", "detach|view"),
    "a dtype that numpy has not": (Tensor, "view", "CPU|detach"),
    "a released memoryview": (released, "released", "neither"),
    "a closed mmap": (closed, "closed", "neither"),
    "neither": (object, "neither", "asarray"),
    "a masked array": (lambda: np.ma.masked_array([1, 2], [True, False]), "mask", "view"),
    "a masked matrix": (lambda: np.ma.masked_array(np.matrix("1 2"), [[True, False]]), "mask", "view"),
    "masked": (lambda: np.ma.masked, "mask", "view"),
}


def test_a_refusal_says_the_one_thing_that_helps() -> None:
    with aiflow.pair(memory="16MiB") as (tx, rx):
        sends: list[Callable[[Any], Any]] = [
            lambda x: tx.send({"w": x}, timeout=5),
            lambda x: tx.send([x], timeout=5),
            lambda x: tx.put("w", x),
            lambda x: tx.send_batch("w", x, timeout=5),
        ]

        def check(case: tuple[Callable[[], Any], str, str]) -> None:
            make, wanted, unwanted = case
            for send in sends:
                with pytest.raises(TypeError, match=wanted) as refused:
                    send(make())
                assert not re.search(unwanted, str(refused.value))

        assert judged(ADVICE, check) == {}
        tx.send([b"next"], wait=False)
        assert rx.recv(PATIENCE_S)[0].tobytes() == b"next"  # and nothing before it


BARE = {
    "__array__": Frame(),
    "mmap": mmap.mmap(-1, 16),
    "array.array": array.array("i", [1, 2]),
    "scalar": np.float32(1),
    "np.bytes_": np.bytes_(b"x"),
    "chararray": np.char.array([b"x"]),
}


def test_one_element_is_not_taken_for_several() -> None:
    with aiflow.pair(memory="16MiB") as (tx, _):

        def check(bare: Any) -> None:
            with pytest.raises(TypeError, match=r"send\(\[buffer\]\)"):
                tx.send(bare, timeout=1)

        assert judged(BARE, check) == {}


def test_an_element_of_a_slice_that_was_released_says_so() -> None:
    with aiflow.pair(memory="16MiB") as (tx, rx):
        tx.send([b"x"], wait=False)
        with rx.recv(PATIENCE_S) as time_slice:
            element = time_slice[0]
        for send in (lambda: tx.send([element]), lambda: tx.send({"a": element}), lambda: tx.put("a", element)):
            with pytest.raises(ConfigError, match="released"):
                send()
