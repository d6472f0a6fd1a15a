"""`--help` of every program is a manual: what it is for, an example to copy, every flag with a help text."""
import argparse
import importlib.util
import re
import sys
from pathlib import Path

import pytest

import cli

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = [path.relative_to(ROOT) for folder in (".", "studies", "bench") for path in sorted((ROOT / folder).glob("*.py"))
            if "cli.run(main)" in path.read_text(encoding="utf-8")]


class Parsed(Exception):
    """Raised in place of a program's work, once it has its flags."""


def parse(program: Path, argv: list[str], monkeypatch) -> tuple[cli.Parser, argparse.Namespace | None]:
    """The parser of a program that is given these flags, and what it makes of them; the program does nothing more."""
    monkeypatch.setattr(sys, "argv", [str(program), *argv])
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "bench")])  # behind: bench/init.py is not init.py
    parse_args = cli.Parser.parse_args

    def stop(self, *args):
        raise Parsed(self, parse_args(self, *args))

    monkeypatch.setattr(cli.Parser, "parse_args", stop)
    spec = importlib.util.spec_from_file_location(f"{program.parent.name}_{program.stem}", ROOT / program)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:  # a measurement beside another library
        pytest.skip(str(error))
    with pytest.raises(Parsed) as parsed:
        module.main()
    return parsed.value.args


def manual(parser: cli.Parser, command: str) -> str:
    """Check a parser's help and its sub-commands'; `command` is how one types it."""
    text = parser.format_help()
    assert re.search(rf"^ {{4}}.*{re.escape(command)}( |$)", parser.description, re.MULTILINE), f"no example of {command}"
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
    found = []
    monkeypatch.setattr(cli.Parser, "format_help", lambda self, whole=cli.Parser.format_help: found.append(self) or whole(
        self))
    with pytest.raises(SystemExit):
        parse(program, ["--help"], monkeypatch)
    command = {"studies": f"python -m studies.{program.stem}"}.get(program.parent.name, f"python {program}")
    manual(found[0], command)
