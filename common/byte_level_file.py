"""The two kinds of files that hold a byte-level vocabulary: tiktoken's, and tokenizer.json.

- tiktoken's has a line for each token, with its bytes in base64 and its rank. It says neither how
  a text is split nor what the control tokens are; those of Llama 3 are below.
- tokenizer.json, which transformers reads, says it all. But it has a list of merges in the place of
  ranks, each a pair of tokens. `merges_of` writes the ranks as such a list.

The format: https://huggingface.co/docs/tokenizers.
"""
import base64
from pathlib import Path

import regex

from common import cli, tokenizer_json
from common.byte_level import ByteLevel

# Llama 3's tiktoken file is known by its number of tokens. How a text is split, and which control
# tokens follow, is from Meta's documentation of Llama 3.1; 3, 3.2 and 3.3 differ in names only.
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

# Where a document of Llama 3 begins and ends, in the words of tokenizer_config.json.
LLAMA3_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
}

# A line of tiktoken's file.
TIKTOKEN = regex.compile(rb"[\w+/]+=* \d+\r?\n")

# Text in which a regular expression must find everything: letters, and what is none.
PROBE = "It's  2,024 e\u0301 — 한국ㅋ😀\x00\t\r\n \n"

# What is a word, and no control token such as <tool_call>.
WORD = regex.compile(r"[\w\s]+")

# The end of every refusal.
INSTEAD = "take a tokenizer.json of Llama 3's family, or SentencePiece's tokenizer.model"

# ---- tokenizer.json ------------------------------------------------------------------------------
# A token is written as text with a letter for each byte, so that it can stand in JSON.


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: its own in Latin-1, if that is visible; or one from U+0100 on.

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


LETTER_OF_BYTE = byte_letters()
BYTE_OF_LETTER = {ord(letter): byte for byte, letter in LETTER_OF_BYTE.items()}


def spelled(token: bytes) -> str:
    """A token as tokenizer.json spells it.

    >>> spelled(" 한".encode())  # 한: "Korean"
    'Ġíķľ'
    """
    return token.decode("latin-1").translate(LETTER_OF_BYTE)


def unspelled(text: str) -> bytes:
    """The inverse of `spelled`. ValueError if the text spells no bytes."""
    return text.translate(BYTE_OF_LETTER).encode("latin-1")


def merges_of(ranks: dict[bytes, int]) -> list[str]:
    """The ranks as a list of merges, best first: how tokenizer.json describes a BPE.

    `join` joins any two neighbours that make a token. So each cut of a token into two tokens is a
    merge, and they come in the order of the token that they make. A list of only the merges that
    were once learned would differ from the ranks, where a token is made in another way.

    >>> merges_of({b"l": 0, b"o": 1, b"w": 2, b"ow": 3, b"lo": 4, b"low": 5})
    ['o w', 'l o', 'l ow', 'lo w']
    """
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = []
        for cut in range(1, len(token)):
            left = token[:cut]
            right = token[cut:]
            if left in ranks and right in ranks:
                cuts.append((ranks[left], ranks[right], left, right))
        for _, _, left, right in sorted(cuts):
            merges.append(f"{spelled(left)} {spelled(right)}")
    return merges


def pre_tokenizer(pattern: str) -> dict:
    """Split a text by a regular expression; spell the bytes of what it matches."""
    split = {"pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    spell = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "type": "Sequence",
        "pretokenizers": [{"type": "Split", **split}, {"type": "ByteLevel", **spell}],
    }


def pattern_of(content: dict) -> str | None:
    """The regular expression in a tokenizer.json; None if a text is split in another way."""
    found = content.get("pre_tokenizer") or {}
    try:
        split, spell = found["pretokenizers"]
        pattern = split["pattern"]["Regex"]
    except (KeyError, TypeError, ValueError):
        return None
    spell["trim_offsets"] = True  # these are of places in a text, and change no token
    if found != pre_tokenizer(pattern):
        return None
    return pattern


def unsupported(content: dict) -> str | None:
    """What `ByteLevel` would compute wrongly, None if nothing."""
    pattern = pattern_of(content)
    if content["model"]["type"] != "BPE" or pattern is None:
        return "it is no BPE over the bytes of what one regular expression matches"
    if content.get("normalizer"):
        return "it has a normalizer"
    if "".join(regex.findall(pattern, PROBE)) != PROBE:
        return "its regular expression loses some of a text"
    # Words of add_tokens are cut out of a text before anything is joined.
    for token in content["added_tokens"]:
        if not token["special"] and WORD.fullmatch(token["content"]):
            return f"add_tokens has put words beside its BPE, {token['content']!r} among them"
    if not content["model"].get("ignore_merges"):
        return "ignore_merges is not set, so chunks that are tokens would not be looked up"
    return None


def are_ranks(merges: list, ranks: dict[bytes, int]) -> bool:
    """Do these merges say what the ranks say?"""
    as_text = []
    for merge in merges:
        # Newer files have a list of two, in the place of two with a space between them.
        if isinstance(merge, list):
            merge = " ".join(merge)
        as_text.append(merge)
    return as_text == merges_of(ranks)


def puts_bos(content: dict, bos: str | None) -> bool:
    """Does transformers put BOS before a text?"""
    found = content.get("post_processor") or {}
    for step in found.get("processors", [found]):
        if {"SpecialToken": {"id": bos, "type_id": 0}} in step.get("single", []):
            return True
    return False


# ---- Files ---------------------------------------------------------------------------------------


def vocabulary_file(path: str | Path) -> Path | None:
    """The file that a path stands for, if the vocabulary is byte-level: a tokenizer.json, a file of
    tiktoken, or the one in a model directory. None if it is SentencePiece's, or none."""
    path = Path(path)
    if path.is_dir():
        model_file = path / "tokenizer.model"
        # A tokenizer.json beside SentencePiece's file says the same in other words.
        if model_file.is_file() and not is_tiktoken(model_file):
            return None
        if (path / "tokenizer.json").is_file():
            return path / "tokenizer.json"
        path = model_file
    if path.is_file() and (path.suffix == ".json" or is_tiktoken(path)):
        return path
    return None


def is_tiktoken(file: Path) -> bool:
    """Is it a file of ranks, by its first line?"""
    with open(file, "rb") as opened:
        return bool(TIKTOKEN.match(opened.read(1000)))


def read(file: Path) -> ByteLevel:
    """Read what `vocabulary_file` found, and the tokenizer_config.json beside it.

    UserError if the file is damaged, or says what would be computed wrongly here."""
    config = {}
    if (file.parent / "tokenizer_config.json").is_file():
        config = cli.read_json(file.parent / "tokenizer_config.json")
    # The text of a token; in older files in a dictionary, with how it is found in a text.
    for name in ("bos_token", "eos_token"):
        if isinstance(config.get(name), dict):
            config[name] = config[name]["content"]

    if file.suffix != ".json":
        ranks = read_ranks(file)
        if len(ranks) != LLAMA3_RANKS:
            raise cli.UserError(
                f"{file} has {len(ranks)} tokens, not Llama 3's {LLAMA3_RANKS}; how its text is "
                f"split, and its control tokens, stand in a tokenizer.json: give that")
        return llama3(ranks, config)

    content = cli.read_json(file)
    try:
        problem = unsupported(content)
        if not problem:
            controls = {token["content"]: token["id"] for token in content["added_tokens"]}
            ranks = read_vocabulary(content["model"]["vocab"], controls)
            # GPT-2's and SmolLM's merges are those that were learned, one for each token.
            if not are_ranks(content["model"]["merges"], ranks):
                problem = "its merges are not the ranks of its tokens, as Llama 3's are"
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        problem = f"it is no tokenizer.json of transformers, or a damaged one ({error!r})"
    if problem:
        raise cli.UserError(f"{file} cannot be used: {problem}; {INSTEAD}")

    adds_bos = puts_bos(content, config.get("bos_token"))
    return ByteLevel(ranks, controls, pattern_of(content), content, config, adds_bos)


def read_vocabulary(vocabulary: dict[str, int], controls: dict[str, int]) -> dict[bytes, int]:
    """The ranks in a tokenizer.json: its vocabulary, less the control tokens that are in it."""
    ranks = {}
    for text, i in vocabulary.items():
        if text not in controls:
            ranks[unspelled(text)] = i
    return ranks


def llama3(ranks: dict[bytes, int], config: dict) -> ByteLevel:
    """Llama 3's tokenizer, of which a tiktoken file has only the ranks."""
    controls = {text: len(ranks) + i for i, text in enumerate(LLAMA3_CONTROLS)}
    config = {**LLAMA3_CONFIG, **config}
    bos = config["bos_token"]
    content = {
        "version": "1.0",
        "added_tokens": [tokenizer_json.added_token(i, text) for text, i in controls.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(LLAMA3_PATTERN),
        "post_processor": tokenizer_json.post_processor(bos, controls[bos]),
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE"},
    }
    return ByteLevel(ranks, controls, LLAMA3_PATTERN, content, config)


def save(vocabulary: ByteLevel, folder: Path, chat_template: str = "") -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder."""
    # A control token must be in the vocabulary, too, or transformers would give it another id.
    ids = {}
    for i, entry in enumerate(vocabulary.entries):
        if isinstance(entry, bytes):
            ids[spelled(entry)] = i
        elif entry is not None:
            ids[entry] = i
    model = {
        **vocabulary.content["model"],
        "ignore_merges": True,
        "vocab": ids,
        "merges": merges_of(vocabulary.ranks),
    }
    cli.write_json(folder / "tokenizer.json", {**vocabulary.content, "model": model})

    config = dict(vocabulary.config)
    if chat_template:
        config["chat_template"] = chat_template
    cli.write_json(folder / "tokenizer_config.json", config)


# ---- tiktoken's file -----------------------------------------------------------------------------


def read_ranks(file: str | Path) -> dict[bytes, int]:
    """The tokens of a tiktoken file and their ranks. UserError if it is none."""
    try:
        lines = Path(file).read_bytes().splitlines()
    except OSError as error:
        raise cli.UserError(f"cannot read {file}: {error.strerror}") from None
    ranks = {}
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise cli.UserError(
                f"{file}, line {number}, is not a token in base64 and its rank: "
                f"fetch or write the file again") from None
    return ranks


def write_ranks(tokens: list[bytes], first: int, file: str | Path) -> None:
    """Write tokens as a tiktoken file; `first` is the rank of the first."""
    lines = []
    for rank, token in enumerate(tokens, start=first):
        lines.append(base64.b64encode(token) + f" {rank}\n".encode())
    with cli.new_file(file) as temporary:
        temporary.write_bytes(b"".join(lines))
