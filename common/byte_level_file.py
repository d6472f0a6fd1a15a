"""The two kinds of files with a byte-level vocabulary: tiktoken's, and tokenizer.json.

- tiktoken's file has one line per token: its bytes in base64, and its rank. It says neither how a
  text is split nor what the control tokens are; for Llama 3 both are below.
- tokenizer.json, which transformers reads, has all of that. But instead of ranks it has a list of
  merges, pairs of tokens, best first. `merges_of` turns ranks into such a list.

The format: https://huggingface.co/docs/tokenizers.
"""
import base64
from pathlib import Path

import regex

from common import cli, special_tokens, tokenizer_json
from common.byte_level import ByteLevel

# Llama 3's tiktoken file is recognised by its number of tokens. The regular expression and the
# control tokens are from Meta's documentation of Llama 3.1; 3, 3.2 and 3.3 differ only in names.
LLAMA3_RANKS = 128_000
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"     # what follows an apostrophe in English
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"        # letters, with a space or another symbol before them
    r"|\p{N}{1,3}"                      # digits, three at most
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"       # punctuation, with the line breaks after it
    r"|\s*[\r\n]+"                      # line breaks
    r"|\s+(?!\S)|\s+"                   # spaces, less the one before a word
)
LLAMA3_CONTROLS = (
    "<|begin_of_text|>", "<|end_of_text|>",
    "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)),
)

# BOS and EOS of Llama 3, under their names in tokenizer_config.json.
LLAMA3_CONFIG = {
    "clean_up_tokenization_spaces": False,
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
}

# A line of tiktoken's file.
TIKTOKEN = regex.compile(rb"[\w+/]+=* \d+\r?\n")

# A text that a regular expression must match completely: a character of every kind, and spaces.
PROBE = (
    "It's  2,024 e\u0301 — 한국ㅋ😀\x00\t\r\n \n"
    "Aǅʰः⃝Ⅷ²_-()«»!+$^©\xa0\u2028\u2029\x85\xad\ue000\u0378"
)

# The end of every refusal.
INSTEAD = "take a tokenizer.json of Llama 3's family, or SentencePiece's tokenizer.model"

# ---- tokenizer.json ------------------------------------------------------------------------------
# JSON stores text, not bytes. So a token is spelled with one letter for each of its bytes.


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: its Latin-1 character if that is visible, otherwise the next
    one from U+0100 on.

    >>> letters = byte_letters()
    >>> letters[ord("A")], letters[ord(" ")], letters[0xEA]
    ('A', 'Ġ', 'ê')
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(0x100 + len(letters) - len(visible))
    return letters


# The step that replaces bytes by these letters, and as a decoder does the reverse. A decoder uses
# none of the settings, but `tokenizers` refuses a file without them.
BYTE_LETTERS = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}

LETTER_OF_BYTE = byte_letters()
BYTE_OF_LETTER = {letter: byte for byte, letter in LETTER_OF_BYTE.items()}


def spelled(token: bytes) -> str:
    """A token as tokenizer.json spells it.

    >>> spelled(" 한".encode())  # 한: "Korean"
    'Ġíķľ'
    """
    return token.decode("latin-1").translate(LETTER_OF_BYTE)


def unspelled(text: str) -> bytes:
    """The inverse of `spelled`. KeyError if the text spells no bytes."""
    return bytes([BYTE_OF_LETTER[letter] for letter in text])


def merges_of(ranks: dict[bytes, int]) -> list[str]:
    """The ranks as a list of merges, best first, as tokenizer.json describes a BPE.

    `join` joins any two neighbours that make a token. So every split of a token into two tokens is
    a merge, in the order of the tokens that they make:

    >>> merges_of({b"l": 0, b"o": 1, b"w": 2, b"ow": 3, b"lo": 4, b"low": 5})
    ['o w', 'l o', 'l ow', 'lo w']

    One merge per token is not enough. Of the tokens bc, ab, cd and abcd, in this order, the last is
    never joined (see byte_level.segment), and its only split is ab + cd. If bcd is appended, a +
    bcd makes it: a new token can give an old one another split.
    """
    names = {token: spelled(token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = []
        for cut in range(1, len(token)):
            left = token[:cut]
            right = token[cut:]
            if left in ranks and right in ranks:
                cuts.append((ranks[left], ranks[right], left, right))
        for _, _, left, right in sorted(cuts):
            merges.append(f"{names[left]} {names[right]}")
    return merges


def pre_tokenizer(pattern: str, trim_offsets: bool = True) -> dict:
    """The steps that split a text by a regular expression, and spell the bytes of each match.

    trim_offsets only concerns places in the text, not tokens."""
    spell = {**BYTE_LETTERS, "trim_offsets": trim_offsets}
    return {"type": "Sequence", "pretokenizers": [tokenizer_json.split(pattern), spell]}


def pattern_of(content: dict) -> str | None:
    """The regular expression in a tokenizer.json; None if it splits text in another way."""
    found = content.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers") or [{}]
    pattern = steps[0].get("pattern", {}).get("Regex")
    if found in (pre_tokenizer(pattern, True), pre_tokenizer(pattern, False)):
        return pattern
    return None


def unsupported(content: dict) -> str | None:
    """Why `ByteLevel` would encode differently from this tokenizer.json; None if it would not."""
    pattern = pattern_of(content)
    model = content["model"]
    if model["type"] != "BPE" or pattern is None:
        return "it is not a BPE over the bytes of what one regular expression matches"
    if content.get("normalizer"):
        return "it has a normalizer"
    # To some libraries {1,3}+ means at most three, to others any number.
    if regex.search(r"\d}\+", pattern) or regex.compile(pattern).groups:
        return f"its regular expression may be read in two ways: {pattern!r}"
    matches = regex.findall(pattern, PROBE)
    if "" in matches or "".join(matches) != PROBE:
        return "its regular expression loses some of a text"
    # Words added by add_tokens would be cut out of a text before anything is joined.
    for token in content["added_tokens"]:
        if not special_tokens.CONTROL.fullmatch(token["content"]):
            return f"add_tokens has put words beside its BPE, {token['content']!r} among them"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"its BPE has a {option}"
    if not model.get("ignore_merges"):
        return "ignore_merges is not set, so chunks that are tokens are not looked up"
    return None


def describes_sentencepiece(content: dict) -> bool:
    """Was this tokenizer.json made from a SentencePiece model? Then it writes ▁ for a space, or
    bytes as <0xED>, or is a Unigram model."""
    model = content["model"]
    steps = [content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    return "▁" in str(steps) or bool(model.get("byte_fallback")) or model.get("type") == "Unigram"


def are_ranks(merges: list, ranks: dict[bytes, int]) -> bool:
    """Are these merges equivalent to the ranks?"""
    # Newer files write a merge as a list of two, older ones as one text with a space.
    given = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    if set(given) != set(merges_of(ranks)):
        return False
    # They are in the order of the tokens that they make; splits of one token may be in any order.
    made = [ranks[unspelled(merge.replace(" ", ""))] for merge in given]
    return made == sorted(made)


# ---- Files ---------------------------------------------------------------------------------------


def vocabulary_file(path: str | Path) -> Path | None:
    """The file with the byte-level vocabulary of a path: the path itself, if it is a tokenizer.json
    or a tiktoken file, or the one in a model directory. None if there is none, as for
    SentencePiece."""
    path = Path(path)
    if path.is_dir():
        model_file = path / "tokenizer.model"
        # A tokenizer.json beside SentencePiece's file only describes the same vocabulary.
        if model_file.is_file() and not is_tiktoken(model_file):
            return None
        if (path / "tokenizer.json").is_file():
            return path / "tokenizer.json"
        path = model_file
    if path.is_file() and (path.suffix == ".json" or is_tiktoken(path)):
        return path
    return None


def is_tiktoken(file: Path) -> bool:
    """Does the file begin with a line of tiktoken's format?"""
    with open(file, "rb") as opened:
        return bool(TIKTOKEN.match(opened.read(1000)))


def read(file: Path) -> ByteLevel:
    """Read a file that `vocabulary_file` found, and the tokenizer_config.json beside it.

    UserError if the file is damaged, or asks for something that would be computed wrongly here."""
    config = special_tokens.read_config(file.parent)
    for role in ("bos_token", "eos_token"):
        if config.get(role):
            config[role] = special_tokens.text_of(config[role])

    if file.suffix != ".json":
        ranks = read_ranks(file)
        if sorted(ranks.values()) != list(range(LLAMA3_RANKS)):
            raise cli.UserError(
                f"{file} has {len(ranks)} tokens, not Llama 3's {LLAMA3_RANKS}; only a "
                f"tokenizer.json says how its text is split and what its control tokens are: give "
                f"that (for what `tokenizer.py train` learned, the folder that `merge` writes)")
        return llama3(ranks, config, str(file))

    content = cli.read_json(file)
    try:
        if describes_sentencepiece(content):
            refuse_sentencepiece(file)
        problem = unsupported(content)
        if not problem:
            controls = {token["content"]: token["id"] for token in content["added_tokens"]}
            ranks = read_vocabulary(content["model"]["vocab"], controls)
            # GPT-2 and SmolLM list one merge per token, which is another BPE than one by ranks.
            if not are_ranks(content["model"]["merges"], ranks):
                problem = "its merges are not the ranks of its tokens, as Llama 3's are"
            # `save` writes these two from the ranks, and they take more memory than all the rest.
            del content["model"]["vocab"], content["model"]["merges"]
    except (LookupError, TypeError, ValueError, AttributeError, regex.error) as error:
        problem = f"it is not a tokenizer.json of transformers, or it is damaged ({error!r})"
    if problem:
        raise cli.UserError(f"{file} cannot be used: {problem}; {INSTEAD}")

    return ByteLevel(ranks, controls, pattern_of(content), content, config, str(file))


def refuse_sentencepiece(file: Path) -> None:
    """UserError for a tokenizer.json that describes a SentencePiece model, because here that
    model's own file is read. Some directories lack it, because transformers does not need it."""
    model_file = file.parent / "tokenizer.model"
    if model_file.is_file():
        raise cli.UserError(f"{file} describes a SentencePiece model; give {model_file}")
    raise cli.UserError(
        f"{file.parent} holds no tokenizer.model, and its tokenizer.json describes a SentencePiece "
        f"model: copy tokenizer.model from the base that it was made from")


def read_vocabulary(vocabulary: dict[str, int], controls: dict[str, int]) -> dict[bytes, int]:
    """The ranks in a tokenizer.json: its vocabulary without the control tokens.

    ValueError if a token has no id of its own, or one that transformers would replace."""
    ranks = {unspelled(text): i for text, i in vocabulary.items() if text not in controls}
    if len({*ranks.values(), *controls.values()}) < len(ranks) + len(controls):
        raise ValueError("two tokens have the same id")
    if any(vocabulary.get(text, i) != i for text, i in controls.items()):
        raise ValueError("a control token has two ids")
    # transformers numbers control tokens that are not in the vocabulary after its size.
    others = [i for text, i in controls.items() if text not in vocabulary]
    if others != list(range(len(vocabulary), len(vocabulary) + len(others))):
        raise ValueError("control tokens are neither in the vocabulary nor numbered after it")
    # Without a token for every byte, some texts could not be encoded.
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("a byte has no token")
    return ranks


def llama3(
    ranks: dict[bytes, int],
    config: dict,
    source: str = "the tokenizer",
) -> ByteLevel:
    """Llama 3's tokenizer from its ranks, because a tiktoken file has nothing else."""
    controls = {text: len(ranks) + i for i, text in enumerate(LLAMA3_CONTROLS)}
    config = {**LLAMA3_CONFIG, **config}
    bos = config["bos_token"]
    if bos not in controls:
        raise cli.UserError(
            f"tokenizer_config.json says bos_token {bos!r}, which is not a control token of Llama "
            f"3; name one that is, or give a tokenizer.json")
    content = {
        "version": "1.0",
        "added_tokens": [tokenizer_json.added_token(i, text) for text, i in controls.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(LLAMA3_PATTERN),
        "post_processor": tokenizer_json.post_processor({bos: controls[bos]}, {}),
        "decoder": BYTE_LETTERS,
        "model": {"type": "BPE"},
    }
    return ByteLevel(ranks, controls, LLAMA3_PATTERN, content, config, source)


def save(vocabulary: ByteLevel, folder: Path, base: Path | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder.

    base: the model directory whose settings are carried along, if the vocabulary is not its own."""
    # Control tokens must be in the vocabulary too, or transformers would renumber them.
    ids = {spelled(token): i for token, i in vocabulary.ranks.items()}
    ids |= vocabulary.controls
    in_order = sorted(ids, key=ids.get)
    model = {
        **vocabulary.content["model"],
        "ignore_merges": True,
        "vocab": {text: ids[text] for text in in_order},
        "merges": merges_of(vocabulary.ranks),
    }
    content = {**vocabulary.content, "model": model}
    config = dict(vocabulary.config)
    if base:
        config |= special_tokens.read_config(base)
        # But BOS and EOS stay, because documents are packed between them.
        for role in ("bos_token", "eos_token"):
            config[role] = vocabulary.config.get(role)
    # Other programs would take a tiktoken file of this name for SentencePiece's.
    (folder / "tokenizer.model").unlink(missing_ok=True)
    tokenizer_json.write(content, config, folder, base)


# ---- tiktoken's file -----------------------------------------------------------------------------


def read_ranks(file: str | Path) -> dict[bytes, int]:
    """Read the tokens of a tiktoken file and their ranks. UserError if it is not one."""
    ranks = {}
    for number, line in enumerate(cli.read_bytes(file).splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise cli.UserError(
                f"{file}, line {number}, is not a token in base64 and its rank: fetch the file "
                f"again, or write it with `tokenizer.py train --base BASE`") from None
    return ranks


def write_ranks(tokens: list[bytes], first: int, file: str | Path) -> None:
    """Write tokens as a tiktoken file, with ranks that count up from `first`."""
    lines = []
    for rank, token in enumerate(tokens, start=first):
        lines.append(base64.b64encode(token) + f" {rank}\n".encode())
    with cli.new_file(file) as temporary:
        temporary.write_bytes(b"".join(lines))
