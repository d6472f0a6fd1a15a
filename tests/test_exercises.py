"""The exercises: tests fail on a blanked copy and pass here; the sheets; the table of grades."""
import ast
import csv
import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import UserError
from exercises import blank, grade

# {week: {test function: its outcomes}}
Outcomes = dict[int, dict[str, list[str]]]


def outcomes(folder: Path, *weeks: int) -> tuple[Outcomes, str]:
    """The outcomes of some weeks' tests, run by a process of their own; and its output."""
    command = [sys.executable, "-m", "pytest", "-rA", "--tb=no", "-p", "no:cacheprovider"]
    command += [f"exercises/test_week{week}.py" for week in weeks]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    found = {week: {} for week in weeks}
    line = r"^(PASSED|FAILED|ERROR) exercises/test_week(\d)\.py::(\w+)"
    for outcome, week, name in re.findall(line, done.stdout, re.MULTILINE):
        found[int(week)].setdefault(name, []).append(outcome)
    return found, done.stdout + done.stderr


@pytest.fixture(scope="module")
def outcomes_here() -> tuple[Outcomes, str]:
    """The outcomes of every week with the repository's own bodies: in one process, because most of
    its time goes into imports."""
    return outcomes(blank.ROOT, *blank.WEEKS)


def names_of(week: int) -> set[str]:
    """The test functions of a week."""
    source = (blank.ROOT / f"exercises/test_week{week}.py").read_text(encoding="utf-8")
    functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {name for name in functions if name.startswith("test_")}


def sheets() -> set[str]:
    """The sheets of all weeks, relative to the repository."""
    found = set()
    for week in blank.WEEKS:
        found |= {str(sheet.relative_to(blank.ROOT)) for sheet in blank.sheets(week)}
    return found


# ------------------------------------------------------------------------------------- blank copies


@pytest.mark.parametrize("week", blank.WEEKS)
def test_the_week_fails_on_its_copy_and_passes_here(week, tmp_path, outcomes_here):
    blank.main([str(week), "--out", f"{tmp_path}/copy"])
    outcomes_there = outcomes(tmp_path / "copy", week)
    for (found, output), wanted in ((outcomes_there, "FAILED"), (outcomes_here, "PASSED")):
        assert found[week].keys() == names_of(week), output
        assert all(set(words) == {wanted} for words in found[week].values()), output


@pytest.mark.parametrize("week", blank.WEEKS)
def test_a_copy_is_the_repository_without_bodies_and_answers(week, tmp_path):
    copy = tmp_path / "copy"
    blank.write(week, copy)
    changed = set()
    for file in blank.tracked():
        if (blank.ROOT / file).read_bytes() != (copy / file).read_bytes():
            changed.add(str(file))
    assert changed == set(blank.WEEKS[week]) | sheets()

    for file, names in blank.WEEKS[week].items():
        old = (blank.ROOT / file).read_text(encoding="utf-8")
        new = (copy / file).read_text(encoding="utf-8")
        for name, hint in names.items():
            check_blanked(blank.find(old, name, file), definition(new, name), week, hint)
        mark = "raise NotImplementedError("
        assert new.count(mark) == old.count(mark) + len(names)


def definition(source: str, name: str) -> ast.FunctionDef:
    """A function or `Class.method` of a file, blank or not."""
    node = ast.parse(source)
    for part in name.split("."):
        node = blank.named(node.body, part)
    return node


def check_blanked(whole: ast.FunctionDef, emptied: ast.FunctionDef, week: int, hint: str) -> None:
    """Signature, docstring and decorators are as before; the body is the hint."""
    assert ast.unparse(emptied.args) == ast.unparse(whole.args)
    assert ast.get_docstring(emptied) == ast.get_docstring(whole)
    decorators = [ast.unparse(decorator) for decorator in whole.decorator_list]
    assert [ast.unparse(decorator) for decorator in emptied.decorator_list] == decorators
    assert ast.literal_eval(emptied.body[-1].exc.args[0]) == f"week {week}: {hint}"
    has_docstring = ast.get_docstring(whole) is not None
    expected_statements = 2 if has_docstring else 1
    assert len(emptied.body) == expected_statements


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


@pytest.mark.parametrize("week", blank.WEEKS)
def test_a_copy_is_not_blanked_again(week, tmp_path, monkeypatch):
    blank.write(week, tmp_path / "copy")
    monkeypatch.setattr(blank, "ROOT", tmp_path / "copy")
    with pytest.raises(UserError, match="blank already"):
        blank.write(week, tmp_path / "second")
    for names in blank.WEEKS[week].values():
        for name in names:
            with pytest.raises(UserError, match="blank already"):
                blank.solution(week, name)


def test_a_function_without_a_docstring_and_its_comments_and_decorators():
    source = ('class A:\n    @staticmethod\n    def f(x):\n'
              '        # a hint\n        return x\n\n    y = 1\n')
    assert blank.blank(source, {"A.f": "write it"}, 4, "a.py") == (
        'class A:\n    @staticmethod\n    def f(x):\n'
        '        raise NotImplementedError("week 4: write it")\n\n'
        '    y = 1\n')


def test_without_git_the_files_are_found_all_the_same(tmp_path, monkeypatch):
    for file in ("out/a.bin", "exercises/__pycache__/b.pyc", "cleaning/c.py", "README.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(blank, "ROOT", tmp_path)
    assert [str(file) for file in blank.tracked()] == ["README.md", "cleaning/c.py"]


# ------------------------------------------------------------------------------------------- sheets


@pytest.mark.parametrize("week", blank.WEEKS)
def test_each_week_has_a_sheet(week):
    pages = ""
    for sheet in blank.sheets(week):
        page = sheet.read_text(encoding="utf-8")
        assert 60 <= page.count("\n") <= 130
        headings = re.findall(r"^## (.*)", page, re.MULTILINE)
        assert headings == ["Predict, before you run anything", "Write", "Run", "Expected",
                            "Three wrong answers, and what they show", "Discuss"]
        assert f"exercises/test_week{week}.py" in page
        pages += page
    for names in blank.WEEKS[week].values():
        for name in names:
            assert name.rpartition(".")[2] in pages, name


def test_a_handout_ends_before_the_answers(tmp_path, capsys):
    blank.main(["2", "--no_answers"])
    printed = capsys.readouterr().out
    # Both sheets of week 2, each up to the commands to run.
    assert re.findall("^# Week 2", printed, re.MULTILINE) == ["# Week 2", "# Week 2"]
    assert printed.count("## Run") == 2
    for heading in ("Expected", "Three wrong answers", "Discuss"):
        assert heading not in printed
    blank.main(["2", "--no_answers", "--out", f"{tmp_path}/sheet.md"])
    assert (tmp_path / "sheet.md").read_text(encoding="utf-8") == printed


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


def test_refusals(tmp_path, refused, monkeypatch):
    (tmp_path / "mine").mkdir()
    for argv, part in [
        ([], "which week?"),
        (["77"], "invalid choice"),
        (["one"], "invalid int"),
        (["1", "--out", f"{tmp_path}/mine"], "exists"),
        (["1", "--no_answers", "--out", f"{tmp_path}/mine"], "is a folder"),
        (["1", "--solution", "nothing"], "choose from unicode_to_nfc"),
        (["1", "--solutoin", "jaccard"], "did you mean --solution?"),
    ]:
        refused(blank, argv, part)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert not list((tmp_path / "mine").iterdir())
    monkeypatch.setitem(blank.WEEKS, 1, {"common/cli.py": {"sha512": "there is none"}})
    refused(blank, ["1", "--out", f"{tmp_path}/new"], "common/cli.py has no function sha512")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="where do its answers begin"):
        blank.without_answers("# A sheet\n")


# ------------------------------------------------------------------------------------------- grades


TESTS = """
from lesson import double, half

def test_double():
    assert double(4) == 8

def test_half():
    assert half(4) == 2
"""
LESSON = """
def double(x):
    return 2 * x

def half(x):
    return x // 2
"""
STUDENTS = {
    "ann": LESSON,
    "bo": LESSON.replace("x // 2", "x - 1"),
    "cy": "import numpi\n" + LESSON,
    "dee": LESSON + "\nwhile True:\n    pass\n",
    "eve": LESSON + "\nimport os\nos._exit(0)\n",
}


@pytest.fixture
def classroom(tmp_path, monkeypatch) -> Path:
    """A small repository with one exercise, as grade.py sees it, and the students' folders."""
    root = tmp_path / "repository"
    (root / "exercises").mkdir(parents=True)
    (root / "exercises/test_week1.py").write_text(TESTS)
    (root / "lesson.py").write_text(LESSON)
    (root / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    monkeypatch.setattr(blank, "ROOT", root)
    monkeypatch.setattr(blank, "WEEKS", {1: {"lesson.py": {"double": "twice", "half": "half"}}})
    for name, text in STUDENTS.items():
        (tmp_path / "students" / name).mkdir(parents=True)
        (tmp_path / "students" / name / "lesson.py").write_text(text)
    return tmp_path


def test_the_table_of_a_class(classroom, capsys):
    students = classroom / "students"
    (students / "fay").mkdir()
    # A student's own version of the tests does not count, nor does a conftest.py that helps.
    (students / "bo/exercises").mkdir()
    (students / "bo/exercises/test_week1.py").write_text("def test_double():\n    pass\n")
    (students / "bo/conftest.py").write_text("import pytest\npytest.skip = print\n")

    folders = [str(folder) for folder in students.iterdir()]
    grade.main(["1", *folders, "--timeout", "5", "--out", f"{classroom}/grades.csv"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=3) for line in lines] == [
        ["name", "passed", "of", "first failing test"],
        ["ann", "2", "2"],
        ["bo", "1", "2", "test_half"],
        ["cy", "0", "2", "ModuleNotFoundError: No module named 'numpi'"],
        ["dee", "0", "2", "ran for more than 5 seconds"],
        ["eve", "0", "2", "pytest ended without a report (exit status 0)"],
        ["fay", "0", "2", "lesson.py is missing"],
    ]
    with open(classroom / "grades.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "passed", "of", "first_failing"]
    assert rows[2] == ["bo", "1", "2", "test_half"] and len(rows) == 7


def test_what_cannot_be_graded(classroom, refused):
    ann = classroom / "students/ann"
    shutil.copytree(ann, classroom / "late/ann")
    refused(grade, ["1", str(ann), f"{classroom}/late/ann"], "have one name, ann")
    (blank.ROOT / "lesson.py").write_text("import numpi\n")
    refused(grade, ["1", str(ann)], "the repository itself passes no test of week 1")


@pytest.mark.parametrize("module", [blank, grade])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
