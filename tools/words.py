"""Checks the words of this repository: length of sentences, and words that a standard term has replaced.

Usage: tools/words.py [--docs | --code] [FILE ...]

Prints FILE:LINE and the reason for each finding, and ends with 1 where there is one.

Sentences, in PROSE: none is longer than 35 words, and of a file's sentences at most 5 % are longer than 25.
    Code blocks, tables, headings, pictures and HTML comments do not count. A paragraph or an item of a list is a
    block. A sentence ends at ``.``, ``!`` or ``?`` before white space, or with its block; the dot of an abbreviation
    does not end it, and neither does a colon or a semicolon. A word is what stands between white space and has a letter
    or a digit in it; a piece of ``inline code`` is one word, and of a link its text counts.

Words, in every tracked file with a suffix in SUFFIXES: RETIRED lists what is rejected and what to say instead. A word
    is found in names, too (``AF_ASIDE_NS``), but not in names of tests. ALLOWED has what may stand; EXEMPT has files.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROSE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASING.md", "docs/*.md", "bench/README.md")
SUFFIXES = (".py", ".pyx", ".pxd", ".pyi", ".h", ".c", ".md", ".sh")

LONGEST = 35
LONG = 25
LONG_SHARE = 0.05

RETIRED = {
    r"fly(?:ing)?|flies|flew": "in flight",
    r"under.?way": "in flight; of work: running",
    r"aside": "suspended, suspend a path",
    r"(?:sen[dt]|sends|sending|goes|go|went)(?: it| them| out)? again": "retransmit, retransmitted",
    r"somebody|whoever|whomever|whosever": "the peer, the caller, a process, …",
    r"nobody": "no peer, no caller, no process, …",
    r"so many": "the number, or a quantity",
    r"at the most": "at most",
    r"at the least": "at least",
    r"so long as": "while",
    r"tombs?": "closed_retained",
    r"gaps? law|law of gaps": "pacing",
    r"af_mail|\bmail\.h": "af_handoff, handoff.h",
    r"af_gate|\bgate\.h": "af_intr_gate, intr_gate.h",
    r"af_quota|\bquota\.h": "af_cpu_budget, cpu_budget.h",
    r"af_fan|\bfan\.h": "af_multi, multi.h",
    r"af_plan|\bplan\.h": "af_dispatch, dispatch.h",
    r"af_store|\bstore\.h": "af_arena, arena.h",
    r"af_again|send_again": "af_retransmit",
    r"af_report|on_report": "af_feedback",
    r"_dp_driven|_dp_raw|memif_door|eal_arguments": "_dp_driver, _dp_testing, memif_proxy, _eal_args",
}
"""Pattern of what is rejected (whole words, upper or lower case) → what to say."""

ALLOWED = re.compile(
    r"""
      ["'`]nobody["'`] | \bnobody: | (?:user|-[gu]|reuid[= ])\ ?nobody | =nobody | AS_NOBODY   # the system's user
    | (?:local|ring):nobody | a_lost_chunk_is_not_sent_again   # names in tests
    | \btest_\w+   # names of tests: the table of tests before and after has them
    """,
    re.VERBOSE,
)
"""What may stand nevertheless."""

EXEMPT = ("tools/words.py",)
"""Files in which a retired word may stand."""


def tracked() -> list[str]:
    """The files of the checkout, without those that Git does not know."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def is_prose(name: str) -> bool:
    """Whether sentences are counted in a file."""
    return any(fnmatch(name, pattern) for pattern in PROSE)


def blocks(text: str) -> Iterator[list[tuple[int, str]]]:
    """Paragraphs and items of lists, each as numbered lines."""
    block: list[tuple[int, str]] = []
    fenced = commented = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        fence = stripped.startswith("```")
        comment = stripped.startswith("<!--")
        passed = fenced or commented or fence or comment or stripped.startswith(("|", "#", "![")) or not stripped
        if fence:
            fenced = not fenced
        if (commented or comment) and not fenced:
            commented = "-->" not in stripped
        item = re.match(r"(?:[-*+]|\d+[.)]) ", stripped)
        if (passed or item) and block:
            yield block
            block = []
        if not passed:
            block.append((number, stripped[item.end() :] if item else stripped))
    if block:
        yield block


NO_END = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|[Ff]ig|figs?|no|cf|approx)\.)$")
END = re.compile(r"[.!?][)\"*_”]*$")


def sentences(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line and words of each sentence."""
    for block in blocks(text):
        words: list[tuple[int, str]] = []
        for number, line in _plain(block):
            words += [(number, word) for word in line.split()]
        begin = 0
        for position, (_, word) in enumerate(words):
            last = position + 1 == len(words)
            if last or (END.search(word) and not NO_END.search(word)):
                sentence = words[begin : position + 1]
                yield sentence[0][0], [w for _, w in sentence if re.search(r"\w", w)]
                begin = position + 1


def _plain(block: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """A block without Markdown: inline code is one word, a link its text. Both may go on over the end of a line."""
    text = "\n".join(line for _, line in block)

    def one_word(match: re.Match[str]) -> str:
        return "`code`" + "\n" * match.group().count("\n")

    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", one_word, text, flags=re.S)
    text = re.sub(r"!?\[([^\]]*)\]\([^)\s]*\)", r"\1", text)
    return list(zip((number for number, _ in block), text.split("\n"), strict=False))


def check_sentences(name: str, text: str) -> Iterator[str]:
    """What is wrong with the length of sentences."""
    counted = [(number, words) for number, words in sentences(text) if words]
    long = [(number, words) for number, words in counted if len(words) > LONG]
    too_many = len(long) > LONG_SHARE * len(counted)
    for number, words in long:
        if len(words) > LONGEST:
            yield f"{name}:{number}: {len(words)} words in a sentence, more than {LONGEST}: {_start(words)}"
        elif too_many:
            yield f"{name}:{number}: {len(words)} words in a sentence, more than {LONG}: {_start(words)}"
    if too_many:
        yield f"{name}:1: {len(long)} of {len(counted)} sentences have more than {LONG} words ({LONG_SHARE:.0%} may)"


def check_subjects(name: str, text: str) -> Iterator[str]:
    """Sentences of prose whose subject is a clause ("Who comes later waits.")."""
    for number, words in sentences(text):
        clause = words and re.match(r"\W*(?:Who|Whose|Whom|What|Whoever|Whatever)\b", words[0])
        if clause and not words[-1].rstrip('*_")').endswith("?"):
            yield f"{name}:{number}: a clause is the subject: {_start(words)}"


def _start(words: list[str]) -> str:
    return " ".join(words[:9]) + (" …" if len(words) > 9 else "")


def check_words(name: str, text: str) -> Iterator[str]:
    """Words that a standard term has replaced."""
    for pattern, say in RETIRED.items():
        # a letter ends a word, an underscore or a digit does not: names count, too
        found = re.compile(rf"(?<![A-Za-z])(?:{pattern.replace(' ', '.')})(?![A-Za-z])", re.I)
        for number, line in enumerate(text.splitlines(), 1):
            if match := found.search(ALLOWED.sub("", line)):
                yield f"{name}:{number}: {match.group()!r} is retired, say: {say}"


def main(arguments: list[str]) -> int:
    """Check the files given, or all."""
    only = next((argument for argument in arguments if argument in ("--docs", "--code")), None)
    names = [argument for argument in arguments if not argument.startswith("--")] or tracked()
    findings: list[str] = []
    for name in names:
        if not name.endswith(SUFFIXES):
            continue
        docs = name.endswith(".md")
        if (only == "--docs" and not docs) or (only == "--code" and docs):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        if is_prose(name):
            findings += check_sentences(name, text)
            findings += check_subjects(name, text)
        if name not in EXEMPT:
            findings += check_words(name, text)
    for finding in findings:
        print(finding)
    if findings:
        print(f"aiflow: {len(findings)} findings; tools/words.py says what is counted", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
