"""Run a week's tests on every student's work, and print a table of how many pass.

    python exercises/grade.py 1 students/*                    # one folder per student
    python exercises/grade.py 1 students/* --out grades.csv

A student's folder is the copy that blank.py made, or just the files of the week in it
(`python exercises/blank.py --list` names them). Each is graded in a fresh copy of this repository
that holds the student's version of those files and nothing else of the student's: the tests are
yours, whatever was done to them. A test counts if the repository itself passes it on this machine.
A folder that does not import, stops or hangs gets 0, and the last column says why.

This runs the students' code with your rights. If that is not what you want, run it in a container.
"""
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# A program's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(ROOT))
from common import cli  # noqa: E402
from exercises import blank  # noqa: E402


class Outcome(NamedTuple):
    """What one run of a week's tests gave."""

    passed: list[str]
    trouble: str  # why there is no result, or the first error outside a test; "" if all is well


class Grade(NamedTuple):
    """A row of the table."""

    name: str
    passed: int
    of: int
    first_failing: str  # a test, or the reason why none could run; "" if all pass


# ------------------------------------------------------------------------------------ running tests


def run_tests(folder: Path, week: int, timeout: float) -> Outcome:
    """Run the week's tests in a copy of the repository, in a process of their own."""
    report = folder / "grade.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"exercises/test_week{week}.py"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # In a session of its own, so that the processes that it starts end with it. Nobody reads a
    # pipe, so none of them can keep this program waiting by holding one open.
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return Outcome([], f"ran for more than {timeout:g} seconds")
    finally:
        end_session(process)
    if not report.exists():
        return Outcome([], f"pytest ended without a report (exit status {status})")
    return read_report(report)


def end_session(process: subprocess.Popen) -> None:
    """Kill a process and what it started, as far as they still run."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, and left nothing behind
    process.wait()


def read_report(report: Path) -> Outcome:
    """The tests that passed, by pytest's JUnit report."""
    passed = []
    trouble = ""
    for case in xml.parse(report).iter("testcase"):
        name = case.get("name")
        problems = [child for child in case if child.tag in ("failure", "error", "skipped")]
        if not problems:
            passed.append(name)
        # A file that cannot be imported is reported as an error, and has no tests.
        elif problems[0].tag == "error" and not trouble:
            trouble = last_error(problems[0].text or "")
    return Outcome(passed, trouble)


def last_error(traceback: str) -> str:
    """The last line that pytest marks as the error itself.

    >>> last_error("f.py:2: in <module>\\n    import numpi\\nE   ModuleNotFoundError: No module")
    'ModuleNotFoundError: No module'
    """
    errors = [line[1:].strip() for line in traceback.splitlines() if line.startswith("E ")]
    if not errors:
        return "the tests could not be imported"
    return errors[-1]


# ------------------------------------------------------------------------------------------ grading


def copy_repository(folder: Path) -> None:
    for file in blank.tracked():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(blank.ROOT / file, folder / file)


def tests_of(week: int, timeout: float) -> list[str]:
    """The tests that the repository itself passes, in order: those that a student can pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        outcome = run_tests(Path(folder), week, timeout)
    if not outcome.passed:
        raise cli.UserError(
            f"the repository itself passes no test of week {week}"
            f"{': ' if outcome.trouble else ''}{outcome.trouble}; "
            f"see python -m pytest exercises/test_week{week}.py")
    return outcome.passed


def grade(student: Path, week: int, tests: list[str], timeout: float) -> Grade:
    """Run the week's tests on one student's version of the week's files."""
    name = student.resolve().name
    missing = [file for file in blank.WEEKS[week] if not (student / file).is_file()]
    if missing:
        return Grade(name, 0, len(tests), f"{missing[0]} is missing")
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        for file in blank.WEEKS[week]:
            shutil.copy(student / file, Path(folder) / file)
        outcome = run_tests(Path(folder), week, timeout)

    passed = set(outcome.passed)
    failing = [test for test in tests if test not in passed]
    if not failing:
        return Grade(name, len(tests), len(tests), "")
    if not passed and outcome.trouble:
        return Grade(name, 0, len(tests), outcome.trouble)
    return Grade(name, len(tests) - len(failing), len(tests), failing[0])


# ------------------------------------------------------------------------------------- command line


def check_names(students: list[Path]) -> None:
    """The table goes by the names of the folders, so no two may be alike."""
    seen = {}
    for student in students:
        name = student.resolve().name
        if name in seen:
            raise cli.UserError(f"{seen[name]} and {student} have one name, {name}; "
                                "call each folder after its student")
        seen[name] = student


def print_table(grades: list[Grade]) -> None:
    width = max(len(row.name) for row in grades)
    width = max(width, len("name"))
    print(f"{'name':{width}}  passed  of  first failing test")
    for row in grades:
        print(f"{row.name:{width}}  {row.passed:6}  {row.of:2}  {row.first_failing}".rstrip())


def write_table(grades: list[Grade], out: Path) -> None:
    with cli.new_file(out) as temporary:
        # With a byte order mark, by which spreadsheets recognise UTF-8: names may be Korean.
        with open(temporary, "w", encoding="utf-8-sig", newline="") as file:
            table = csv.writer(file)
            table.writerow(Grade._fields)
            table.writerows(grades)


def main(argv: list[str] | None = None) -> None:
    """Grade every folder, then print the table."""
    parser = cli.Parser(description=__doc__, prog="exercises/grade.py")
    flag = parser.add_argument
    flag("week", type=int, choices=blank.WEEKS, help="whose tests are run")
    flag("students", nargs="+", type=Path, help="one folder per student; its name is the student's")
    flag("--timeout", type=float, default=300.0,
         help="seconds after which a student's tests are stopped")
    flag("--out", type=Path, help="also write the table to this CSV file")
    args = parser.parse_args(argv)
    check_names(args.students)

    tests = tests_of(args.week, args.timeout)
    grades = []
    for student in cli.progress(sorted(args.students, key=by_name), "grading", "student"):
        grades.append(grade(student, args.week, tests, args.timeout))
    print_table(grades)
    if args.out is not None:
        write_table(grades, args.out)


def by_name(student: Path) -> str:
    return student.resolve().name


if __name__ == "__main__":
    cli.run(main)
