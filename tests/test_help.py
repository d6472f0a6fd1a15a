"""`--help` of every program is a manual: what it is for, an example to copy, every flag with a help text."""
import argparse
import re

import pytest
from conftest import ROOT, parse

from common import cli

PROGRAMS = [path.relative_to(ROOT) for folder in (".", "toy", "studies", "bench", "exercises", "tests/stress")
            for path in sorted((ROOT / folder).glob("*.py")) if "cli.run(main)" in path.read_text(encoding="utf-8")]


def manual(parser: cli.Parser, command: str) -> str:
    """Check a parser's help and its sub-commands'; `command` is how one types it."""
    text = parser.format_help()
    assert re.search(rf"^ {{4}}.*{re.escape(command)}( |$)", parser.description, re.MULTILINE), "no example"
    assert max(map(len, text.split("\n"))) <= 120
    assert "default: None" not in text and "default: []" not in text
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                manual(sub, f"{command} {name}")
        else:
            assert action.help, action.option_strings
    return text


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_help_is_a_manual(program, monkeypatch):
    found, whole = [], cli.Parser.format_help
    monkeypatch.setattr(cli.Parser, "format_help", lambda self: found.append(self) or whole(self))
    try:
        with pytest.raises(SystemExit):
            parse(program, ["--help"], monkeypatch)
    except ImportError as error:
        pytest.skip(f"measures beside another library: {error}")
    module = ".".join(program.with_suffix("").parts).removesuffix(".__main__")
    command = f"python {program}" if program.parent.name in ("", "exercises") else f"python -m {module}"
    manual(found[0], command)
