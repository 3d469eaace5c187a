"""Every text of an error that aiflow can raise, from its source: of .py files by ast, of .pyx files by their form."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KINDS = (
    *("AiflowError", "ConfigError", "EalError", "PortError", "PeerLost", "SliceTimeout", "PoolExhausted"),
    *("IntegrityError", "DeliveryError", "UsageError", "BadParameter", "MissingExtraError", "WriteError"),
    *("CommandError", "TypeError", "ValueError", "KeyError", "IndexError", "BufferError", "fail", "broken"),
)
"""Exceptions whose text a user reads: the API's, and the command's; ``fail`` ends a command, and so does what
``aiflow doctor`` finds ``broken``."""

CAUGHT = (
    "_ports/doorbells.py",
    "_ports/memories.py",
    "_transfer/_runs.pyx",
    "_ports/messages.py",
    "_ports/rendezvous_sender.py",
)
"""A ValueError of these is the cause of another error, and reaches no user."""

_LEAST = 12  # characters: a shorter text has its words elsewhere
_GAP = "\0"


class Text(NamedTuple):
    """One text.

    Attributes
    ----------
    place : str
        File and line.
    kind : str
    parts : tuple of str
        Its constant parts, in order.
    """

    place: str
    kind: str
    parts: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its longest constant part: what a reader can look for, without names and numbers."""
        return max(self.parts, key=len)


def error_texts(package: Path) -> list[Text]:
    """All of them, by file."""
    found: list[Text] = []
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyx")]):
        inside = path.relative_to(package)
        if inside.parts[0] in ("lab", "_samples") or inside.name in ("_dp_testing.pyx", "_wire.pyx"):
            continue
        reader = _of_python if path.suffix == ".py" else _of_cython
        found += [
            Text(f"{inside}:{line}", kind, parts)
            for line, kind, text in reader(path.read_text())
            if (kind != "ValueError" or str(inside) not in CAUGHT)
            and max(map(len, parts := tuple(filter(None, map(_plain, text.split(_GAP))))), default=0) >= _LEAST
        ]
    return found


def _plain(part: str) -> str:
    return " ".join(part.split()).strip(" .,:;()[]'\"")


def _of_python(source: str) -> Iterator[tuple[int, str, str]]:
    tree = ast.parse(source)
    written = _written(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("why_"):
            for answer in (part for part in ast.walk(node) if isinstance(part, ast.Return) and part.value):
                yield answer.lineno, "PortError", _constant(answer.value)
            continue
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            text = node.args[0]
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Name):
            name, text = node.elts[0].id, node.elts[1]  # the table of `result.failure`
        else:
            continue
        if name in KINDS:
            is_name = isinstance(text, ast.Name)
            yield node.lineno, name, written.get(node, {}).get(text.id, _GAP) if is_name else _constant(text)


def _written(tree: ast.AST) -> dict[ast.Call, dict[str, str]]:
    """For each call in a function: the texts that names were given last before it, and what was added to them."""
    found: dict[ast.Call, dict[str, str]] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            texts: dict[str, str] = {}
            nodes = [node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.AugAssign | ast.Call)]
            for node in sorted(nodes, key=lambda node: (node.lineno, isinstance(node, ast.Call))):
                if isinstance(node, ast.Call):
                    found[node] = dict(texts)
                    continue
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(target, ast.Name):
                    before = texts.get(target.id, "") if isinstance(node, ast.AugAssign) else ""
                    texts[target.id] = before + _constant(node.value)
    return found


def _constant(node: ast.expr) -> str:
    """The constant parts of an expression, with gaps between them."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value.value) if isinstance(value, ast.Constant) else _GAP for value in node.values)
    if isinstance(node, ast.BinOp):
        return _constant(node.left) + _constant(node.right)
    return _GAP


def _of_cython(source: str) -> Iterator[tuple[int, str, str]]:
    """The strings between the parentheses of a raised exception. Cython has no reader of its syntax in Python's ast."""
    tokens = list(tokenize.generate_tokens(io.StringIO(re.sub(r"&|<\w+ ?\**>", " ", source)).readline))
    for at, token in enumerate(tokens):
        if token.type != tokenize.NAME or token.string not in (*KINDS, "error") or tokens[at + 1].string != "(":
            continue
        depth, text, kind = 0, "", token.string
        for part in tokens[at + 1 :]:
            depth += {"(": 1, ")": -1}.get(part.string, 0)
            if depth == 0:
                break
            if part.type == tokenize.STRING:
                body = re.sub(r'^[a-zA-Z]*("""|"|\')|("""|"|\')$', "", part.string)
                text += re.sub(r"\{[^}]*\}", _GAP, body)
        yield token.start[0], kind, text
