"""Write docs/commands.md: what every command takes, as its own --help says.

python -m docsite.commands_page
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer.main

from vlmflow import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
HEAD = """\
# Commands

Written by `python -m docsite.commands_page` from what `vlmflow COMMAND --help` says. Bad input
ends in one line on stderr and exit code 2, Ctrl-C in 130; `--json` prints one object for programs.
"""


def page() -> str:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    sections = [section(name, commands[name]) for name in sorted(commands)]
    return "\n".join([HEAD, *sections])


def section(name: str, command: Any) -> str:
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option"]
    usage = " ".join(["vlmflow", name, *(name_of(item) for item in arguments)])
    lines = [f"## vlmflow {name}", "", f"```text\n{usage}\n```", "", description(command), ""]
    rows = [
        *((f"`{name_of(item)}`", help_of(item)) for item in arguments),
        *(
            (f"`{', '.join(item.opts)}`", help_of(item))
            for item in options
            if "--help" not in item.opts
        ),
    ]
    if rows:
        lines += [
            "| takes | what it is |",
            "|---|---|",
            *(f"| {left} | {right} |" for left, right in rows),
            "",
        ]
    return "\n".join(lines)


def name_of(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def description(command: Any) -> str:
    return inspect.cleandoc(command.help or "").replace("<", "&lt;")


def help_of(item: Any) -> str:
    text = " ".join((item.help or "").split())
    default = item.show_default if isinstance(item.show_default, str) else item.default
    if item.required:
        text += " Required."
    elif not (default is None or default is False or callable(default)):
        text += f" Default: {getattr(default, 'value', default)}."
    return text.replace("|", "\\|").replace("<", "&lt;").strip()


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE.name)
