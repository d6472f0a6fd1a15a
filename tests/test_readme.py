"""The commands and links of the documents.

Every command of ours in README, docs/, RESULTS and the exercises names programs and flags that
exist. Those of README.md and docs/own-data.md that can run here do run, in the order in which they
stand, each page in a folder of its own.

How commands have to be written, so that this can be checked:

- They stand in ```bash blocks, or indented by four spaces, or between backquotes; one per line, or
  continued by a \\ at its end. What follows a # is a comment.
- A word in capitals stands for something of the reader's: BASE is an English model directory, LLAMA
  one of Llama 3, kobest (or KOBEST) the folder of KoBEST. A command with ... in it is only a part
  of one.
- Documents that an --input names with a suffix, or with a / at the end, are the reader's and are
  made here: English ones if --lang or the name says so, instructions if it is alpaca.jsonl, else
  Korean. Any other path must have been written by an earlier command. If there is none, or if the
  program is a study, a measurement or started by torchrun, the command is parsed and not run.
- Sizes are made small (SMALL). Nothing else is changed.
"""
import importlib
import json
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, parse, tiny_config, write_jsonl

import data
import model
import tokenizer
from toy import world as toy

PAGES = ["README.md", "README.ko.md", "RESULTS.md", "bench/GPU.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md"))]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("exercises/*.md"))]
# Pages whose commands form a chain from documents to a score.
CHAINS = ["README.md", "docs/own-data.md"]

PROGRAMS = ("data", "tokenizer", "init", "train", "eval_bits", "eval_kobest", "sample")
INPUTS = ("model", "models", "skip_seen", "base", "korean", "tokenizer", "tokenizers", "data",
          "input", "decontaminate", "probe", "resume", "config", "reference", "also", "run")
SMALL = {
    "--vocab_size": "600",
    "--min_count": "2",
    "--seq_len": "32",
    "--batch_tokens": "64",
    "--lora_rank": "4",
    "--limit": "4",
    "--max_new_tokens": "4",
    "--probe_steps": "1",
    "--probe_batch": "2",
}
# Flags that a program gets here if the page does not give them.
ADDED = {"eval_kobest": ["--limit"], "sample": ["--max_new_tokens"]}


# ---- Commands ------------------------------------------------------------------------------------


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def lines_of_commands(page: str) -> list[str]:
    """The lines of blocks of commands, and indented ones."""
    text = read(page).replace("\\\n", " ")
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.M | re.S)
    # A file that a block writes (cat > FILE <<'END' ... END) is no command.
    blocks = [re.sub(r"<<'(\w+)'\n.*?^\1$", "", block, flags=re.M | re.S) for block in blocks]

    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4}((?:\w+=\S+ )*(?:python|bash|torchrun) .*)", rest, re.M)
    return "\n".join(blocks).splitlines() + indented


def mentions(page: str) -> list[list[str]]:
    """What stands between backquotes inside a sentence: often only a part of a command."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S)
    return [shlex.split(code) for code in re.findall(r"`((?:python|torchrun) [^`]+)`", text)]


def joined_quotes(lines: list[str]) -> list[str]:
    """The lines, those between quotes that span several joined to one."""
    result = []
    unfinished = ""
    for line in lines:
        line = unfinished + line
        try:
            shlex.split(line, comments=True)
        except ValueError:  # no closing quotation
            unfinished = line + " "
            continue
        unfinished = ""
        result.append(line)
    assert not unfinished, unfinished
    return result


def commands(page: str) -> list[list[str]]:
    """The commands of a page, as lists of words, without assignments in front."""
    found = []
    for line in joined_quotes(lines_of_commands(page)):
        for part in re.split(r"\s(?:&&|\|\|?|;)\s", line):
            words = shlex.split(part.strip().removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def split(words: list[str]) -> tuple[Path, list[str]] | None:
    """(the program, its arguments) of a command that starts one of ours."""
    if not words[0].startswith(("python", "torchrun")):
        return None
    if "-m" in words[:2]:
        path = Path(words[2].replace(".", "/"))
        if not (ROOT / path.parts[0]).exists():
            return None  # pip, pytest
        if (ROOT / path / "__main__.py").exists():
            path = path / "__main__.py"
        else:
            path = path.with_suffix(".py")
        return path, words[3:]
    for i, word in enumerate(words):
        if word.endswith(".py"):
            return Path(word), words[i + 1:]
    return None


WHOLE = [(page, words) for page in PAGES for words in commands(page)]
PARTS = [(page, words) for page in PAGES for words in mentions(page)]


def check(page: str, words: list[str], monkeypatch, whole: bool) -> None:
    """The program of a command exists and knows its flags; if it is whole, its parser takes it."""
    if not split(words):
        return
    program, argv = split(words)
    if page.startswith("exercises/") and not (ROOT / program).exists():
        return  # a script that the sheet itself writes
    assert (ROOT / program).is_file(), f"{page}: there is no {program}"
    if program.parts[0] in ("exercises", "tests"):
        return
    text = " ".join(argv)
    if "..." in text or "…" in text or "$" in text:
        whole = False
    try:
        parser, _ = parse(program, argv if whole else None, monkeypatch)
    except ImportError as error:
        pytest.skip(f"measures beside another library: {error}")
    named = {word.partition("=")[0] for word in argv if word.startswith("--")}
    assert named - {"--help"} <= set(parser.flags()), f"{page}: {program} has no such flag"


@pytest.mark.parametrize("page, words", WHOLE, ids=[" ".join(words)[:60] for _, words in WHOLE])
def test_programs_take_the_commands(page, words, monkeypatch):
    check(page, words, monkeypatch, whole=True)


@pytest.mark.parametrize("page, words", PARTS, ids=[" ".join(words)[:60] for _, words in PARTS])
def test_programs_and_flags_in_sentences_exist(page, words, monkeypatch):
    check(page, words, monkeypatch, whole=False)


# ---- The chains ----------------------------------------------------------------------------------


def small(program: str, argv: list[str]) -> list[str]:
    """The same command with small sizes."""
    result = []
    for before, word in zip(["", *argv], argv, strict=False):
        word = SMALL.get(before, word)
        result.append(re.sub(r"^([a-z_+]+):[\d.]+[kMB]?:", r"\1:640:", word))
    for flag in ADDED.get(program, []):
        if flag not in argv:
            result += [flag, SMALL[flag]]
    return result


def paths_of(args) -> list[tuple[str, str]]:
    """(flag, path) of everything that a command reads."""
    found = []
    for name in INPUTS:
        value = getattr(args, name, None)
        values = value if isinstance(value, list) else [value]
        for path in values:
            if isinstance(path, str | Path):
                found.append((name, str(path).partition("=")[0]))
    return found


def missing(args) -> list[str]:
    """The inputs of a command that are not there. Documents are made."""
    absent = []
    for name, path in paths_of(args):
        is_the_readers = path.endswith("/") or Path(path).suffix in (".jsonl", ".txt")
        if name == "input" and is_the_readers and not Path(path).exists():
            english = getattr(args, "lang", "") == "en" or Path(path).name.startswith("en")
            make(path, "en" if english else "ko", getattr(args, "encoding", "utf-8"))
        if not Path(path).exists():
            absent.append(path)
    return absent


def make(path: str, language: str, encoding: str) -> None:
    """Documents of the toy world under a reader's name."""
    found = [document["text"] for document in data.read_documents([Path("toy") / language])]
    texts = random.Random(path).sample(found, 150)
    if path.endswith("/"):
        Path(path).mkdir()
        write_jsonl(Path(path) / "a.jsonl", texts)
    elif path.endswith(".txt"):
        text = "\n".join(texts[:30])
        Path(path).write_text(text, encoding=encoding, errors="ignore")
    elif path == "alpaca.jsonl":
        rows = [{"instruction": text, "input": "", "output": text[:20]} for text in texts]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        Path(path).write_text("".join(lines), encoding="utf-8")
    else:
        write_jsonl(Path(path), texts)


@pytest.mark.parametrize("page", CHAINS)
def test_commands_run_in_order(page, world, llama3, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toy.main(["--out", "toy", "--documents", "400"])
    Path("kobest").symlink_to("toy/kobest")
    Path("BASE").mkdir()
    model.save(model.Llama(tiny_config(vocab_size=400, max_position_embeddings=256)), "BASE")
    tokenizer.save(world / "base.model", "BASE")
    shutil.copytree(llama3 / "base", "LLAMA")

    ran = set()
    for words in commands(page):
        if not words[0].startswith("python") or not split(words):
            continue
        program, argv = split(words)
        name = program.stem
        if name not in PROGRAMS or len(program.parts) > 1 or "..." in argv or "--sizes" in argv:
            continue
        argv = small(name, argv)
        _, args = parse(program, argv, monkeypatch)
        # What an earlier command was asked for is there already: such a command is a variant.
        if missing(args) or Path(str(getattr(args, "out", None))).exists():
            continue
        importlib.import_module(name).main(argv)
        ran.add(name if argv[0].startswith("-") else f"{name} {argv[0]}")

    wanted = {"data clean", "data pack", "tokenizer train", "tokenizer merge", "init", "train",
              "eval_bits", "eval_kobest", "sample"}
    assert ran >= wanted, f"{page} has no whole chain of commands from documents to a score"
    if page == "docs/own-data.md":
        assert Path("run3/model/tokenizer.json").exists(), "its commands for Llama 3 did not run"
        assert Path("chat/model").exists(), "its commands for instruction tuning did not run"


# ---- Links, lengths ------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """The #anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ (.*)", text, re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link's text alone
        kept = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(kept.strip().replace(" ", "-"))
    return found


def test_anchors_are_githubs():
    assert "solar-107b-as-in-the-paper" in anchors("docs/own-data.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)", read(page)):
        path, _, anchor = target.partition("#")
        other = (folder / path).resolve() if path else ROOT / page
        assert other.exists(), f"{page} links to {target}"
        if anchor and other.suffix == ".md":
            name = str(other.relative_to(ROOT))
            assert anchor in anchors(name), f"{page} links to {target}, which {name} has not"


@pytest.mark.parametrize("page", PAGES)
def test_links_to_lines_are_right(page):
    """[`name`](file.py#L12) points at the line that defines name."""
    links = re.findall(r"\[`(\w+)`\]\((?:\.\./)?([\w/]+\.py)#L(\d+)\)", read(page))
    for name, file, line in links:
        found = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        is_right = re.match(rf"\s*(def|class) {name}\b", found)
        assert is_right, f"{file}#L{line} is not {name}: {found}"


def test_lengths_of_files_are_right():
    """README's tour gives each file's lines, within a tenth."""
    lengths = re.findall(r"^\| \[([\w./]+)\]\(\1\) \| ([\d,]+) \|", read("README.md"), re.M)
    assert len(lengths) > 15
    for path, said in lengths:
        files = (ROOT / path).glob("*.py") if path.endswith("/") else [ROOT / path]
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        assert abs(lines - int(said.replace(",", ""))) <= lines / 10, f"{path} has {lines} lines"


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 12 * 1024
