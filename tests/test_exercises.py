"""Every exercise fails on the blanked copy and passes with the repository's own bodies; blank.py
says what is wrong."""
import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import UserError
from exercises import blank


def outcomes(folder: Path, *weeks: int) -> tuple[dict[int, dict[str, list[str]]], str]:
    """{week: {test function: its outcomes}} of the tests of some weeks, run by a process of their
    own; and the output."""
    files = [f"exercises/test_week{week}.py" for week in weeks]
    command = [sys.executable, "-m", "pytest", "-rA", "--tb=no", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    found: dict = {week: {} for week in weeks}
    line = r"^(PASSED|FAILED|ERROR) exercises/test_week(\d)\.py::(\w+)"
    for outcome, week, name in re.findall(line, done.stdout, re.M):
        found[int(week)].setdefault(name, []).append(outcome)
    return found, done.stdout + done.stderr


@pytest.fixture(scope="module")
def outcomes_here() -> tuple[dict[int, dict[str, list[str]]], str]:
    """The outcomes of every week with the repository's own bodies: in one process, because most of
    its time goes into imports."""
    return outcomes(blank.ROOT, *blank.WEEKS)


def names_of(week: int) -> set[str]:
    tree = ast.parse((blank.ROOT / f"exercises/test_week{week}.py").read_text(encoding="utf-8"))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {name for name in functions if name.startswith("test_")}


@pytest.mark.parametrize("week", blank.WEEKS)
def test_the_week_fails_on_its_copy_and_passes_here(week, tmp_path, outcomes_here):
    blank.main([str(week), "--out", f"{tmp_path}/copy"])
    outcomes_there = outcomes(tmp_path / "copy", week)
    for (found, output), wanted in ((outcomes_there, "FAILED"), (outcomes_here, "PASSED")):
        assert found[week].keys() == names_of(week), output
        assert all(set(words) == {wanted} for words in found[week].values()), output


@pytest.mark.parametrize("week", blank.WEEKS)
def test_a_copy_is_the_repository_less_the_bodies(week, tmp_path):
    blank.write(week, tmp_path / "copy")
    changed = {str(file) for file in blank.tracked()
               if (blank.ROOT / file).read_bytes() != (tmp_path / "copy" / file).read_bytes()}
    assert changed == set(blank.WEEKS[week])
    for file, names in blank.WEEKS[week].items():
        old = (blank.ROOT / file).read_text(encoding="utf-8")
        new = (tmp_path / "copy" / file).read_text(encoding="utf-8")
        for name in names:
            body, emptied = blank.find(old, name, file), ast.parse(new)
            for part in name.split("."):
                emptied = next(node for node in emptied.body if getattr(node, "name", "") == part)
            assert ast.unparse(emptied.args) == ast.unparse(body.args)
            assert ast.get_docstring(emptied) == ast.get_docstring(body)
            before = list(map(ast.unparse, body.decorator_list))
            assert list(map(ast.unparse, emptied.decorator_list)) == before
            assert ast.literal_eval(emptied.body[-1].exc.args[0]) == f"week {week}: {names[name]}"
            assert len(emptied.body) == 1 + (ast.get_docstring(body) is not None)
        mark = "raise NotImplementedError("
        assert new.count(mark) == old.count(mark) + len(names)


@pytest.mark.parametrize("week", blank.WEEKS)
def test_each_week_has_a_page(week):
    pages = ""
    for file in blank.ROOT.glob(f"exercises/week{week}*.md"):  # week 2 has a second one, week2b.md
        page = file.read_text(encoding="utf-8")
        assert 60 <= page.count("\n") <= 110
        assert f"exercises/test_week{week}.py" in page and "## Discuss" in page
        pages += page
    for names in blank.WEEKS[week].values():
        for name in names:
            assert name.rpartition(".")[2] in pages, name


def test_one_body_put_back_makes_its_tests_pass(tmp_path):
    """What a student does: write one function, run its tests."""
    blank.write(1, tmp_path / "copy")
    file = tmp_path / "copy/cleaning/duplicates.py"
    text = file.read_text(encoding="utf-8")
    start = text.index("def jaccard")
    end = text.index("\n\n\ndef", start)
    solved = blank.solution(1, "jaccard").partition("\n")[2]
    file.write_text(text[:start] + solved + text[end:], encoding="utf-8")
    found, output = outcomes(tmp_path / "copy", 1)
    passed = [name for name, words in found[1].items() if set(words) == {"PASSED"}]
    assert passed == ["test_jaccard_by_hand"], output


def test_doctests():
    assert doctest.testmod(blank).failed == 0


def test_the_list_and_the_solution(capsys):
    blank.main(["--list"])
    listed = capsys.readouterr().out
    for week, files in blank.WEEKS.items():
        assert f"week {week}\n" in listed
        for file, names in files.items():
            assert all(f"{file}: {name}" in listed for name in names)
    blank.main(["1", "--solution", "Benchmark.check"])
    shown = capsys.readouterr().out
    assert "    def check(self, text: str)" in shown and "benchmark_run" in shown


def test_a_function_without_a_docstring_and_its_comments_and_decorators():
    source = ('class A:\n    @staticmethod\n    def f(x):\n'
              '        # a hint\n        return x\n\n    y = 1\n')
    assert blank.blank(source, {"A.f": "write it"}, 4, "a.py") == (
        'class A:\n    @staticmethod\n    def f(x):\n'
        '        raise NotImplementedError("week 4: write it")\n\n'
        '    y = 1\n')


def test_without_git_the_files_are_found_all_the_same(tmp_path, monkeypatch):
    for file in (".git/config", "out/a.bin", "exercises/__pycache__/b.pyc", "cleaning/c.py",
                 "README.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    shutil.rmtree(tmp_path / ".git")
    monkeypatch.setattr(blank, "ROOT", tmp_path)
    assert list(map(str, blank.tracked())) == ["README.md", "cleaning/c.py"]


def test_refusals(tmp_path, refused, monkeypatch):
    (tmp_path / "mine").mkdir()
    for argv, part in [([], "which week?"), (["77"], "invalid choice"), (["one"], "invalid int"),
                       (["1", "--out", f"{tmp_path}/mine"], "exists"),
                       (["1", "--solution", "nothing"], "choose from unicode_to_nfc"),
                       (["1", "--solutoin", "jaccard"], "did you mean --solution?")]:
        refused(blank, argv, part)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert not list((tmp_path / "mine").iterdir())
    monkeypatch.setitem(blank.WEEKS, 1, {"common/cli.py": {"sha512": "there is none"}})
    refused(blank, ["1", "--out", f"{tmp_path}/new"], "common/cli.py has no function sha512")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("week", blank.WEEKS)
def test_a_copy_is_not_blanked_again(week, tmp_path, monkeypatch):
    blank.write(week, tmp_path / "copy")
    monkeypatch.setattr(blank, "ROOT", tmp_path / "copy")
    with pytest.raises(UserError, match="blank already"):
        blank.write(week, tmp_path / "second")
    for name in (name for names in blank.WEEKS[week].values() for name in names):
        with pytest.raises(UserError, match="blank already"):
            blank.solution(week, name)
