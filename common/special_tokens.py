"""Special tokens: what a model directory names beside the pieces of its tokenizer.model.

A chat model has tokens that no text becomes, such as <|im_end|> at the end of an answer. Their ids
follow the last piece's, and they have rows in the embedding. Which of three files describes these
added tokens depends on the version of transformers that wrote the directory:

    added_tokens.json       {"<|im_end|>": 32000}
    tokenizer_config.json   "added_tokens_decoder": {"32000": {"content": "<|im_end|>", …}}
    tokenizer.json          "added_tokens": [{"id": 32000, "content": "<|im_end|>", …}]

tokenizer_config.json and special_tokens_map.json say which of them is the BOS, the EOS, the pad
token; config.json and generation_config.json say the same by id. When a vocabulary grows, all of
these must be amended: an EOS id that is left as it was becomes that of a Korean word, and a text
then ends at that word, or never.
"""
from pathlib import Path

import regex

from common import cli

# The names under which tokenizer_config.json and special_tokens_map.json say what a token is for.
ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Lists of further special tokens, without a role.
MORE = ("additional_special_tokens", "extra_special_tokens")

# The same by id, in config.json and generation_config.json.
ROLE_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Lists of ids there, under names that do not end in token_id.
ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")

# What a special token looks like: <s>, <|eot_id|>, <tool_call> or [INST].
CONTROL = regex.compile(r"[<\[].+[>\]]")

# How transformers looks for a special token in a text.
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
    """A token's text: files name it alone, or with how it is found in a text."""
    if isinstance(token, dict):
        return token["content"]
    return token


def read_config(folder: Path) -> dict:
    """tokenizer_config.json, with the names that only special_tokens_map.json has. {} if there is
    neither."""
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
    """The texts of all special tokens that a tokenizer_config.json or special_tokens_map.json
    names."""
    tokens = [config.get(role) for role in ROLES]
    for name in MORE:
        # transformers 5 may have a dictionary here, {role: token}.
        more = config.get(name) or []
        tokens += more.values() if isinstance(more, dict) else more
    return [text_of(token) for token in tokens if token]


def described(folder: Path) -> dict[int, dict]:
    """The tokens that a directory's files describe: {id: its "content", and how it is found in a
    text}. Where two files describe the same id, the newer kind counts."""
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
    """The tokens behind the pieces of a directory's tokenizer.model: {id: description}, in the
    order of their ids, which may lie beyond the rows of the embedding.

    `pieces`: the texts of those pieces. Every id that has a row and is named in config.json gets a
    token, even if no file says what it is called."""
    first = len(pieces)
    found = {i: token for i, token in described(folder).items() if i >= first}

    # A name that no file gives an id: transformers appends it.
    known = {*pieces, *(token["content"] for token in found.values())}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        for text in names(cli.read_json_if_any(folder / file)):
            if text not in known:
                found[max([first - 1, *found]) + 1] = {"content": text, **PLAIN}
                known.add(text)

    # An id that no file gives a name, in a directory where those files are missing. A model that
    # was taught to end its answers in it must still do so. Ids have no gaps, so those before it
    # become tokens too.
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
    """A word among added tokens: not one of the model's special tokens, but text that somebody put
    beside the pieces with add_tokens. transformers cuts it out of a text before it joins pieces."""
    for token in tokens.values():
        if not token["special"] and not CONTROL.fullmatch(token["content"]):
            return token["content"]
    return None


def other_name(folder: Path, pieces: list[str]) -> tuple[int, str] | None:
    """An id below that of the last piece, and the name that a directory's files give it, if that is
    not the piece's: a control piece that a chat model took into use, for example."""
    for i, token in described(folder).items():
        if i < len(pieces) and token["content"].replace(" ", "▁") != pieces[i]:
            return i, token["content"]
    return None


def rows_of(folder: Path) -> float:
    """How many rows a directory's embedding has; infinity, if it holds a tokenizer alone."""
    return cli.read_json_if_any(folder / "config.json").get("vocab_size", float("inf"))


# ---- Amending ------------------------------------------------------------------------------------


def new_value(value, new_ids: dict[int, int]):
    """An id, or a list of ids or of lists, in the new vocabulary. An id that has no token there
    becomes None; in a list it is left out.

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
        # A sequence that lost an id is another sequence.
        is_whole = not isinstance(element, list) or len(other) == len(element)
        if other is not None and is_whole:
            new.append(other)
    return new


def amend_ids(settings: dict, new_ids: dict[int, int], vocabulary, file: str) -> dict:
    """config.json or generation_config.json (`file`), with every id that it names translated to the
    grown vocabulary. Prints what has changed.

    `new_ids`: {id in the base: id in `vocabulary`}; an id that is not there has no token."""
    amended = dict(settings)
    for name, value in settings.items():
        if value is None or not (name.endswith("token_id") or name in ID_LISTS):
            continue
        new = new_value(value, new_ids)
        # Padding is neither learned nor attended to, so a piece of text cannot serve as such.
        if name == "pad_token_id" and new is not None and vocabulary.bytes_of(new):
            new = None
        if isinstance(value, list) and len(new) < len(value):
            print(f"{file}: {name} has lost {len(value) - len(new)} ids that have no token")
        elif value != new:
            print(f"{file}: {name} is now {new} (it was {value})")
        if new == []:
            new = None
        amended[name] = new
    # Where no id is given, transformers takes Llama 2's.
    if amended.get("bos_token_id") is None:
        amended["bos_token_id"] = vocabulary.bos
    return with_eos(amended, vocabulary.eos, file)


def with_eos(settings: dict, eos: int, file: str) -> dict:
    """The settings with `eos`, in which every packed document ends, among the EOS ids: a model's
    text must end where the model has learned to end it."""
    ids = id_list(settings.get("eos_token_id"))
    if eos in ids:
        return settings
    if ids:
        print(f"{file}: eos_token_id is now {[*ids, eos]}, because documents are packed with {eos}")
    return {**settings, "eos_token_id": [*ids, eos] if ids else eos}
