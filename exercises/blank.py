"""Make a student's copy of the repository, with the bodies of one week's functions taken out.

The exercise is the repository without some function bodies; the solution is the repository. The
table WEEKS below lists what each week takes out, with the hint that a student reads in its place.

    python exercises/blank.py --list                # the weeks, their functions and hints
    python exercises/blank.py 1                     # writes out/exercises/week1
    cd out/exercises/week1                          # all tests fail: write the bodies
    python -m pytest exercises/test_week1.py
    python exercises/blank.py 1 --solution jaccard  # the repository's version, for afterwards
    python exercises/blank.py 1 --no_answers        # the week's sheet, to hand out

Signatures, docstrings and decorators stay. The sheets in a copy end before their answers, which
begin at the heading "Expected". A `@triton.jit` kernel is blanked like any other function: the
module still imports, because Triton compiles at the first launch. The interpreter then raises the
error as usual; the compiler, which does not know `raise`, stops with a message that quotes it.
"""
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A program's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(ROOT))
from common import cli  # noqa: E402

# {week: {file: {function or Class.method: what is to be written}}}
WEEKS: dict[int, dict[str, dict[str, str]]] = {
    1: {
        "cleaning/normalise.py": {
            "unicode_to_nfc":
                "NFC; then jamo that stand alone, whatever their encoding, as compatibility "
                "jamo",
            "spell_jamo":
                "a block as it is; letters as compatibility jamo; fillers alone as a space",
        },
        "cleaning/rules.py": {
            "check":
                "measure the text in the order of the table; (None, reason) of the first limit "
                "that it breaks",
            "check_language":
                "the reason if too few letters are of the language, or hanja stands without "
                "Hangul",
            "check_lines": "the reason if too few lines end like text, or too many occurred before",
        },
        "cleaning/duplicates.py": {
            "jaccard": "the size of the intersection over the size of the union",
            "bands_of": "112 minima per document, one for each of ORDERS; hash 14 bands of 8",
        },
        "cleaning/decontaminate.py": {
            "Benchmark.check":
                "(None, reason) for 25 characters in a row of any field, or a whole field of 12 "
                "to 24",
            "detectable":
                "for each table, the items with a field that the check can find, and all items",
        },
    },
    2: {
        "tokenizer.py": {
            "hangul_counts": "count the Hangul runs, each with the space before it",
            "truncated": "drop the last merges, keep the characters",
            "merge":
                "append the new Hangul pieces with scores that continue below the base's lowest "
                "rank",
            "ranked_merges": "every split of every piece into two pieces, best score first",
        },
        "common/byte_level.py": {
            "join":
                "join the pair whose token has the lowest rank, leftmost first, until no two "
                "make a token",
            "segment": "a chunk that is a token is that token; else join its bytes",
            "learn":
                "count the tokens that neighbours would make, take the most frequent, join; "
                "again, `size` times",
        },
        "common/byte_level_file.py": {
            "merges_of":
                "every cut of every token into two tokens, in the order of the token that is "
                "made",
        },
    },
    3: {
        "init.py": {
            "growth":
                "how many rows, and for each new piece the base's ids of its spelling, without "
                "a ▁ put before it",
            "new_rows":
                "the new rows of one table by the method's rule; padding is the mean of the "
                "base's rows",
            "train_briefly":
                "train on loss / count with AdamW; yield the bits per byte at each of the "
                "steps, before its update",
        },
    },
    4: {
        "kernels/rotary.py": {
            "rope_reference":
                "pair i with i + D/2 and turn each pair; float32 or better inside, x's dtype "
                "outside",
            "_turn": "the same for one tensor: what the model runs on a CPU",
        },
        "model.py": {
            "Cache.extend":
                "write k and v behind the `used` positions of this layer; return all its keys "
                "and values",
            "Attention.forward":
                "project, turn, attend (to all positions of a cache, or within documents), "
                "project",
        },
        "common/plan.py": {
            "cost":
                "bytes of weights, gradients and moments of one process; the rest is given; "
                "then the peak",
        },
    },
    5: {
        "data.py": {
            "inputs_and_targets":
                "all tokens but the last, and the tokens after them; IGNORE for a prompt's",
            "furthest_behind":
                "what is due after this draw, less what was drawn; of the largest, the first",
            "Loader._window":
                "window `count` of a source, in its epoch's order: a function of seed, source, "
                "epoch",
            "Loader.next": "draw n times, counting each; read the rows that are this process's own",
        },
        "train.py": {
            "batches":
                "micro-batches (with their documents), sources, the whole batch's targets, the "
                "loader's state",
        },
        "common/plan.py": {
            "is_trained": "does any part of the union train the parameter of this name?",
        },
        "common/checkpoint.py": {
            "read_counters":
                "the file; UserError unless every file that it names is there and has the hash",
            "newest": "from the newest on: the first that read_counters does not refuse",
            "rewind_metrics": "keep the whole lines up to (stage, step)",
        },
    },
    6: {
        "eval_kobest.py": {
            "encode":
                "the context's last spaces go to the answer; encode both together, cut where "
                "the context ends",
            "loglikelihoods":
                "sum of the log-probabilities of the answer's tokens; one request at a time "
                "will do",
            "evaluate":
                "encode, score (with the given context, if there is one), check, "
                "count_truncated(); metrics() does the rest",
            "mcnemar": "twice the smaller tail of a fair coin, at most 1",
        },
        "kernels/loss.py": {
            "_softmax_torch":
                "losses of the rows, and softmax minus onehot; zeros for rows that do not count",
            "loss_and_gradients": "a chunk of rows at a time: logits, losses, dh and a share of dW",
        },
        "kernels/norm.py": {
            "_backward_torch":
                "dx = (g - normed * mean(g * normed)) * inverse; dw = sum over the rows of dy * "
                "normed",
            "_norm_backward_kernel":
                "the same for rows p, p + P, p + 2P ... of program p; its share of dw one sum",
        },
    },
}

# What a copy without git has besides the repository's files.
LEFT_OUT = {".git", ".venv", "out", "out.old", "__pycache__", ".pytest_cache", ".ruff_cache"}

# The heading at which the answers of a sheet begin; they go on to its end.
ANSWERS = "## Expected\n"


# ------------------------------------------------------------------------------------------- sheets


def sheets(week: int) -> list[Path]:
    """The sheets of a week. Week 2 has a second one, week2b.md."""
    return sorted((ROOT / "exercises").glob(f"week{week}*.md"))


def without_answers(sheet: str) -> str:
    r"""A sheet up to its answers.

    >>> without_answers("# Sums\n\nWhat is 2 + 2?\n\n## Expected\n\n4\n\n## Discuss\n\nWhy?\n")
    '# Sums\n\nWhat is 2 + 2?\n'
    """
    question, heading, _ = sheet.partition(ANSWERS)
    if not heading:
        raise cli.UserError(f"a sheet has no line {ANSWERS.strip()!r}: where do its answers begin?")
    return question.rstrip() + "\n"


def handout(week: int) -> str:
    """The sheets of a week without their answers, one after the other."""
    pages = [without_answers(sheet.read_text(encoding="utf-8")) for sheet in sheets(week)]
    return "\n\n".join(pages)


# ------------------------------------------------------------------------------------------- bodies


def tracked() -> list[Path]:
    """The repository's files, relative to it: what git tracks, or without git all but caches."""
    try:
        command = ["git", "-C", ROOT, "ls-files", "-z"]
        git = subprocess.run(command, capture_output=True, text=True)
        listed = git.stdout.split("\0")
    except FileNotFoundError:
        listed = []
    # If git does not list this file, the folder is a copy, perhaps inside another repository.
    if "exercises/blank.py" in listed:
        return [Path(name) for name in listed if name and (ROOT / name).is_file()]

    files = []
    for path in sorted(ROOT.rglob("*")):
        file = path.relative_to(ROOT)
        if path.is_file() and not LEFT_OUT & set(file.parts):
            files.append(file)
    return files


def find(source: str, name: str, file: str) -> ast.FunctionDef:
    """The definition of a function or `Class.method`. UserError if it is missing or blank."""
    nodes = ast.parse(source).body
    for part in name.split("."):
        node = named(nodes, part)
        if node is None:
            raise cli.UserError(
                f"{file} has no function {name}; WEEKS in exercises/blank.py and the file disagree")
        nodes = node.body
    last = ast.unparse(node.body[-1])
    if re.match(r"raise NotImplementedError\(['\"]week ", last):
        raise cli.UserError(f"{name} in {file} is blank already: this is a student's copy; "
                            "run blank.py in the repository itself")
    return node


def named(nodes: list[ast.stmt], name: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The function or class of this name among some statements."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    return None


def blank(source: str, names: dict[str, str], week: int, file: str) -> str:
    """The source with the bodies of some functions replaced.

    >>> source = 'def f(x):\\n    "Twice x."\\n    return 2 * x\\n\\n\\ny = 1'
    >>> print(blank(source, {"f": "write it"}, 1, "f.py"))
    def f(x):
        "Twice x."
        raise NotImplementedError("week 1: write it")
    <BLANKLINE>
    <BLANKLINE>
    y = 1
    """
    lines = source.split("\n")
    found = [(find(source, name, file), hint) for name, hint in names.items()]
    # From the end of the file, so that the line numbers of the others stay true.
    found.sort(key=lambda item: item[0].lineno, reverse=True)
    for node, hint in found:
        start = first_line_of_body(node, lines)
        indent = " " * node.body[0].col_offset
        message = json.dumps(f"week {week}: {hint}", ensure_ascii=False)
        lines[start:node.end_lineno] = [f"{indent}raise NotImplementedError({message})"]
    return "\n".join(lines)


def first_line_of_body(node: ast.FunctionDef, lines: list[str]) -> int:
    """The index of the line after the docstring, or of the first line of a body without one."""
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        return first.end_lineno
    decorators = getattr(first, "decorator_list", [])
    start = min(part.lineno for part in [first, *decorators]) - 1
    # A comment above the first statement is a part of the answer.
    while lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return start


def write(week: int, out: Path) -> None:
    """Write the copy of a week. UserError if `out` exists: somebody's work may be in it."""
    if out.exists():
        raise cli.UserError(
            f"{out} exists, and may hold work; choose another --out, or remove it yourself")
    files = tracked()
    with cli.new_folder(out) as temporary:
        for file in files:
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, temporary / file)
        for file, names in WEEKS[week].items():
            text = blank((ROOT / file).read_text(encoding="utf-8"), names, week, file)
            (temporary / file).write_text(text, encoding="utf-8")
        # Not a secret, but a prediction is worth nothing with the answer on the same page.
        for any_week in WEEKS:
            for sheet in sheets(any_week):
                text = without_answers(sheet.read_text(encoding="utf-8"))
                (temporary / sheet.relative_to(ROOT)).write_text(text, encoding="utf-8")


def solution(week: int, name: str) -> str:
    """The repository's own definition of a function, or of each if two files have the name."""
    definitions = []
    known = []
    for file, names in WEEKS[week].items():
        known += names
        if name in names:
            source = (ROOT / file).read_text(encoding="utf-8")
            node = find(source, name, file)
            code = ast.get_source_segment(source, node, padded=True)
            definitions.append(f"# {file}\n{code}")
    if not definitions:
        raise cli.UserError(
            f"--solution {name} is no function of week {week}; choose from {', '.join(known)}")
    return "\n".join(definitions)


# ------------------------------------------------------------------------------------- command line


def print_list() -> None:
    for week, files in WEEKS.items():
        print(f"week {week}")
        for file, names in files.items():
            for name, hint in names.items():
                print(f"    {file}: {name}")
                print(f"        {hint}")


def print_handout(week: int, out: Path | None) -> None:
    text = handout(week)
    if out is None:
        print(text, end="")
        return
    with cli.new_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{out}: the sheet of week {week} without its answers")


def print_next(week: int, out: Path) -> None:
    count = sum(len(names) for names in WEEKS[week].values())
    print(f"{out}: {count} functions of week {week} are blank. Next:")
    print(f"    cd {out} && python -m pytest exercises/test_week{week}.py")
    print(f"The sheet is exercises/week{week}.md; hints: python exercises/blank.py --list")


def main(argv: list[str] | None = None) -> None:
    """Write a copy with the bodies taken out, or show what there is."""
    parser = cli.Parser(description=__doc__, prog="exercises/blank.py")
    flag = parser.add_argument
    flag("week", nargs="?", type=int, choices=WEEKS, help="the week whose functions are taken out")
    flag("--out", type=Path,
         help="the folder to write, which must not exist (default: out/exercises/weekN); "
              "with --no_answers the file (default: the screen)")
    flag("--solution", metavar="NAME",
         help="write no copy; print the repository's own version of that function")
    flag("--no_answers", action="store_true",
         help="write no copy; print the week's sheet without its answers")
    flag("--list", action="store_true", help="write no copy; print what each week takes out")
    args = parser.parse_args(argv)
    if args.list:
        print_list()
    elif args.week is None:
        raise cli.UserError("which week? `python exercises/blank.py 1`, or --list")
    elif args.solution:
        print(solution(args.week, args.solution))
    elif args.no_answers:
        print_handout(args.week, args.out)
    else:
        out = args.out or Path(f"out/exercises/week{args.week}")
        write(args.week, out)
        print_next(args.week, out)


if __name__ == "__main__":
    cli.run(main)
