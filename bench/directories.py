"""Model directories: what goes in comes out, by nanowhale, transformers and llama.cpp.

For each kind of base a small random model is made, with the files that such models have on the
Hugging Face hub. The programs then merge, grow and train it, and three directories are compared:
the base, the grown one and the trained one.

- *ids*: documents of --korean and --english and odd strings, encoded by tokenizer.load and by
  AutoTokenizer, BOS included; how many differ
- *text*: the same, decoded
- *special*: texts that hold a special token, which is a token to transformers; compared with what
  the base makes of them, as AutoTokenizer opens it / by its tokenizer.json. The new pieces may be
  in them, so of Hangul only the letters count
- *logits*: of the beginning of some documents, the largest difference relative to the largest logit
- *ends*: the ids at which greedy generation ends in sample.py, each tried; after a slash those of
  transformers, where they differ
- *generate*: transformers' `generate(**tokenizer(prompt))`
- *names*: ids and tokens in config.json, generation_config.json and tokenizer_config.json that now
  mean another token than in the base, or an ordinary piece
- *rows*: special tokens of the base that transformers finds elsewhere or not at all; in the grown
  directory also those whose rows have other bits
- *pad*: transformers' padding token and side
- *GGUF*: as `ids`, of fewer documents, by llama.cpp from what its converter makes of the directory
- *lost*: files and settings of the base that are missing, and those with another value
- *mended*: of three changes made by hand in the grown directory, how many the trained one has

Anything that fails is said in its cell. Run it once per version of transformers, which decides:

    pip install transformers protobuf
    python -m bench.directories --tokenizer mistral.model --model BASE \\
        --korean ko/wiki.jsonl ko/reviews.jsonl --english en/wiki.jsonl --out directories.json \\
        --converter llama.cpp/convert_hf_to_gguf.py \\
        --llama_tokenize llama.cpp/build/bin/llama-tokenize
"""
import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path

import sentencepiece
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import model
import sample
import tokenizer
from bench import measure
from common import cli, hf
from common.sentencepiece_file import (
    DUMMY_PREFIX,
    NORMALIZER,
    PIECES,
    SCORE,
    TEXT,
    field,
)

DIRECTORIES = ("base", "grown", "trained")

LONGEST = 5000  # characters of a document that are compared
POSITIONS = 128  # tokens of a document whose logits are compared
GGUF_DOCUMENTS = 20  # each is a start of llama-tokenize
PROMPT = "대한민국의 수도는"  # "The capital of Korea is"

IM_END = "<|im_end|>"
IM_START = "<|im_start|>"
CONTROLS = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
PLAIN_TEMPLATE = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"

ODD = [
    "", " ", "  ", "   ", "\n", "\n\n\n", "\t", "\t\t한글", " 안녕", "  안녕", "안녕 ",
    "안녕  하세요",
    "안녕\n하세요", "\n안녕", "a  b   c    d", "    return 0;\n\n\n}", "def f(x):\n\treturn x",
    "한국어와 English가 섞인 文章", "大韓民國 憲法", "漢字語(한자어)", "ㅋㅋㅋㅋㅋㅋㅋㅋㅋ",
    "ㅠㅠ ㅜㅜ",
    unicodedata.normalize("NFD", "안녕하세요 대한민국"), "ᄒᆞᆫ글 나랏말ᄊᆞ미", "각", "뷁쀍뙇",
    "😀😃 👨‍👩‍👧‍👦 🇰🇷", "제로\u200b폭\u200c공백\u200d\ufeff", "\u3000전각\u3000공백",
    "\u00a0nbsp\u00a0",
    "ＡＢＣ１２３ ﬁ ½ ①", "3.14159 2,000,000원 10%", "▁밑줄▁", "란드의", "란드의 영화",
    "[INST] 안녕 [/INST]",
    "[INST]안녕", "<|im_end", "< s >", "https://example.com/한글?q=1&b=2", "\r\n줄\r\n",
    # Special tokens, if the base has them.
    "<s>", "</s>", "<s>안녕", "</s> 안녕", "안녕</s>하세요", "<s> hello</s>world",
    "hello </s> world",
    "<unk>hello", "<s>[INST] 안녕 [/INST] 네.</s><s>[INST] hello [/INST]",
    f"{IM_END}안녕", f"{IM_END} 안녕", f"{IM_START}user\n안녕{IM_END}\n",
    f"hello{IM_END}\n{IM_START}",
    "[PAD]안녕", "hello[PAD] world",
]  # fmt: skip


@dataclasses.dataclass
class Kind:
    """A kind of base. What is not said is as in Llama 2's repository."""
    family: str = "llama"
    tied_head: bool = False         # one table for embedding and head
    added: tuple = ()               # tokens behind the pieces
    eos: str = "</s>"               # the one in the configurations
    pad: str | None = None
    chat_template: str = ""
    settings: dict = dataclasses.field(default_factory=dict)    # of tokenizer_config.json
    generation: dict = dataclasses.field(default_factory=dict)  # of generation_config.json
    tied_scores: bool = False       # half of the Korean pieces, all of score 0
    dummy_prefix: bool = True
    first_only: bool = False        # ▁ before the text alone, not after a special token
    fast: bool = True               # is there a tokenizer.json?
    bare_merge: bool = False        # merge into tokenizer.model, not into the directory
    break_ties: bool = False        # merge --break_ties


CHAT = Kind(
    added=(IM_END, IM_START),
    eos=IM_END,
    pad="</s>",
    chat_template=CHAT_TEMPLATE,
    settings={"padding_side": "left", "model_max_length": 4096, "legacy": True},
    generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
)
KINDS = {
    "Llama 2": Kind(settings={"legacy": True}),
    "legacy: false": Kind(first_only=True, settings={"legacy": False}),
    "tokenizer.model alone": Kind(fast=False, settings={"legacy": True}),
    "Mistral": Kind(
        family="mistral",
        chat_template=PLAIN_TEMPLATE,
        settings={"additional_special_tokens": [], "legacy": True},
    ),
    "tied head": Kind(tied_head=True, settings={"legacy": True}),
    "chat": CHAT,
    "chat, bare merge": dataclasses.replace(CHAT, bare_merge=True),
    "[PAD]": Kind(
        added=("[PAD]",),
        pad="[PAD]",
        generation={"eos_token_id": [2, 1]},
        settings={"padding_side": "right", "legacy": True},
    ),
    "tied scores": Kind(tied_scores=True, settings={"legacy": True}),
    "tied scores, --break_ties": Kind(
        tied_scores=True,
        settings={"legacy": True},
        break_ties=True,
    ),
    "no dummy prefix": Kind(
        dummy_prefix=False,
        settings={"add_prefix_space": False, "legacy": False},
    ),
    # transformers 4 goes by tokenizer.json, transformers 5 by the setting.
    "legacy: false, Prepend": Kind(settings={"legacy": False}),
}


# ---- A base --------------------------------------------------------------------------------------


def spm_file(kind: Kind, plain: Path, korean: Path) -> bytes:
    """The bytes of the base's tokenizer.model: `plain`, changed as the kind says."""
    raw = plain.read_bytes()
    if not kind.dummy_prefix:
        raw += field(NORMALIZER, field(DUMMY_PREFIX, 0))
    if kind.tied_scores:
        sp = sentencepiece.SentencePieceProcessor(model_file=str(plain))
        known = {sp.id_to_piece(i) for i in range(sp.vocab_size())}
        other = sentencepiece.SentencePieceProcessor(model_file=str(korean))
        pieces = [other.id_to_piece(i) for i in range(1, other.vocab_size(), 2)]
        # The smallest case of two segmentations.
        for text in dict.fromkeys(["란", "드", "의", "란드", "드의", *pieces]):
            if text not in known:
                raw += field(PIECES, field(TEXT, text.encode()) + field(SCORE, 0.0))
    return raw


def fast_file(sp: sentencepiece.SentencePieceProcessor, kind: Kind) -> dict:
    """The tokenizer.json that transformers 4 made of such a file, and that repositories hold."""
    vocab = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    merges = []
    for text, i in vocab.items():
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i):
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocab and right in vocab:
                merges.append((sp.get_score(i), len(left), len(right), f"{left} {right}"))
    merges.sort(key=lambda merge: merge[:3], reverse=True)

    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [space]
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if kind.dummy_prefix:
        steps.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer = {"type": "Sequence", "normalizers": steps}
    metaspace = None
    if kind.first_only:
        normalizer = None
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
        metaspace["split"] = False
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    second_start = {"SpecialToken": {"id": "<s>", "type_id": 1}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(text) | {"id": i} for i, text in specials(sp, kind).items()],
        "normalizer": normalizer,
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first],
            "pair": [start, first, second_start, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [merge[3] for merge in merges],
        },
    }


def added_token(text: str) -> dict:
    """A special token, as the files of transformers describe it."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, **flags, "special": True}


def specials(sp: sentencepiece.SentencePieceProcessor, kind: Kind) -> dict[int, str]:
    """The special tokens of a base: {id: text}."""
    found = dict(enumerate(CONTROLS))
    found.update(enumerate(kind.added, start=sp.vocab_size()))
    return found


def make_base(kind: Kind, args: argparse.Namespace, korean: Path, folder: Path) -> None:
    """Write the base's model directory."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(spm_file(kind, args.tokenizer, korean))
    sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokens = specials(sp, kind)
    id_of = {text: i for i, text in tokens.items()}

    # The weights, as transformers saves them. (Mistral's window is left out, and so 4,096.)
    config = AutoConfig.for_model(
        kind.family,
        vocab_size=sp.vocab_size() + len(kind.added),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=kind.tied_head,
        bos_token_id=1,
        eos_token_id=id_of[kind.eos],
        pad_token_id=id_of.get(kind.pad),
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    # What else a repository holds.
    generation = {"bos_token_id": 1, "eos_token_id": id_of[kind.eos]}
    if kind.pad:
        generation["pad_token_id"] = id_of[kind.pad]
    write(folder / "generation_config.json", generation | kind.generation)
    named = {"bos_token": "<s>", "eos_token": kind.eos, "unk_token": "<unk>"}
    if kind.pad:
        named["pad_token"] = kind.pad
    decoder = {str(i): added_token(text) for i, text in tokens.items()}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
        **named,
        **kind.settings,
    }
    if kind.family == "mistral":
        (folder / "chat_template.jinja").write_text(kind.chat_template)
    elif kind.chat_template:
        settings["chat_template"] = kind.chat_template
    write(folder / "tokenizer_config.json", settings)
    write(folder / "special_tokens_map.json", named)
    if kind.added:
        write(folder / "added_tokens.json", {text: id_of[text] for text in kind.added})
    if kind.fast:
        write(folder / "tokenizer.json", fast_file(sp, kind))
    (folder / "LICENSE").write_text("Community licence\n")


def copy_base(source: Path, folder: Path) -> None:
    """A base that is given, with a licence."""
    shutil.copytree(source, folder)
    (folder / "LICENSE").write_text("Community licence\n")


def write(file: Path, content: dict) -> None:
    """Write a JSON file."""
    cli.write_json(file, content)


# ---- The programs --------------------------------------------------------------------------------


class Failed(Exception):
    """A program that another program is started for; its last line on stderr."""


def start(command: list, **more) -> str:
    """Run a command; return its output. Failed, with the reason, if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=measure.ROOT,
        capture_output=True,
        text=True,
        **more,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Failed(last)
    return done.stdout


def python(program: str, *argv) -> None:
    """Run a program of ours. Failed, with the reason, if it fails."""
    start([sys.executable, f"{program}.py", *argv])


def learn_korean(texts: dict[str, list[str]], pieces: int, folder: Path) -> Path:
    """Write the texts that are trained on, and learn pieces of Hangul from them."""
    for name, some in texts.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in some]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    python("tokenizer", "train", "--input", folder / "ko.jsonl", "--vocab_size", pieces,
           "--out", folder / "korean.model")
    return folder / "korean.model"


def grow(kind: Kind, korean: Path, folder: Path) -> None:
    """Merge, pack and grow: from `base` to `grown`."""
    base = folder / "base"
    merged = folder / "merged.model"
    source = base / "tokenizer.model" if kind.bare_merge else base
    flags = ["--break_ties"] if kind.break_ties else []
    python("tokenizer", "merge", "--base", source, "--korean", korean, "--out", merged, *flags)
    for name in ("ko", "en"):
        python("data", "pack", "--input", korean.parent / f"{name}.jsonl",
               "--tokenizer", merged, "--out", folder / "shards" / name)
    python("init", "--model", base, "--tokenizer", merged, "--out", folder / "grown")


def mend(folder: Path) -> None:
    """Change a directory as someone might by hand."""
    for name, change in (
        ("tokenizer_config.json", {"truncation_side": "left"}),
        ("generation_config.json", {"top_k": 7}),
    ):
        write(folder / name, cli.read_json(folder / name) | change)
    (folder / "NOTES.md").write_text("written by hand\n")


def mended(folder: Path) -> str:
    """How many of these changes a directory has."""
    found = [
        cli.read_json(folder / "tokenizer_config.json").get("truncation_side") == "left",
        cli.read_json(folder / "generation_config.json").get("top_k") == 7,
        (folder / "NOTES.md").exists(),
    ]
    return f"{found.count(True)} of {len(found)}"


def train(folder: Path, stages: list[str]) -> None:
    """Train shortly: from `grown` to `trained`."""
    mend(folder / "grown")
    shards = folder / "shards"
    python("train", "--model", folder / "grown", "--device", "cpu",
           "--data", f"{shards / 'ko'}=0.75", f"{shards / 'en'}=0.25",
           "--stages", *stages, "--seq_len", 64, "--eval_bytes", 2000,
           "--out", folder / "run")
    (folder / "run" / "model").rename(folder / "trained")


# ---- What a directory holds ----------------------------------------------------------------------


def id_list(ids: int | list[int] | None) -> list[int]:
    """An eos_token_id as a list: there may be none, one, or several."""
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]


def tokens_of(folder: Path) -> dict[int, tuple[str, bool]]:
    """{id: (text, is it an ordinary piece?)}, by tokenizer.model and the files of added tokens."""
    sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    found = {}
    for i in range(sp.vocab_size()):
        found[i] = (sp.id_to_piece(i), not (sp.is_control(i) or sp.is_unknown(i)))
    added = {}
    for text, i in cli.read_json_if_any(folder / "added_tokens.json").items():
        added[i] = text
    config = cli.read_json_if_any(folder / "tokenizer_config.json")
    for i, token in config.get("added_tokens_decoder", {}).items():
        added[int(i)] = token["content"]
    for token in cli.read_json_if_any(folder / "tokenizer.json").get("added_tokens", []):
        added[token["id"]] = token["content"]
    for i, text in added.items():
        found.setdefault(i, (text, False))
    return found


def named(folder: Path) -> dict[str, list[str]]:
    """{file and setting: the tokens that it means}; an ordinary piece is marked as such."""
    tokens = tokens_of(folder)
    ids = {text: i for i, (text, _) in tokens.items()}

    def described(i: int | None) -> str:
        text, ordinary = tokens.get(i, ("no token", False))
        return f"{text} (an ordinary piece)" if ordinary else text

    found = {}
    for name in ("config.json", "generation_config.json"):
        for key, value in cli.read_json_if_any(folder / name).items():
            if key.endswith("_token_id") and value is not None:
                found[f"{name} {key}"] = [described(i) for i in id_list(value)]
    config = cli.read_json_if_any(folder / "tokenizer_config.json")
    for key, value in config.items():
        if key.endswith("_token") and value and not isinstance(value, bool):
            text = value["content"] if isinstance(value, dict) else value
            found[f"tokenizer_config.json {key}"] = [described(ids.get(text))]
    for i, token in config.get("added_tokens_decoder", {}).items():
        now = described(int(i))
        if now != token["content"]:
            found[f"tokenizer_config.json token {i}"] = [f"{token['content']}, which is {now}"]
    return found


def settings_of(folder: Path) -> dict[str, object]:
    """Every file of a directory but its weights, and every setting in those of JSON."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_dir() or "safetensors" in name or name.startswith("adapter"):
            continue
        found[name] = True
        # The vocabulary itself is compared by its ids.
        if name in ("tokenizer.model", "tokenizer.json"):
            continue
        if file.suffix == ".json":
            for key, value in cli.read_json(file).items():
                if value is not None:
                    found[f"{name} {key}"] = value
        else:
            found[name] = file.read_text(encoding="utf-8")
    return found


def weights_of(folder: Path) -> list[torch.Tensor]:
    """The embedding and the head."""
    tensors = hf.TensorFiles(folder)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return [tensors.read(name) for name in names if name in tensors.files]


# ---- The checks ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Opened:
    """A directory, and what is compared with it."""
    folder: Path
    base: Path
    kind: Kind
    documents: list[str]
    args: argparse.Namespace
    details: dict  # {check: what is too long for the table}

    @cached_property
    def peer(self):
        """transformers' tokenizer."""
        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def models(self) -> tuple[tokenizer.Vocabulary, model.Llama, object]:
        """nanowhale's tokenizer and model, and transformers' model."""
        vocabulary, llama = sample.load(self.folder, "cpu", torch.float32)
        return vocabulary, llama, AutoModelForCausalLM.from_pretrained(self.folder).float().eval()

    def texts(self, special: bool, documents: int | None = None) -> list[str]:
        """The texts that hold special tokens of this kind, or the others."""
        tokens = [*CONTROLS, *self.kind.added]
        some = []
        for text in ODD + self.documents[:documents]:
            if any(token in text for token in tokens) == special:
                some.append(text)
        return some

    def count(self, check: str, different: list[str], compared: int) -> str:
        """A cell; the first of the texts that differ are among the details."""
        if different:
            self.details[check] = [text[:80] for text in different[:5]]
        return f"{len(different)} of {compared}"


def check_ids(opened: Opened) -> str:
    """Documents and odd strings, by nanowhale and by transformers."""
    vocabulary = tokenizer.load(opened.folder)
    peer = opened.peer
    opened.details["tokenizer class"] = type(peer).__name__
    texts = opened.texts(special=False)
    different = []
    for text in texts:
        if vocabulary.encode(text, bos=True) != peer(text)["input_ids"]:
            different.append(text)
    return opened.count("ids", different, len(texts))


def check_text(opened: Opened) -> str:
    """The texts of these ids, by nanowhale and by transformers."""
    vocabulary = tokenizer.load(opened.folder)
    texts = opened.texts(special=False)
    different = []
    for text in texts:
        ids = vocabulary.encode(text, bos=True)
        if vocabulary.decode(ids) != opened.peer.decode(ids, skip_special_tokens=True):
            different.append(text)
    return opened.count("text", different, len(texts))


def spelled(peer, text: str) -> list[str]:
    """The tokens of a text; with Hangul in it, its letters and special tokens in one string."""
    tokens = peer.convert_ids_to_tokens(peer(text)["input_ids"])
    if not tokenizer.HANGUL_LETTER.search(text):
        return tokens

    def decoded(match: re.Match) -> str:
        return bytes.fromhex(match[0].replace("<0x", "").replace(">", "")).decode(errors="replace")

    return [re.sub("(<0x[0-9A-F]{2}>)+", decoded, "".join(tokens))]


def check_special(opened: Opened) -> str:
    """Texts with special tokens, beside the base as transformers opens it, and beside its file."""
    if opened.folder == opened.base:
        return "–"
    bases = {"base": AutoTokenizer.from_pretrained(opened.base)}
    if (opened.base / "tokenizer.json").exists():
        file = str(opened.base / "tokenizer.json")
        bases["file"] = PreTrainedTokenizerFast(
            tokenizer_file=file, bos_token="<s>", eos_token=opened.kind.eos, unk_token="<unk>")
    texts = opened.texts(special=True)
    cells = []
    for name, base in bases.items():
        different = []
        for text in texts:
            before = " ".join(spelled(base, text))
            after = " ".join(spelled(opened.peer, text))
            if before != after:
                different.append(f"{text[:30]!r}: {before[:60]!r} → {after[:60]!r}")
        if different:
            opened.details[f"special, {name}"] = different[:8]
        cells.append(f"{len(different)}")
    return f"{' / '.join(cells)} of {len(texts)}"


@torch.no_grad()
def check_logits(opened: Opened) -> str:
    """The largest relative difference over the beginnings of ten documents."""
    vocabulary, llama, peer = opened.models
    opened.details["model class"] = type(peer).__name__
    worst = 0.0
    step = max(1, len(opened.documents) // 10)
    for text in opened.documents[::step]:
        tokens = torch.tensor([vocabulary.encode(text, bos=True)[:POSITIONS]])
        theirs = peer(tokens).logits
        difference = (llama(tokens) - theirs).abs().max() / theirs.abs().max()
        worst = max(worst, difference.item())
    return f"{worst:.1e}"


@torch.no_grad()
def check_ends(opened: Opened) -> str:
    """The tokens at which a text ends. Each is made the likeliest, and must end a continuation."""
    vocabulary, llama, peer = opened.models
    ours = sorted(set(sample.end_tokens(opened.folder, llama, vocabulary)))
    theirs = sorted(set(id_list(peer.generation_config.eos_token_id)))
    tokens = torch.tensor([vocabulary.encode(PROMPT, bos=True)])
    hidden = peer.model(tokens).last_hidden_state[0, -1]                # (D,)
    wrong = []
    for end in sorted({*ours, *theirs}):
        before = peer.lm_head.weight[end].clone()
        for one in (llama, peer):
            one.lm_head.weight[end] = 100 * hidden
        expected = [*tokens[0].tolist(), end]
        own = llama.generate(tokens, 8, temperature=0, eos=ours)[0].tolist()
        other = peer.generate(tokens, max_new_tokens=8, do_sample=False)[0].tolist()
        if end in ours and own != expected:
            wrong.append(f"nanowhale does not end at {end}")
        if end in theirs and other != expected:
            wrong.append(f"transformers does not end at {end}")
        for one in (llama, peer):
            one.lm_head.weight[end] = before

    # sample.py also ends where documents do. A base need not say so: it was packed elsewhere.
    if opened.folder != opened.base and ours != theirs:
        wrong.append("they differ")
    if wrong:
        opened.details["ends"] = wrong
    cell = " ".join(map(str, ours))
    if ours != theirs:
        cell += f" / {' '.join(map(str, theirs))}"
    return f"{cell}, {len(wrong)} wrong" if wrong else cell


def check_generate(opened: Opened) -> str:
    """The way in which transformers' documentation continues a prompt."""
    _, _, peer = opened.models
    batch = opened.peer(PROMPT, return_tensors="pt")
    peer.generate(**batch, max_new_tokens=2)
    return "runs"


def check_names(opened: Opened) -> str:
    """What the files name, beside what the base's named."""
    before = named(opened.base)
    after = named(opened.folder)
    wrong = []
    for key in dict.fromkeys([*before, *after]):
        old = before.get(key, [])
        new = after.get(key, [])
        new_ordinary = [text for text in new if "ordinary" in text and text not in old]
        missing = [text for text in old if text not in new and text != "no token"]
        which = [text for text in new if ", which is" in text or text == "no token"]
        if new_ordinary or missing or which:
            wrong.append(f"{key}: {', '.join(old) or '–'} → {', '.join(new) or '–'}")
    if wrong:
        opened.details["names"] = wrong
    return f"{len(wrong)} wrong"


def check_rows(opened: Opened) -> str:
    """The base's special tokens: where they are now, and with which rows."""
    peer = opened.peer
    tables = weights_of(opened.folder)
    # After training the old rows have other bits, unless only the new ones were trained.
    base_tables = weights_of(opened.base) if opened.folder.name == "grown" else []
    tokens = [(i, text) for i, (text, ordinary) in tokens_of(opened.base).items() if not ordinary]
    special = {}
    for i, token in peer.added_tokens_decoder.items():
        if token.special:
            special[token.content] = i
    wrong = []
    for i, text in tokens:
        now = special.get(text)
        if now is None:
            wrong.append(f"{text} {i}: none now")
        elif now >= len(tables[0]):
            wrong.append(f"{text} {i}: {now} now, which has no row")
        elif any(not a[now].equal(b[i]) for a, b in zip(tables, base_tables, strict=False)):
            wrong.append(f"{text} {i}: {now} now, a row of other bits")
    if wrong:
        opened.details["rows"] = wrong
    return f"{len(wrong)} wrong of {len(tokens)}"


def check_pad(opened: Opened) -> str:
    """transformers' padding token, and whether config.json says the same."""
    peer = opened.peer
    ids = [peer.pad_token_id]
    for name in ("config.json", "generation_config.json"):
        ids.append(cli.read_json_if_any(opened.folder / name).get("pad_token_id"))
    cell = f"{peer.pad_token} {peer.pad_token_id} {peer.padding_side}"
    if len(set(ids)) > 1:
        cell += f", configurations {ids[1]}, {ids[2]}"
    return cell


def check_gguf(opened: Opened) -> str:
    """llama.cpp's ids, by the vocabulary that its converter makes."""
    args = opened.args
    if not (args.converter and args.llama_tokenize):
        return "not run"
    root = args.converter.resolve().parent
    environment = os.environ | {"PYTHONPATH": f"{root / 'gguf-py'}:{root}:" + os.environ.get(
        "PYTHONPATH", "")}
    vocabulary = tokenizer.load(opened.folder)
    different = []
    texts = [text for text in ODD + opened.documents[:GGUF_DOCUMENTS] if text]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "vocabulary.gguf"
        start([sys.executable, args.converter.resolve(), opened.folder, "--vocab-only",
               "--outfile", file], env=environment)
        command = [args.llama_tokenize.resolve(), "-m", file, "--stdin", "--ids", "--no-escape",
                   "--no-parse-special", "--log-disable"]
        for text in texts:
            theirs = json.loads(start(command, input=text))
            if theirs != vocabulary.encode(text, bos=True):
                different.append(text)
    return opened.count("GGUF", different, len(texts))


def check_lost(opened: Opened) -> str:
    """Files and settings of the base."""
    if opened.folder == opened.base:
        return "–"
    before = settings_of(opened.base)
    after = settings_of(opened.folder)
    # What must change, and who wrote the file.
    for key in ("config.json vocab_size", "config.json transformers_version"):
        before.pop(key, None)
    lost = [key for key in before if key not in after]
    # A file that is missing is enough to say.
    lost = [key for key in lost if key.partition(" ")[0] == key or key.partition(" ")[0] in after]
    changed = []
    for key, value in before.items():
        if key in after and after[key] != value:
            changed.append(f"{key}: {str(value)[:60]} → {str(after[key])[:60]}")
    opened.details["lost"] = lost
    opened.details["changed"] = changed
    return f"{len(lost)}, {len(changed)} changed"


def check_mended(opened: Opened) -> str:
    """What was changed by hand in the grown directory."""
    return mended(opened.folder) if opened.folder.name == "trained" else "–"


TO_CHECK: dict[str, Callable[[Opened], str]] = {
    "ids": check_ids,
    "text": check_text,
    "special": check_special,
    "logits": check_logits,
    "ends": check_ends,
    "generate": check_generate,
    "names": check_names,
    "rows": check_rows,
    "pad": check_pad,
    "GGUF": check_gguf,
    "lost": check_lost,
    "mended": check_mended,
}


def in_a_line(error: Exception) -> str:
    """An error for a cell of the table."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:100]}".replace("|", "/")


def check(kind_name: str, opened: Opened) -> dict:
    """A row of the table. What fails is said in its cell, and the next check is made."""
    row = {"kind": kind_name, "directory": opened.folder.name}
    for name, function in TO_CHECK.items():
        try:
            row[name] = function(opened)
        except (Exception, SystemExit) as error:
            row[name] = in_a_line(error)
            opened.details[f"{name} failed"] = traceback.format_exc().splitlines()[-6:]
    print(measure.line(row), flush=True)
    return row


# ---- All of it -----------------------------------------------------------------------------------


def read(args: argparse.Namespace) -> tuple[list[str], dict[str, list[str]]]:
    """(the documents that are compared, those that are trained on by language)"""
    files = [*args.korean, *args.english]
    each = args.documents // len(files)
    compared = []
    trained = {"ko": [], "en": []}
    for file in files:
        texts = tokenizer.texts([file])
        compared += [text[:LONGEST] for text in islice(texts, each)]
        language = "ko" if file in args.korean else "en"
        trained[language] += [text[:LONGEST] for text in islice(texts, args.train_documents)]
    return compared, trained


def make(name: str, args: argparse.Namespace, korean: Path, folder: Path) -> str | None:
    """The three directories of a kind, in `folder`. Returns what failed, if something did."""
    kind = KINDS[name]
    if name == "tokenizer.model alone" and args.model:
        copy_base(args.model, folder / "base")
    else:
        make_base(kind, args, korean, folder / "base")
    try:
        grow(kind, korean, folder)
        train(folder, args.stages)
    except Failed as error:
        return f"failed: {error}"
    return None


def main() -> None:
    """Kind by kind: make the directories, and check them."""
    parser = cli.Parser(description=__doc__, prog="bench.directories")
    flag = parser.add_argument
    flag("--tokenizer", type=Path, required=True, help="a SentencePiece BPE base's .model file")
    flag("--model", type=Path, help="a base with tokenizer.model and no tokenizer.json, for the "
         "kind that has none; if not given, one is made")
    flag("--korean", nargs="+", required=True, help="files of Korean documents")
    flag("--english", nargs="+", required=True, help="files of English documents")
    flag("--documents", type=int, default=200, help="documents compared, as many of each file")
    flag("--train_documents", type=int, default=300, help="documents of each file, to train on")
    flag("--pieces", type=int, default=3000, help="Korean pieces to learn")
    flag("--stages", nargs="+", default=["embed:2k:1e-2", "lora:2k:1e-2"], help="of train.py")
    flag("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND",
         help=f"of {'; '.join(KINDS)} (default: all)")
    flag("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    flag("--llama_tokenize", type=Path, help="llama.cpp's program llama-tokenize")
    flag("--keep", type=Path, help="a new folder for the directories; if not given, they go")
    flag("--out", type=Path, default=measure.RESULTS / "directories.json", help="the JSON file")
    args = parser.parse_args()

    documents, trained = read(args)
    conditions = measure.machine("transformers", "tokenizers", "sentencepiece") | {
        "documents": len(documents),
        "odd strings": len(ODD),
        "stages": args.stages,
    }
    rows = []
    details = {}
    result = {"conditions": conditions, "rows": rows, "details": details}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        korean = learn_korean(trained, args.pieces, folder)
        for number, name in enumerate(args.kinds):
            own = folder / f"{number}"
            failed = make(name, args, korean, own)
            details[name] = {}
            for directory in DIRECTORIES:
                if not (own / directory).exists():
                    row = {"kind": name, "directory": directory, **dict.fromkeys(TO_CHECK, "–")}
                    rows.append(row | {"ids": failed})
                    continue
                more = {}
                opened = Opened(
                    own / directory, own / "base", KINDS[name], documents, args, more)
                rows.append(check(name, opened))
                details[name][directory] = more
            # A kill costs one kind.
            cli.write_json(args.out, result)
    print(json.dumps(conditions))
    print(measure.table(rows))
    print(f"written to {args.out}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    cli.run(main)
