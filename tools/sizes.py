"""Check the limits that keep files, lines and functions readable.

Usage: python tools/sizes.py [CHECKOUT]

- No source file has more than 500 lines, and no two files share a name, but for ``SHARED_NAMES``.
- No line is wider than 120 columns. In Markdown, tables, code blocks and images are exempt.
- In the data plane no function has more than 60 lines or more than eight parameters.

The files are those that git tracks. In a tree without git every file below counts, without build products.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

MAX_FILE_LINES = 500
MAX_COLUMNS = 120
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
TAB = 8

SOURCES = {".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".sh"}
TEXTS = SOURCES | {".md", ".toml", ".yaml", ".yml"}
BY_NAME = {"Makefile", "run", "compare"}  # text without a suffix
SHARED_NAMES = {"__init__.py", "__main__.py", "conftest.py", "README.md"}
DATA_PLANE = ("include/aiflow/*", "aiflow/_dp*.pyx", "aiflow/_wire.pyx", "aiflow/_encode.pyx")
NOT_OURS = {".git", ".venv", "build", "dist", "__pycache__"}


@dataclass(frozen=True)
class Function:
    """A function in a source file: where it begins, how many lines it spans, how many parameters it takes."""

    name: str
    line: int
    nb_lines: int
    nb_parameters: int


# --- text ---------------------------------------------------------------------------------------------------------

_C_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
_PYTHON_NOISE = re.compile(
    r'#[^\n]*|"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S
)


def _blank(match: re.Match[str]) -> str:
    """Keep the line breaks of what is removed."""
    return re.sub(r"[^\n]", " ", match[0])


def _parameters(text: str) -> int:
    """Count the parameters in the text between a function's parentheses."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    names = [part.strip() for part in parts]
    return sum(name not in ("", "void", "*", "/") and name.split()[-1] not in ("self", "cls") for name in names)


def _closing(text: str, opening: int) -> int:
    """Index of the bracket that closes the one at `opening`; the end of the text where it is missing."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] in "([{") - (text[index] in ")]}")
        if depth == 0:
            return index
    return len(text)


# --- C ------------------------------------------------------------------------------------------------------------

_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.M)
_ATTRIBUTE = re.compile(r"\b(?:__attribute__|_Alignas|__asm__)\s*(?=\()")
_DECLARATOR = re.compile(r"(\w+)\s*\(")


def _last_call(head: str) -> re.Match[str] | None:
    """The `name(` whose bracket closes last: behind macros that stand before a function without a semicolon."""
    end = len(head.rstrip()) - 1
    return next((call for call in _DECLARATOR.finditer(head) if _closing(head, call.end() - 1) == end), None)


def c_functions(text: str) -> Iterator[Function]:
    """Function definitions of C source text.

    Raises
    ------
    ValueError
        The braces do not match, with every branch of the preprocessor in view.
    """
    code = _DIRECTIVE.sub(_blank, _C_NOISE.sub(_blank, text))
    while attribute := _ATTRIBUTE.search(code):
        end = _closing(code, attribute.end()) + 1
        code = code[: attribute.start()] + re.sub(r"[^\n]", " ", code[attribute.start() : end]) + code[end:]
    start = 0  # of the declaration that is being read
    index = 0
    while index < len(code):
        letter = code[index]
        if letter == ";":
            start = index + 1
        elif letter == "}":
            raise ValueError(f"line {code.count(chr(10), 0, index) + 1}: unmatched }}")
        elif letter == "(":
            index = _closing(code, index)
        elif letter == "{":
            end = _closing(code, index)
            if end == len(code):
                raise ValueError(f"line {code.count(chr(10), 0, index) + 1}: unmatched {{")
            head = code[start:index]
            if head.rstrip().endswith(")") and (declarator := _last_call(head)):
                opening = declarator.end() - 1
                first = start + len(head) - len(head.lstrip())
                yield Function(
                    declarator[1],
                    code.count("\n", 0, first) + 1,
                    code.count("\n", first, end) + 1,
                    _parameters(head[opening + 1 : _closing(head, opening)]),
                )
                start = end + 1
            elif not re.search(r"=\s*$|\b(?:struct|union|enum)\b", head):
                start = end + 1
            index = end
        index += 1


# --- Cython -------------------------------------------------------------------------------------------------------

_DEFINITION = re.compile(r"^([ \t]*)(?:async\s+)?(?:def|cdef|cpdef)\b(?!\s+(?:class|struct|union|enum|extern)\b)", re.M)


def cython_functions(text: str) -> Iterator[Function]:
    """Functions and methods of Python or Cython source text; their docstrings count as lines."""
    code = _PYTHON_NOISE.sub(_blank, text)
    lines = code.split("\n")
    raw = text.split("\n")
    for match in _DEFINITION.finditer(code):
        declarator = _DECLARATOR.search(code, match.end())
        if declarator is None or re.search(r"[\n=:]", code[match.end() : declarator.start()]):
            continue  # a variable
        closing = _closing(code, declarator.end() - 1)
        end_of_line = code.find("\n", closing)
        if not code[closing + 1 : end_of_line if end_of_line >= 0 else len(code)].rstrip().endswith(":"):
            continue  # a declaration without a body
        first = code.count("\n", 0, match.start())
        last = code.count("\n", 0, closing)
        indent = len(match[1])
        for number in range(last + 1, len(lines)):
            if lines[number].strip():
                if len(lines[number]) - len(lines[number].lstrip()) <= indent:
                    break
                last = number
            elif raw[number].strip() and not raw[number].lstrip().startswith("#"):
                last = number  # inside a string
        parameters = code[declarator.end() : closing]
        yield Function(declarator[1], first + 1, last - first + 1, _parameters(parameters))


# --- the tree -----------------------------------------------------------------------------------------------------


def tracked(root: Path) -> list[str]:
    """Paths of the files that git tracks and that exist; of all files where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if (root / ".git").exists() and listed.returncode == 0:
        return sorted(name for name in listed.stdout.split("\0") if name and (root / name).is_file())
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and not NOT_OURS & set(path.relative_to(root).parts)
    )


_UNBREAKABLE = re.compile(r"\s*(?:\||!\[|\[[^]]*\]:)")  # Markdown: a row of a table, an image, a link's definition


def wide_lines(name: str, text: str) -> Iterator[str]:
    """Complaints about lines beyond the limit."""
    markdown, in_code = name.endswith(".md"), False
    for number, line in enumerate(text.split("\n"), 1):
        if markdown and line.lstrip().startswith("```"):
            in_code = not in_code
        columns = len(line.expandtabs(TAB))
        if columns > MAX_COLUMNS and not (markdown and (in_code or _UNBREAKABLE.match(line))):
            yield f"{name}:{number}: {columns} columns, at most {MAX_COLUMNS}"


def long_functions(name: str, text: str) -> Iterator[str]:
    """Complaints about functions of the data plane."""
    try:
        functions = list((c_functions if name.endswith(".h") else cython_functions)(text))
    except ValueError as error:
        yield f"{name}: cannot be read as C: {error}"
        return
    for function in functions:
        where = f"{name}:{function.line}: {function.name}"
        if function.nb_lines > MAX_FUNCTION_LINES:
            yield f"{where}: {function.nb_lines} lines, at most {MAX_FUNCTION_LINES}"
        if function.nb_parameters > MAX_PARAMETERS:
            yield f"{where}: {function.nb_parameters} parameters, at most {MAX_PARAMETERS}"


def complaints(root: Path) -> Iterator[str]:
    """Everything in the tree that is beyond a limit, a line each."""
    by_name = defaultdict(list)
    for name in tracked(root):
        path = Path(name)
        by_name[path.name].append(name)
        if path.suffix not in TEXTS and path.name not in BY_NAME:
            continue
        text = (root / name).read_text(encoding="utf-8")
        nb_lines = text.count("\n") + (not text.endswith("\n"))
        if path.suffix in SOURCES and nb_lines > MAX_FILE_LINES:
            yield f"{name}: {nb_lines} lines, at most {MAX_FILE_LINES}"
        yield from wide_lines(name, text)
        if any(fnmatch(name, pattern) for pattern in DATA_PLANE):
            yield from long_functions(name, text)
    for name, paths in sorted(by_name.items()):
        if name not in SHARED_NAMES:
            for first, second in pairwise(paths):
                yield f"{second}: has the name of {first}"


if __name__ == "__main__":
    found = list(complaints(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])))
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    sys.exit(bool(found))
