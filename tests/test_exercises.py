"""Every exercise fails on the blanked copy and passes with the repository's own bodies; blank.py says what is wrong."""
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


def outcomes(folder: Path, week: int) -> tuple[dict[str, list[str]], str]:
    """{test function: its outcomes} of a week's tests, run by a process of their own; and the output."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-rA", "--tb=no", "-p", "no:cacheprovider",
                           f"exercises/test_week{week}.py"], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = {}
    for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR) exercises/test_week\d.py::(\w+)", done.stdout, re.M):
        found.setdefault(name, []).append(outcome)
    return found, done.stdout + done.stderr


def names_of(week: int) -> set[str]:
    tree = ast.parse((blank.ROOT / f"exercises/test_week{week}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("week", blank.WEEKS)
def test_the_week_fails_on_its_copy_and_passes_here(week, tmp_path):
    blank.main([str(week), "--out", f"{tmp_path}/copy"])
    for folder, wanted in ((tmp_path / "copy", {"FAILED"}), (blank.ROOT, {"PASSED"})):
        found, output = outcomes(folder, week)
        assert found.keys() == names_of(week), output
        assert {name: set(words) for name, words in found.items()} == dict.fromkeys(found, wanted), output


@pytest.mark.parametrize("week", blank.WEEKS)
def test_a_copy_is_the_repository_less_the_bodies(week, tmp_path):
    blank.write(week, tmp_path / "copy")
    changed = {str(file) for file in blank.tracked()
               if (blank.ROOT / file).read_bytes() != (tmp_path / "copy" / file).read_bytes()}
    assert changed == set(blank.WEEKS[week])
    for file, names in blank.WEEKS[week].items():
        old, new = ((folder / file).read_text(encoding="utf-8") for folder in (blank.ROOT, tmp_path / "copy"))
        for name in names:
            body, emptied = blank.find(old, name, file), ast.parse(new)
            for part in name.split("."):
                emptied = next(node for node in emptied.body if getattr(node, "name", "") == part)
            assert ast.unparse(emptied.args) == ast.unparse(body.args)
            assert ast.get_docstring(emptied) == ast.get_docstring(body)
            assert list(map(ast.unparse, emptied.decorator_list)) == list(map(ast.unparse, body.decorator_list))
            assert ast.literal_eval(emptied.body[-1].exc.args[0]) == f"week {week}: {names[name]}"
            assert len(emptied.body) == 1 + (ast.get_docstring(body) is not None)
        assert new.count("raise NotImplementedError(") == old.count("raise NotImplementedError(") + len(names)


@pytest.mark.parametrize("week", blank.WEEKS)
def test_each_week_has_a_page(week):
    page = (blank.ROOT / f"exercises/week{week}.md").read_text(encoding="utf-8")
    assert 60 <= page.count("\n") <= 110 and f"exercises/test_week{week}.py" in page and "## Discuss" in page
    for names in blank.WEEKS[week].values():
        for name in names:
            assert name.rpartition(".")[2] in page, name


def test_one_body_put_back_makes_its_tests_pass(tmp_path):
    """What a student does: write one function, run its tests."""
    blank.write(1, tmp_path / "copy")
    file = tmp_path / "copy/cleaning/duplicates.py"
    text = file.read_text(encoding="utf-8")
    start = text.index("def jaccard")
    end = text.index("\n\n\ndef", start)
    file.write_text(text[:start] + blank.solution(1, "jaccard").partition("\n")[2] + text[end:], encoding="utf-8")
    found, output = outcomes(tmp_path / "copy", 1)
    assert [name for name, words in found.items() if set(words) == {"PASSED"}] == ["test_jaccard_by_hand"], output


def test_doctests():
    assert doctest.testmod(blank).failed == 0


def test_the_list_and_the_solution(capsys):
    blank.main(["--list"])
    listed = capsys.readouterr().out
    for week, files in blank.WEEKS.items():
        assert f"week {week}\n" in listed and all(f"{file}: {name}" in listed for file in files for name in files[file])
    blank.main(["1", "--solution", "Benchmark.check"])
    assert "    def check(self, text: str)" in (shown := capsys.readouterr().out) and "benchmark_run" in shown


def test_a_function_without_a_docstring_and_its_comments_and_decorators():
    source = 'class A:\n    @staticmethod\n    def f(x):\n        # a hint\n        return x\n\n    y = 1\n'
    assert blank.blank(source, {"A.f": "write it"}, 4, "a.py") == (
        'class A:\n    @staticmethod\n    def f(x):\n        raise NotImplementedError("week 4: write it")\n\n'
        '    y = 1\n')


def test_without_git_the_files_are_found_all_the_same(tmp_path, monkeypatch):
    for file in (".git/config", "out/a.bin", "exercises/__pycache__/b.pyc", "cleaning/c.py", "README.md"):
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
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"] and not list((tmp_path / "mine").iterdir())
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
