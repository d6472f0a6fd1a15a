"""`--help` of every program is a manual: its purpose, an example to copy, a help text per flag."""
import argparse
import re
from pathlib import Path

import pytest
from conftest import ROOT, parse

from common import cli

FOLDERS = (".", "toy", "studies", "bench", "exercises", "tests/stress")

# Programs that pass their command line on to another one, and show that one's manual.
HANDED_ON = {Path("studies/moe.py"): Path("train.py")}


def programs() -> list[Path]:
    """Every file that ends with cli.run(main), relative to ROOT."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("*.py")):
            if "cli.run(main)" in path.read_text(encoding="utf-8"):
                found.append(path.relative_to(ROOT))
    return found


def check_manual(parser: cli.Parser, command: str) -> None:
    """Check the help of a parser and its sub-commands; `command` is how one types it."""
    text = parser.format_help()
    example = rf"^ {{4}}.*{re.escape(command)}( |$)"
    assert re.search(example, parser.description, re.MULTILINE), "no example"
    assert max(len(line) for line in text.split("\n")) <= 120
    assert "default: None" not in text
    assert "default: []" not in text
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                check_manual(sub, f"{command} {name}")
        else:
            assert action.help, action.option_strings


@pytest.mark.parametrize("program", programs(), ids=str)
def test_help_is_a_manual(program, monkeypatch):
    parsers = []
    format_help = cli.Parser.format_help

    def noted(self):
        parsers.append(self)
        return format_help(self)

    monkeypatch.setattr(cli.Parser, "format_help", noted)
    try:
        with pytest.raises(SystemExit):
            parse(program, ["--help"], monkeypatch)
    except ImportError as error:
        pytest.skip(f"measures beside another library: {error}")

    program = HANDED_ON.get(program, program)
    if program.parent.name in ("", "exercises"):
        command = f"python {program}"
    else:
        module = ".".join(program.with_suffix("").parts).removesuffix(".__main__")
        command = f"python -m {module}"
    check_manual(parsers[0], command)
