"""Commands whose ``--help`` ends with examples. Shared by `aiflow.cli` and `aiflow.lab`."""

from __future__ import annotations

import click

from aiflow._terminal.examples import EXAMPLES


class CommandWithExamples(click.Command):
    """A command whose ``--help`` ends with its rows of `EXAMPLES`."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog, and the examples below it."""
        super().format_epilog(ctx, formatter)
        write_examples(ctx, formatter)


class GroupWithExamples(click.Group):
    """A group whose ``--help``, and that of its commands, ends with examples."""

    command_class = CommandWithExamples
    group_class: type[click.Group] | type[type] | None = type

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog, and the examples below it."""
        super().format_epilog(ctx, formatter)
        write_examples(ctx, formatter)


def path_of(context: click.Context) -> str:
    """Return the words that lead to a command, without the program's name: ``ports bind``."""
    words: list[str] = []
    above: click.Context | None = context
    while above is not None and above.parent is not None:
        words.insert(0, above.info_name or "")
        above = above.parent
    return " ".join(words)


def write_examples(context: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the examples of a command. Lines are never wrapped, so that they can be copied."""
    examples = EXAMPLES.get(path_of(context), ())
    if not examples:
        return
    with formatter.section("Examples"):
        for line, meaning in examples:
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")
            formatter.write(f"{'':{formatter.current_indent}}    {meaning}\n")
