"""The commands of README.md (and README.ko.md): those that can run here run, in the order in which they stand, in a
folder of their own; of the others every program exists and its own parser takes every flag.

How they have to be written, so that this can be checked:

- Commands stand in ```bash blocks, or indented and beginning with python, bash or torchrun; one a line, or with \\ at
  its end. What follows a # is a comment.
- A word in capitals stands for something of the reader's. BASE is an English model directory, LLAMA one of Llama 3, kobest (or KOBEST) the
  folder of KoBEST. A command with ... in it is a part of one: only its flags are looked at.
- Documents that an --input names with a suffix or a / at the end are the reader's, and made here: Korean ones, or
  English if --lang or the name says so. Any other path is what an earlier command wrote; if there is none, or the
  program is a study, a measurement or started by torchrun, the command is parsed and not run.
- Sizes are made small (SMALL); nothing else is changed.
"""
import importlib
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

PAGES = [page for page in ("README.md", "README.ko.md") if (ROOT / page).exists()]
RUN = {"data", "tokenizer", "init", "train", "eval_bits", "eval_kobest", "sample", "toy"}
INPUTS = ("model", "models", "skip_seen", "base", "korean", "tokenizer", "tokenizers", "data", "input", "decontaminate", "probe", "resume",
          "config", "reference", "also")
SMALL = {"--vocab_size": "600", "--min_count": "2", "--seq_len": "32", "--batch_tokens": "64", "--lora_rank": "4",
         "--documents": "400", "--limit": "4", "--max_new_tokens": "4", "--probe_steps": "1", "--probe_batch": "2"}
ADDED = {"eval_kobest": ["--limit"], "sample": ["--max_new_tokens"], "toy": ["--documents"]}


def commands(page: str) -> list[list[str]]:
    """The commands of a page, as lists of words, without assignments before them."""
    found = []
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    blocks += re.findall(r"^ {4}((?:python|bash|torchrun) .*)", rest, re.M)
    for line in "\n".join(blocks).splitlines():
        for part in re.split(r"\s(?:&&|\|\|?|;)\s", line):
            words = shlex.split(part.strip().removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            found += [words] if words else []
    return found


def split(words: list[str]) -> tuple[Path, list[str]] | None:
    """(the program, its arguments) of a command that starts one of ours."""
    if not words[0].startswith(("python", "torchrun")):
        return None
    if "-m" in words[:2]:
        path = Path(words[2].replace(".", "/"))
        return path / "__main__.py" if (ROOT / path / "__main__.py").exists() else path.with_suffix(".py"), words[3:]
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    return None if at is None else (Path(words[at]), words[at + 1:])


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("page, words", ALL, ids=[" ".join(words)[:60] for _, words in ALL])
def test_programs_and_flags_exist(page, words, monkeypatch):
    for word in words:
        if word.endswith((".py", ".sh")) and not word.startswith("-"):
            assert (ROOT / word).is_file(), word
    if not split(words):
        return
    program, argv = split(words)
    try:
        parser, _ = parse(program, None if "..." in argv else argv, monkeypatch)
    except ImportError as error:
        pytest.skip(f"measures beside another library: {error}")
    assert {word.partition("=")[0] for word in argv if word.startswith("--")} <= set(parser.flags())


def small(program: str, argv: list[str]) -> list[str]:
    """The same command with small sizes."""
    argv = [SMALL.get(before, word) for before, word in zip(["", *argv], argv, strict=False)]
    argv = [re.sub(r"^([a-z_+]+):[\d.]+[kMB]?:", r"\1:640:", word) for word in argv]
    return argv + [word for flag in ADDED.get(program, []) if flag not in argv for word in (flag, SMALL[flag])]


def missing(args) -> list[str]:
    """The inputs of a command that are not there. Documents are made."""
    absent = []
    for name in INPUTS:
        value = getattr(args, name, None)
        for path in value if isinstance(value, list) else [value] if isinstance(value, str | Path) else []:
            folder = str(path).endswith("/")
            path = Path(str(path).partition("=")[0])
            if name == "input" and not path.exists() and (folder or path.suffix in (".jsonl", ".txt")):
                make(path, folder, "en" if getattr(args, "lang", "") == "en" or path.name.startswith("en") else "ko",
                     getattr(args, "encoding", "utf-8"))
            absent += [] if path.exists() else [str(path)]
    return absent


def make(path: Path, folder: bool, language: str, encoding: str) -> None:
    """Documents of the toy world under a reader's name."""
    found = [document["text"] for document in data.read_documents([Path("toy") / language])]
    some = random.Random(str(path)).sample(found, 150)
    if path.suffix == ".txt":
        path.write_text("\n".join(some[:30]), encoding=encoding, errors="ignore")
    elif folder:
        path.mkdir()
        write_jsonl(path / "a.jsonl", some)
    else:
        write_jsonl(path, some)


def test_commands_run_in_order(world, llama3, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toy.main(["--out", "toy", "--documents", "400"])
    Path("kobest").symlink_to("toy/kobest")
    Path("KOBEST").symlink_to("toy/kobest")
    Path("BASE").mkdir()
    model.save(model.Llama(tiny_config(vocab_size=400, max_position_embeddings=256)), "BASE")
    tokenizer.save(world / "base.model", "BASE")
    shutil.copytree(llama3 / "base", "LLAMA")
    ran = set()
    for words in commands("README.md"):
        if not words[0].startswith("python") or not split(words):
            continue
        (program, argv) = split(words)
        module = ".".join(program.with_suffix("").parts)
        name = module.removesuffix(".__main__")
        if name not in RUN or "..." in argv or "--sizes" in argv:
            continue
        argv = small(name, argv)
        _, args = parse(program, argv, monkeypatch)
        if not missing(args) and not Path(str(getattr(args, "out", None))).exists():
            importlib.import_module(module).main(argv)
            ran.add(name if argv[0].startswith("-") else f"{name} {argv[0]}")
    assert Path("run3/model/tokenizer.json").exists(), "README's commands for Llama 3 did not run"
    assert ran >= {"data clean", "data pack", "tokenizer train", "tokenizer merge", "tokenizer report", "init", "train",
                   "eval_bits", "eval_kobest", "sample"}, "README has no whole chain of commands from documents to a score"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), f"{page} links to {target}"


def test_links_to_lines_and_lengths_of_files_are_right():
    """[`name`](file.py#L12) points at the line that defines name; the tour's lengths are within a tenth."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\[`(\w+)`\]\(([\w/]+\.py)#L(\d+)\)", text)
    assert links
    for name, file, line in links:
        found = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"\s*(def|class) {name}\b", found), f"{file}#L{line} is not {name}: {found}"
    lengths = re.findall(r"^\| \[([\w./]+)\]\(\1\) \| ([\d,]+) \|", text, re.M)
    assert len(lengths) > 15
    for path, said in lengths:
        files = (ROOT / path).glob("*.py") if path.endswith("/") else [ROOT / path]
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        assert abs(lines - int(said.replace(",", ""))) <= lines / 10, f"{path} has {lines} lines"
