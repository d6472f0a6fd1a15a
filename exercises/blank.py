"""Make a week's working copy: the whole repository, with the bodies of that week's functions taken out.

Nothing exists twice. The exercise *is* the repository, less some bodies; the solution is the repository. What a week
takes out stands in the table WEEKS below, with the line that a student reads where the body was.

    python exercises/blank.py --list                  # the weeks, their functions, the hints
    python exercises/blank.py 1                       # writes out/exercises/week1; its page is exercises/week1.md
    cd out/exercises/week1 && python -m pytest exercises/test_week1.py    # all fail; write the bodies until they pass
    python exercises/blank.py 1 --solution jaccard    # afterwards, here: how the repository does it

Signature, docstring and decorators stay. A `@triton.jit` kernel is blanked in the same way: the module still imports,
since Triton compiles at the first launch; the interpreter then raises the line as it stands, and the compiler, which
knows no `raise`, stops with an error that quotes it.
"""
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a program, Python looks beside this file only
from common import cli  # noqa: E402

WEEKS: dict[int, dict[str, dict[str, str]]] = {  # {week: {file: {function or Class.method: what is to be written}}}
    1: {"cleaning/normalise.py": {
            "unicode_to_nfc": "NFC; then jamo that stand alone, whatever their encoding, as compatibility jamo",
            "spell_jamo": "a block as it is; letters as compatibility jamo; fillers alone as a space"},
        "cleaning/rules.py": {
            "check": "measure the text in the order of the table; (None, reason) of the first limit that it breaks",
            "check_language": "the reason if too few letters are of the language, or hanja stands without Hangul",
            "check_lines": "the reason if too few lines end like text, or too many occurred before"},
        "cleaning/duplicates.py": {
            "jaccard": "the size of the intersection over the size of the union",
            "bands_of": "112 minima per document, one for each of ORDERS; hash 14 bands of 8"},
        "cleaning/decontaminate.py": {
            "Benchmark.check": "(None, reason) for 25 characters in a row of any field, or a whole field of 12 to 24",
            "detectable": "for each table, the items with a field that the check can find, and all items"}},
    2: {"tokenizer.py": {
            "hangul_counts": "count the Hangul runs, each with the space before it",
            "truncated": "drop the last merges, keep the characters",
            "merge": "append the new Hangul pieces with scores that continue below the base's lowest rank",
            "ranked_merges": "every split of every piece into two pieces, best score first"},
        "common/byte_level.py": {  # the second sheet, week2b.md
            "join": "join the pair whose token has the lowest rank, leftmost first, until no two make a token",
            "segment": "a chunk that is a token is that token; else join its bytes",
            "learn": "count the tokens that neighbours would make, take the most frequent, join; again, `size` times"},
        "common/byte_level_file.py": {
            "merges_of": "every cut of every token into two tokens, in the order of the token that is made"}},
    3: {"init.py": {
            "growth": "how many rows, and for each new piece the base's ids of its spelling, without a ▁ put before it",
            "new_rows": "the new rows of one table by the method's rule; padding is the mean of the base's rows",
            "train_briefly": "train on loss / count with AdamW; yield the bits per byte at each of the steps, before its update"}},
    4: {"kernels/rotary.py": {
            "rope_reference": "pair i with i + D/2 and turn each pair; float32 or better inside, x's dtype outside",
            "_turn": "the same for one tensor: what the model runs on a CPU"},
        "model.py": {
            "Cache.extend": "write k and v behind the `used` positions of this layer; return all its keys and values",
            "Attention.forward": "project, turn, attend (to all positions of a cache, or within documents), project"},
        "common/plan.py": {
            "cost": "bytes of weights, gradients and moments of one process; the rest is given; then the peak"}},
    5: {"data.py": {
            "inputs_and_targets": "all tokens but the last, and the tokens after them; IGNORE for a prompt's",
            "furthest_behind": "what is due after this draw, less what was drawn; of the largest, the first",
            "Loader._window": "window `count` of a source, in its epoch's order: a function of seed, source, epoch",
            "Loader.next": "draw n times, counting each; read the rows that are this process's own"},
        "train.py": {
            "batches": "micro-batches (with their documents), sources, the whole batch's targets, the loader's state"},
        "common/plan.py": {
            "is_trained": "does any part of the union train the parameter of this name?"},
        "common/checkpoint.py": {
            "read_counters": "the file; UserError unless every file that it names is there and has the hash",
            "newest": "from the newest on: the first that read_counters does not refuse",
            "rewind_metrics": "keep the whole lines up to (stage, step)"}},
    6: {"eval_kobest.py": {
            "encode": "the context's last spaces go to the answer; encode both together, cut where the context ends",
            "loglikelihoods": "sum of the log-probabilities of the answer's tokens; one request at a time will do",
            "evaluate": "encode, score (with the given context, if there is one), check, count_truncated(); metrics() does the rest",
            "mcnemar": "twice the smaller tail of a fair coin, at most 1"},
        "kernels/loss.py": {
            "_softmax_torch": "losses of the rows, and softmax minus onehot; zeros for rows that do not count",
            "loss_and_gradients": "a chunk of rows at a time: logits, losses, dh and a share of dW"},
        "kernels/norm.py": {
            "_backward_torch": "dx = (g - normed * mean(g * normed)) * inverse; dw = sum over the rows of dy * normed",
            "_norm_backward_kernel": "the same for rows p, p + P, p + 2P ... of program p; its share of dw one sum"}},
}
LEFT_OUT = {".git", ".venv", "out", "out.old", "__pycache__", ".pytest_cache", ".ruff_cache"}


def tracked() -> list[Path]:
    """The repository's files, relative to it: those that git tracks; without git, all but caches and outputs."""
    try:
        git = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
        listed = git.stdout.split("\0")
    except FileNotFoundError:
        listed = []
    if "exercises/blank.py" in listed:  # else this is a copy without .git, perhaps inside another repository
        return [Path(name) for name in listed if name and (ROOT / name).is_file()]
    files = (path.relative_to(ROOT) for path in sorted(ROOT.rglob("*")) if path.is_file())
    return [path for path in files if not LEFT_OUT & set(path.parts)]


def find(source: str, name: str, file: str) -> ast.FunctionDef:
    """The definition of a function, or of `Class.method`. UserError if it is not there, or is blank already."""
    nodes = ast.parse(source).body
    for part in name.split("."):
        node = next((n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part), None)
        if node is None:
            raise cli.UserError(f"{file} has no function {name}; WEEKS in exercises/blank.py and the file disagree")
        nodes = node.body
    if re.match(r"raise NotImplementedError\(['\"]week ", ast.unparse(node.body[-1])):
        raise cli.UserError(f"{name} in {file} is blank already: this is a working copy; go to the repository itself")
    return node


def blank(source: str, names: dict[str, str], week: int, file: str) -> str:
    """The source with the bodies of some functions replaced.

    >>> print(blank('def f(x):\\n    "Twice x."\\n    return 2 * x\\n\\n\\ny = 1', {"f": "write it"}, 1, "f.py"))
    def f(x):
        "Twice x."
        raise NotImplementedError("week 1: write it")
    <BLANKLINE>
    <BLANKLINE>
    y = 1
    """
    lines = source.split("\n")
    found = [(find(source, name, file), hint) for name, hint in names.items()]
    for node, hint in sorted(found, key=lambda item: -item[0].lineno):  # from the end, so that line numbers stay true
        first = node.body[0]
        if ast.get_docstring(node) is not None:
            start = first.end_lineno
        else:
            start = min(part.lineno for part in [first, *getattr(first, "decorator_list", [])]) - 1
            while lines[start - 1].lstrip().startswith("#"):  # a comment above the first line is a part of the answer
                start -= 1
        message = json.dumps(f"week {week}: {hint}", ensure_ascii=False)
        lines[start:node.end_lineno] = [f"{' ' * first.col_offset}raise NotImplementedError({message})"]
    return "\n".join(lines)


def write(week: int, out: Path) -> None:
    """Write the working copy of a week. UserError if `out` exists: somebody's work may be in it."""
    if out.exists():
        raise cli.UserError(f"{out} exists, with work in it perhaps; choose another --out, or remove it yourself")
    files = tracked()
    with cli.new_folder(out) as temporary:
        for file in files:
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, temporary / file)
        for file, names in WEEKS[week].items():
            text = blank((ROOT / file).read_text(encoding="utf-8"), names, week, file)
            (temporary / file).write_text(text, encoding="utf-8")


def solution(week: int, name: str) -> str:
    """The repository's own definition of one of the week's functions (of each, if two files have the name)."""
    known = [other for names in WEEKS[week].values() for other in names]
    if name not in known:
        raise cli.UserError(f"--solution {name} is no function of week {week}; choose from {', '.join(known)}")
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for file, names in WEEKS[week].items() if name in names}
    return "\n".join(f"# {file}\n" + ast.get_source_segment(source, find(source, name, file), padded=True)
                     for file, source in sources.items())


def main(argv: list[str] | None = None) -> None:
    """Write a copy with the bodies taken out, or show what there is."""
    parser = cli.Parser(description=__doc__, prog="exercises/blank.py")
    flag = parser.add_argument
    flag("week", nargs="?", type=int, choices=WEEKS, help="whose functions are taken out")
    flag("--out", type=Path, help="the folder to write; must not exist (default: out/exercises/weekN)")
    flag("--solution", metavar="NAME", help="write nothing; print the repository's own version of that function")
    flag("--list", action="store_true", help="write nothing; print what each week takes out")
    args = parser.parse_args(argv)
    if args.list:
        for week, files in WEEKS.items():
            print(f"week {week}", *(f"    {file}: {name}\n        {hint}" for file, names in files.items()
                                    for name, hint in names.items()), sep="\n")
    elif args.week is None:
        raise cli.UserError("which week? `python exercises/blank.py 1`, or --list")
    elif args.solution:
        print(solution(args.week, args.solution))
    else:
        out = args.out or Path(f"out/exercises/week{args.week}")
        write(args.week, out)
        print(f"{out}: {sum(map(len, WEEKS[args.week].values()))} functions of week {args.week} are blank. Next:\n"
              f"    cd {out} && python -m pytest exercises/test_week{args.week}.py\n"
              f"the page is exercises/week{args.week}.md; a hint for each: python exercises/blank.py --list")


if __name__ == "__main__":
    cli.run(main)
