"""Elements → the manifest of a slice and a buffer for each."""

from collections.abc import Iterable
from typing import Any

from aiflow._transfer.form import Form
from aiflow._transfer.manifest import Piece

def encode(elements: Any) -> tuple[bytes, list[Any], int]: ...
def encode_pieces(described: Iterable[Piece]) -> tuple[bytes, list[Any], int]: ...
def encode_rows(stream: str, form: Form, count: int) -> bytes: ...
