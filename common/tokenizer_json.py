"""Write a SentencePiece model as tokenizer.json and tokenizer_config.json, for transformers.

transformers can read tokenizer.model itself, but then ranks merges by the ids of the pieces and not
by their scores, so it segments runs of spaces differently (with Mistral's original file in 26 of
111 court rulings). tokenizer.json specifies everything: a text is normalised, split
(pre_tokenizer), merged (model) and given its BOS (post_processor); the decoder does the reverse.

Two differences remain. As with every Llama, a literal "</s>" in a text is EOS to transformers and
four characters to SentencePiece. And of pieces with equal scores SentencePiece joins the leftmost,
which a list of merges cannot express (common/tied_scores.py).

The format: https://huggingface.co/docs/tokenizers.
"""
from pathlib import Path

import regex

from common import cli, special_tokens
from common.sentencepiece_file import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Model


def save(model: Model, merges: list[tuple[str, str]], folder: Path, base: Path | None) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder.

    merges: pairs, best first (tokenizer.ranked_merges). base: the model directory whose settings
    are carried along, if there is one."""
    config = {}
    content = {}
    described = {}
    if base:
        config = special_tokens.read_config(base)
        content = cli.read_json_if_any(base / "tokenizer.json")
        for token in special_tokens.described(base).values():
            described[token["content"]] = token

    # Which tokens are put around a text? A tokenizer.json says it, or settings with these defaults.
    has_bos = config.get("add_bos_token", True)
    has_eos = config.get("add_eos_token", False)
    if content:
        has_bos = puts_bos(content)
        has_eos = puts_eos(content)
    bos = {model.sp.id_to_piece(model.bos): model.bos}
    eos = {model.sp.id_to_piece(model.eos): model.eos}

    tokens = added_tokens(model, described)
    new = {
        "version": "1.0",
        "added_tokens": tokens,
        **text_steps(model, prefix_everywhere(config, content)),
        "post_processor": post_processor(bos if has_bos else {}, eos if has_eos else {}),
        "model": bpe(model, merges),
    }
    amended = settings(model, config, tokens)
    write(new, amended, folder, base)

    # A pad token that was left out must not come back through this file, which init.py copies.
    roles = cli.read_json_if_any(folder / "special_tokens_map.json")
    pad = special_tokens.text_of(roles.get("pad_token"))
    if pad and pad == config.get("pad_token") and not amended["pad_token"]:
        del roles["pad_token"]
        cli.write_json(folder / "special_tokens_map.json", roles)


def bpe(model: Model, merges: list[tuple[str, str]]) -> dict:
    """The "model" of tokenizer.json: pieces and merges."""
    own = [piece for piece in model.pieces if piece.type == USER_DEFINED]
    return {
        "type": "BPE",
        "byte_fallback": True,
        "fuse_unk": True,
        # User-defined pieces are looked up whole, because no merges lead to them.
        "ignore_merges": bool(own),
        "unk_token": model.sp.id_to_piece(model.sp.unk_id()),
        # As text with a space, which every version of `tokenizers` reads; pairs need 0.20.
        "merges": [f"{left} {right}" for left, right in merges],
        "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
    }


def settings(model: Model, before: dict, tokens: list[dict]) -> dict:
    """The content of tokenizer_config.json: the base's, with what the vocabulary changes."""
    # LlamaTokenizer's defaults, because the class that `write` names has others.
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        **before,
    }
    own = {"bos_token": model.bos, "eos_token": model.eos, "unk_token": model.sp.unk_id()}
    for role, i in own.items():
        config[role] = before.get(role) or model.sp.id_to_piece(i)

    # Padding is neither learned nor attended to, so a piece of text cannot be the pad token.
    pad = special_tokens.text_of(before.get("pad_token"))
    if any(piece.text == pad and piece.type == NORMAL for piece in model.pieces):
        print(f"tokenizer_config.json: pad_token is left out, because {pad!r} is a piece of text")
        config["pad_token"] = None

    # llama.cpp reads tokenizer.model, and takes added tokens from here.
    if "added_tokens_decoder" in before or model.added:
        decoder = {}
        for token in tokens:
            decoder[str(token["id"])] = {name: token[name] for name in token if name != "id"}
        config["added_tokens_decoder"] = decoder

    # llama.cpp uses this setting. It is omitted if the default is right.
    if not model.adds_space or "add_prefix_space" in before:
        config["add_prefix_space"] = model.adds_space
    return config


def write(content: dict, config: dict, folder: Path, base: Path | None) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder, and added_tokens.json if `base`
    has one."""
    # PreTrainedTokenizerFast uses tokenizer.json as it is, in every version of transformers;
    # LlamaTokenizer of transformers 5 would put no ▁ before a text that begins with a space.
    # Without model_input_names, transformers 4 adds token_type_ids, which Llama's generate()
    # refuses.
    config = {
        "model_input_names": ["input_ids", "attention_mask"],
        **config,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }

    # transformers 5 writes a list here, but transformers 4 expects a dictionary and fails. Both
    # read a list under the older name.
    if isinstance(config.get("extra_special_tokens"), list):
        more = config.pop("extra_special_tokens")
        config["additional_special_tokens"] = config.get("additional_special_tokens") or more

    cli.write_json(folder / "tokenizer.json", content)
    cli.write_json(folder / "tokenizer_config.json", config)

    # llama.cpp looks for added tokens in this file too, and old versions of transformers only
    # there.
    if base and (base / "added_tokens.json").exists():
        ids = {token["content"]: token["id"] for token in content["added_tokens"]}
        before = cli.read_json(base / "added_tokens.json")
        amended = {text: ids.get(text, i) for text, i in before.items()}
        cli.write_json(folder / "added_tokens.json", amended)


# ---- How a text becomes pieces, and back ---------------------------------------------------------


def prefix_everywhere(config: dict, content: dict) -> bool:
    """Does transformers also put ▁ before the text after each special token, or only before the
    whole text? `config` and `content`: tokenizer_config.json and tokenizer.json of the base."""
    # LlamaTokenizer does so everywhere if "legacy" is set. (If tokenizer.json says otherwise,
    # transformers 5 follows this setting, and transformers 4 the file.)
    if config.get("legacy") is not None:
        return config["legacy"]
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    return not any(step.get("prepend_scheme") == "first" for step in steps)


def text_steps(model: Model, everywhere: bool) -> dict:
    """The steps before pieces are joined, and those of decoding.

    everywhere: put ▁ before each part of the text between special tokens, not only before the
    first."""
    normalizers = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    steps = []
    if model.adds_space and everywhere:
        normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
    elif model.adds_space:
        # Metaspace puts nothing before a text that begins with its own symbol, but SentencePiece
        # does. So the symbol is first a space, which the text no longer has, and then becomes ▁.
        steps.append(metaspace(" ", "first"))
        steps.append(metaspace("▁", "never"))

    # User-defined pieces are cut out, longest first, before anything is merged. If they were added
    # tokens, a ▁ would follow them.
    own = [piece.text for piece in model.pieces if piece.type == USER_DEFINED]
    if own:
        longest_first = sorted(own, key=len, reverse=True)
        steps.append(split("|".join(regex.escape(text) for text in longest_first)))
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps else None,
        "decoder": decoder(model.adds_space),
    }


def metaspace(symbol: str, scheme: str) -> dict:
    """The step that replaces spaces by `symbol`, and puts it before a text if scheme is "first",
    not if it is "never"."""
    return {
        "type": "Metaspace",
        "replacement": symbol,
        "prepend_scheme": scheme,
        "split": False,
    }


def added_tokens(model: Model, described: dict[str, dict]) -> list[dict]:
    """The tokens that no merge may make: <unk>, control pieces, tokens after the pieces, and all
    others that the base describes as added."""
    tokens = []
    for i, piece in enumerate(model.pieces):
        if piece.type in (UNKNOWN, CONTROL) or piece.text in described:
            before = described.get(piece.text, {})
            tokens.append({**added_token(i, piece.text), **before, "id": i})
    return tokens


def added_token(i: int, text: str) -> dict:
    """The entry of a control token."""
    return {"id": i, "content": text, **special_tokens.PLAIN}


def split(pattern: str) -> dict:
    """The step that splits a text into the matches of a regular expression and what is between."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def post_processor(before: dict[str, int], after: dict[str, int]) -> dict:
    """The step that puts special tokens, {text: id}, before and after a text, or each of a pair."""
    start = [{"SpecialToken": {"id": text, "type_id": 0}} for text in before]
    end = [{"SpecialToken": {"id": text, "type_id": 0}} for text in after]
    first = [*start, {"Sequence": {"id": "A", "type_id": 0}}, *end]
    second = [*start, {"Sequence": {"id": "B", "type_id": 0}}, *end]
    tokens = {}
    for text, i in {**before, **after}.items():
        tokens[text] = {"id": text, "ids": [i], "tokens": [text]}
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": tokens,
    }


def puts_bos(content: dict) -> bool:
    """Does this tokenizer.json put BOS before a text?"""
    return "SpecialToken" in single_template(content)[0]


def puts_eos(content: dict) -> bool:
    """Does this tokenizer.json put EOS after a text?"""
    return "SpecialToken" in single_template(content)[-1]


def single_template(content: dict) -> list[dict]:
    """What a single text becomes, in order: special tokens, and the text itself as a "Sequence"."""
    found = content.get("post_processor") or {}
    for step in found.get("processors", [found]):
        if "single" in step:
            return step["single"]
    return [{"Sequence": {"id": "A", "type_id": 0}}]


def decoder(prefix: bool) -> dict:
    """The steps of decoding: ▁ becomes a space, bytes become characters, the pieces one string. The
    space of the prefix is removed."""
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
