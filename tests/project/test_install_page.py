"""Commands in the documents: those of docs/install.md that check an installation run; all others of ours exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from aiflow.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])


def test_the_check_of_an_installation_succeeds(tmp_path: Path) -> None:
    (script,) = re.findall(
        r"^<!-- run by tests/project/test_install_page\.py -->\n```sh\n(.*?)^```",
        (ROOT / "docs/install.md").read_text(),
        re.M | re.S,
    )
    assert script.count("aiflow") >= 5
    command = tmp_path / "home/aiflow-env/bin/aiflow"  # where the page has installed it
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m aiflow "$@"\n')
    command.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    environment |= {name: value for name, value in os.environ.items() if name in ("AIFLOW_RUNTIME_DIR", "PYTHONPATH")}
    ran = subprocess.run(
        ["sh", "-e"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "inbox/now").read_bytes() == (tmp_path / "outbox/now").read_bytes() != b""
    assert "local:NAME" in ran.stdout


def commands(text: str) -> Iterator[str]:
    """Our commands in a document: in blocks of a shell, and in inline code."""
    for block in re.findall(r"^```(?:sh|ini)\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("podman"):  # the command follows the image's name
                line = "aiflow " + line.rpartition(" aiflow ")[2] if line.startswith("podman run") else ""
            for match in re.finditer(r"(?:^|[\s/=])aiflow(?= )(.*?)(?=$|[&;|#>])", line):
                if "User" not in line:
                    yield match[1].strip()
    inline = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for code in re.findall(r"`((?:sudo )?[^`\s]*aiflow [^`]+)`", inline):
        yield code.partition("aiflow ")[2]


def parsed(words: list[str]) -> None:
    """Let click read a command line, and run nothing. Raises click.UsageError."""
    context = app.make_context("aiflow", words[:1])
    command: click.Command | None = app
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        command = command.get_command(context, name)
        if command is None:
            raise click.UsageError(f"no such command: {name}")
        if not isinstance(command, click.Group):
            command.make_context(name, words, parent=context).close()
            return


@pytest.mark.unit
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_commands_in_the_documents_exist(path: Path) -> None:
    for command in commands(path.read_text()):
        try:
            parsed(shlex.split(command))
        except (click.MissingParameter, click.exceptions.Exit):  # prose that names a command alone; --version
            continue
        except click.UsageError as error:
            if "does not exist" not in error.format_message():  # a file of the example
                pytest.fail(f"aiflow {command}: {error.format_message()}")


@pytest.mark.unit
@pytest.mark.parametrize(
    "text",
    [
        "`aiflow ports blind 0000:3b:00.0`",
        "`aiflow port`",
        "```sh\nsudo ~/aiflow-env/bin/aiflow ports bind 0000:3b:00.0 --force\n```\n",
        "```sh\naiflow recv inbox --port local:x &\n```\n",
    ],
)
def test_a_command_that_does_not_exist_is_found(text: str) -> None:
    (command,) = commands(text)
    with pytest.raises(click.UsageError):
        parsed(shlex.split(command))


@pytest.mark.unit
def test_the_pages_name_the_drivers_and_the_records_of_the_code() -> None:
    from aiflow._ports import pci_binding

    drivers = (ROOT / "docs/drivers.md").read_text()
    assert all(f"| {name} |" in drivers for name in pci_binding.BINDABLE)
    assert f"`{pci_binding.RECORDS}`" in (ROOT / "docs/install.md").read_text()
    assert str(pci_binding.RECORDS) in str(app.commands["ports"].to_info_dict(click.Context(app)))
