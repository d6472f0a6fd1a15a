"""A base of Llama 3's kind for the tests, made from the toy world: a byte-level vocabulary, a model
directory, and what the programs make of them. The fixture `llama3` (conftest.py) makes it once.

The definition of a byte-level tokenizer is implemented here a second time, in another way."""
import base64
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path

import regex
import torch
from conftest import tiny_config

import data
import init
import model
import tokenizer
from common import byte_level, byte_level_file, documents
from toy import world as toy

PATTERN = byte_level_file.LLAMA3_PATTERN
BEGIN = "<|begin_of_text|>"
END = "<|end_of_text|>"
PAD = "<|finetune_right_pad_id|>"
TURN = "<|eot_id|>"
CONTROLS = (BEGIN, END, PAD, TURN)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}<|eot_id|>{% endfor %}"
)

# A token that no two others make: it is found only as a whole chunk.
WHOLE = " zqxjk"

TOKENIZER_CONFIG = {
    "bos_token": BEGIN,
    "chat_template": TEMPLATE,
    "clean_up_tokenization_spaces": True,
    "eos_token": END,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 131072,
    "pad_token": PAD,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


# ---- The definition, implemented in another way --------------------------------------------------


def joined(chunk: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """`byte_level.join`, starting from single bytes. It keeps the positions where tokens end, and
    removes one of them in each round."""
    ends = list(range(len(chunk) + 1))
    while True:
        candidates = []
        for start, middle, end in zip(ends, ends[1:], ends[2:], strict=False):
            if chunk[start:end] in ranks:
                candidates.append((ranks[chunk[start:end]], middle))
        if not candidates:
            return [chunk[a:b] for a, b in zip(ends, ends[1:], strict=False)]
        ends.remove(min(candidates)[1])


def encoded(text: str, ranks: dict[bytes, int], pattern: str = PATTERN) -> list[int]:
    """The ids of a text."""
    ids = []
    for match in regex.finditer(pattern, text):
        chunk = match.group().encode()
        parts = [chunk] if chunk in ranks else joined(chunk, ranks)
        ids += [ranks[part] for part in parts]
    return ids


def cuts(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that make a token, ordered by rank: of the result, then of the left."""
    found = []
    for token, rank in ranks.items():
        for i in range(1, len(token)):
            if {token[:i], token[i:]} <= ranks.keys():
                found.append((rank, ranks[token[:i]], token[:i], token[i:]))
    return [(left, right) for _, _, left, right in sorted(found)]


def letters(token: bytes) -> str:
    """A token in GPT-2's letters: bytes not printable in Latin-1 are mapped to U+0100 and up."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return "".join(chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in token)


def tokenizer_json(
    ranks: dict[bytes, int], controls: dict[str, int], pattern: str = PATTERN
) -> dict:
    """A tokenizer.json as Meta publishes it: the vocabulary does not contain the control tokens."""
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": BEGIN, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": BEGIN, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": BEGIN, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {BEGIN: {"id": BEGIN, "ids": [controls[BEGIN]], "tokens": [BEGIN]}},
    }
    added = []
    for text, i in controls.items():
        added.append({"id": i, "content": text, "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False, "special": True})
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    spell = {**step, "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, spell]},
        "post_processor": {"type": "Sequence", "processors": [step, template]},
        "decoder": {**step, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {letters(token): rank for token, rank in ranks.items()},
            "merges": [f"{letters(left)} {letters(right)}" for left, right in cuts(ranks)],
        },
    }


def write_tiktoken(ranks: dict[bytes, int], file: Path) -> Path:
    """Write ranks as a tiktoken file."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    file.write_text("".join(lines))
    return file


# ---- Vocabularies and texts ----------------------------------------------------------------------


def always(token: bytes) -> bool:
    """Whether a token may be learned: any may."""
    return True


def base_ranks(texts: list[str], size: int) -> dict[bytes, int]:
    """The 256 bytes, `size` tokens learned from these texts, and WHOLE."""
    ranks = {bytes([byte]): i for i, byte in enumerate(random.Random(5).sample(range(256), 256))}
    counts = Counter()
    for text in texts:
        counts.update(regex.findall(PATTERN, text))
    for token in [*byte_level.learn(counts, ranks, size, always), WHOLE.encode()]:
        ranks[token] = len(ranks)
    return ranks


def write_base(folder: Path, ranks: dict[bytes, int]) -> Path:
    """Write the tokenizer files of a model directory."""
    folder.mkdir(exist_ok=True)
    controls = {text: len(ranks) + i for i, text in enumerate(CONTROLS)}
    content = json.dumps(tokenizer_json(ranks, controls), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return folder


def write_model(folder: Path) -> Path:
    """A random model like Llama 3.2's beside a tokenizer: tied embeddings, scaled rotary
    frequencies, more than one token that ends a text."""
    vocabulary = tokenizer.load(folder)
    config = tiny_config(
        vocab_size=vocabulary.size,
        max_position_embeddings=128,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        tie_word_embeddings=True,
        bos_token_id=vocabulary.controls[BEGIN],
        eos_token_id=[vocabulary.controls[END], vocabulary.controls[TURN]],
    )
    torch.manual_seed(0)
    llama = model.Llama(config)
    for parameter in llama.parameters():
        parameter.data.normal_(std=0.2)
    model.save(llama, folder)
    return folder


def make(root: Path) -> Path:
    """Run the programs on a small world: toy/{ko,en,kobest}, base/ (a model directory),
    korean.tiktoken, merged/, grown/ (a model directory), shards/{ko,en}."""
    toy.main(["--out", f"{root}/toy", "--documents", "400"])
    texts = texts_of(root, "en") + texts_of(root, "ko")[:60]
    write_model(write_base(root / "base", base_ranks(texts, 300)))
    tokenizer.main(["train", "--base", f"{root}/base", "--input", f"{root}/toy/ko",
                    "--vocab_size", "200", "--out", f"{root}/korean.tiktoken"])
    tokenizer.main(["merge", "--base", f"{root}/base", "--korean", f"{root}/korean.tiktoken",
                    "--out", f"{root}/merged"])
    init.main(["--model", f"{root}/base", "--tokenizer", f"{root}/merged", "--device", "cpu",
               "--out", f"{root}/grown"])
    for language in ("ko", "en"):
        data.main(["pack", "--input", f"{root}/toy/{language}", "--tokenizer", f"{root}/merged",
                   "--out", f"{root}/shards/{language}", "--val_fraction", "0.05"])
    return root


def texts_of(root: Path, language: str) -> list[str]:
    """The toy world's documents of a language."""
    return [document["text"] for document in documents.read_documents([root / "toy" / language])]


# Runs of laughter, decomposed Hangul, old jamo, emoji, hanja, spaces of all kinds, contractions.
ODD_TEXTS = [
    "",
    " ",
    "  \n\n \t x",
    "ㅋ",
    "ㅋ" * 300,
    " ㅎ" * 50,
    "가" * 200,
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "\u1112\u119e\u11ab \ua960\ud7b0",
    "고래🐋👩‍👩‍👧‍👦🇰🇷가",
    "大韓民國漢字",
    "It's 12345 DON'T\r\n\r\nＡ½",
    "Python은 (한국) 3월,\u3000말\u00a0일",
    "\u0000\ufeff\U0010ffff\u200b한\u0301",
    WHOLE,
    WHOLE + "a",
    BEGIN + "한국" + TURN,
]
SCRIPTS = [
    "가힣나다라은는이",
    "ㄱㅋㅎㅏㅣ",
    "\u1100\u1161\u11a8\u119e\ua960\ud7b0",
    "abcxyzAZéß",
    "дяабв",
    "漢字大語",
    "あいアン",
    "0123456789١²",
    " \n\t\r\u00a0\u3000",
    ".,!?'\"()—…",
    "🐋👩\u200d🇰🇷😀",
    "\u0301\u0000\ufffd",
]


def odd_text(rng: random.Random) -> str:
    """A random text: letters of one script, then of another, or any characters.

    They are of Unicode 3.2. Libraries know different versions of Unicode, so they differ in which
    of the newest characters are letters."""
    parts = []
    for _ in range(rng.randint(1, 12)):
        if rng.random() < 0.2:
            some = any_characters(rng, 6)
            parts += [one for one in some if unicodedata.ucd_3_2_0.category(one) != "Cn"]
        else:
            parts += rng.choices(rng.choice(SCRIPTS), k=rng.randint(1, 6))
        if rng.random() < 0.3:
            parts.append(" ")
    return "".join(parts)


def any_characters(rng: random.Random, n: int) -> list[str]:
    """Code points from everywhere except the surrogates; half of them below U+10000."""
    found = []
    while len(found) < n:
        code = rng.randrange(rng.choice([0x10000, 0x110000]))
        if not 0xD800 <= code < 0xE000:
            found.append(chr(code))
    return found
