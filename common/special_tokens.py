"""Special tokens: those that a model directory has besides the pieces of its tokenizer.model.

A chat model has tokens that no text is encoded as, such as <|im_end|> at the end of an answer.
Their ids follow that of the last piece, and they have rows in the embedding. Which of three files
describes these added tokens depends on the version of transformers that wrote the directory:

    added_tokens.json       {"<|im_end|>": 32000}
    tokenizer_config.json   "added_tokens_decoder": {"32000": {"content": "<|im_end|>", …}}
    tokenizer.json          "added_tokens": [{"id": 32000, "content": "<|im_end|>", …}]

tokenizer_config.json and special_tokens_map.json say which token is BOS, EOS or padding;
config.json and generation_config.json say the same by id. When a vocabulary grows, all of these
must be updated. Otherwise an EOS id may become that of a Korean word, and a text ends at that word
or never.
"""
from pathlib import Path

import regex

from common import cli

# The roles of tokens in tokenizer_config.json and special_tokens_map.json.
ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Lists of other special tokens, without a role.
MORE = ("additional_special_tokens", "extra_special_tokens")

# Roles by id, in config.json and generation_config.json.
ROLE_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Lists of ids in the same files, whose names do not end in token_id.
ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")

# What a special token looks like: <s>, <|eot_id|>, <tool_call> or [INST].
CONTROL = regex.compile(r"[<\[].+[>\]]")

# How transformers looks for a special token in a text, by default.
PLAIN = {
    "special": True,
    "normalized": False,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
}

# ---- Reading -------------------------------------------------------------------------------------


def id_list(ids: int | list[int] | None) -> list[int]:
    """An eos_token_id as a list: there may be none, one, or several."""
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]


def text_of(token: str | dict | None) -> str | None:
    """A token's text. Files have the text alone, or a dict that also says how to find it."""
    if isinstance(token, dict):
        return token["content"]
    return token


def read_config(folder: Path) -> dict:
    """Read tokenizer_config.json, completed by special_tokens_map.json. {} if there is neither."""
    config = cli.read_json_if_any(folder / "tokenizer_config.json")
    named = cli.read_json_if_any(folder / "special_tokens_map.json")
    for role in ROLES:
        if role in named and not config.get(role):
            config[role] = text_of(named[role])
    for name in MORE:
        if isinstance(named.get(name), list) and not config.get(name):
            config[name] = [text_of(token) for token in named[name]]
    return config


def names(config: dict) -> list[str]:
    """The texts of all special tokens in a tokenizer_config.json or special_tokens_map.json."""
    tokens = [config.get(role) for role in ROLES]
    for name in MORE:
        # transformers 5 may have a dictionary here, {role: token}.
        more = config.get(name) or []
        tokens += more.values() if isinstance(more, dict) else more
    return [text_of(token) for token in tokens if token]


def described(folder: Path) -> dict[int, dict]:
    """The tokens that a directory's files describe: {id: its "content", and how to find it in a
    text}. If two files describe the same id, the newer kind of file counts."""
    ids = cli.read_json_if_any(folder / "added_tokens.json")
    config = cli.read_json_if_any(folder / "tokenizer_config.json")
    content = cli.read_json_if_any(folder / "tokenizer.json")
    found = {}
    try:
        for text, i in ids.items():
            found[int(i)] = {"content": text, "special": bool(CONTROL.fullmatch(text))}
        for i, token in (config.get("added_tokens_decoder") or {}).items():
            found[int(i)] = token
        for token in content.get("added_tokens") or []:
            found[int(token["id"])] = token
        found = {i: {**PLAIN, **token, "content": token["content"]} for i, token in found.items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise cli.UserError(
            f"the added tokens of {folder} cannot be read from added_tokens.json, "
            f"tokenizer_config.json and tokenizer.json ({error!r}); fetch these again") from None
    return found


def added_tokens(folder: Path, pieces: list[str]) -> dict[int, dict]:
    """The tokens after the pieces of a directory's tokenizer.model: {id: description}, in the order
    of their ids, which may be beyond the rows of the embedding.

    `pieces`: the texts of those pieces. Every id that has a row and is named in config.json gets a
    token, even if no file gives its text."""
    first = len(pieces)
    found = {i: token for i, token in described(folder).items() if i >= first}

    # A token without an id in any file: transformers appends it.
    known = {*pieces, *(token["content"] for token in found.values())}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        for text in names(cli.read_json_if_any(folder / file)):
            if text not in known:
                found[max([first - 1, *found]) + 1] = {"content": text, **PLAIN}
                known.add(text)

    # An id without a text in any file, because those files are missing. A model that learned to end
    # its answers with it must still do so. Ids have no gaps, so the ids before it become tokens
    # too.
    rows = rows_of(folder)
    with_row = [i for i in [*found, *ids_by_role(folder)] if i < rows]
    last = max(with_row, default=first - 1)
    for i in range(first, last + 1):
        found.setdefault(i, {"content": f"<|unnamed_{i}|>", **PLAIN})
    return dict(sorted(found.items()))


def ids_by_role(folder: Path) -> list[int]:
    """The BOS, EOS and pad ids that config.json and generation_config.json name."""
    found = []
    for file in ("config.json", "generation_config.json"):
        settings = cli.read_json_if_any(folder / file)
        for name in ROLE_IDS:
            ids = id_list(settings.get(name))
            if not all(isinstance(i, int) for i in ids):
                raise cli.UserError(f"{folder / file}: {name} is {settings[name]!r}; it must be a "
                                    "token's id, or a list of ids")
            found += ids
    return found


def word_among(tokens: dict[int, dict]) -> str | None:
    """A word among added tokens: not a special token of the model, but text that was added with
    add_tokens. transformers cuts such words out of a text before it joins pieces."""
    for token in tokens.values():
        if not token["special"] and not CONTROL.fullmatch(token["content"]):
            return token["content"]
    return None


def other_name(folder: Path, pieces: list[str]) -> tuple[int, str] | None:
    """The id of a piece to which a directory's files give another text, and that text; None if
    there is none. An example is an unused control piece that a chat model has put to use."""
    for i, token in described(folder).items():
        if i < len(pieces) and token["content"].replace(" ", "▁") != pieces[i]:
            return i, token["content"]
    return None


def rows_of(folder: Path) -> float:
    """The number of rows of a directory's embedding; infinity if it only holds a tokenizer."""
    return cli.read_json_if_any(folder / "config.json").get("vocab_size", float("inf"))


# ---- Amending ------------------------------------------------------------------------------------


def new_value(value, new_ids: dict[int, int]):
    """Translate an id, or a list of ids or of lists, to the new vocabulary. An id without a token
    there becomes None; in a list it is left out.

    >>> new_value([2, 32000, 32001], {2: 2, 32000: 36000})
    [2, 36000]
    >>> new_value([[5, 32000], [5, 32001]], {5: 5, 32000: 36000})     # bad_words_ids: sequences
    [[5, 36000]]
    """
    if not isinstance(value, list):
        return new_ids.get(value)
    new = []
    for element in value:
        other = new_value(element, new_ids)
        # A sequence without one of its ids is another sequence, so drop it.
        is_whole = not isinstance(element, list) or len(other) == len(element)
        if other is not None and is_whole:
            new.append(other)
    return new


def amend_ids(settings: dict, new_ids: dict[int, int], vocabulary, file: str) -> dict:
    """Translate all ids in config.json or generation_config.json (`file`) to the grown vocabulary.
    Prints what has changed.

    `new_ids`: {id in the base: id in `vocabulary`}; other ids have no token."""
    amended = dict(settings)
    for name, value in settings.items():
        if value is None or not (name.endswith("token_id") or name in ID_LISTS):
            continue
        new = new_value(value, new_ids)
        # Padding is neither learned nor attended to, so a piece of text cannot be the pad token.
        if name == "pad_token_id" and new is not None and vocabulary.bytes_of(new):
            new = None
        if isinstance(value, list) and len(new) < len(value):
            print(f"{file}: {name} has lost {len(value) - len(new)} ids that have no token")
        elif value != new:
            print(f"{file}: {name} is now {new} (it was {value})")
        if new == []:
            new = None
        amended[name] = new
    # If there is no id, transformers takes Llama 2's.
    if amended.get("bos_token_id") is None:
        amended["bos_token_id"] = vocabulary.bos
    return with_eos(amended, vocabulary.eos, file)


def with_eos(settings: dict, eos: int, file: str) -> dict:
    """Add `eos`, with which every packed document ends, to the EOS ids, so that generation stops
    where the model has learned to end a text."""
    ids = id_list(settings.get("eos_token_id"))
    if eos in ids:
        return settings
    if ids:
        print(f"{file}: eos_token_id is now {[*ids, eos]}, because documents are packed with {eos}")
    return {**settings, "eos_token_id": [*ids, eos] if ids else eos}
