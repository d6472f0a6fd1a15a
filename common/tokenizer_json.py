"""tokenizer.json and tokenizer_config.json: a SentencePiece model for transformers to read.

transformers can read tokenizer.model itself, but ranks merges by the ids of the pieces, not by
their scores, and then segments runs of spaces differently (with Mistral's original file in 26 of
111 court rulings). tokenizer.json leaves nothing open. A text is normalised, split
(pre_tokenizer), merged (model) and given its BOS (post_processor); the decoder goes the way back.

One difference remains, as with every Llama: a literal "</s>" in a text is EOS to transformers and
four characters to SentencePiece.

The format: https://huggingface.co/docs/tokenizers.
"""
from pathlib import Path

import regex
import sentencepiece

from common import cli
from common.sentencepiece_file import CONTROL, UNKNOWN, USER_DEFINED, Model, Piece


def build(model: Model, merges: list[tuple[str, str]]) -> dict:
    """The content of tokenizer.json; `merges` are pairs, best first (tokenizer.ranked_merges)."""
    prefix = puts_prefix(model.sp)
    own = [piece.text for piece in model.pieces if piece.type == USER_DEFINED]
    return {
        "version": "1.0",
        "added_tokens": added_tokens(model.pieces),
        "normalizer": normalizer(prefix),
        "pre_tokenizer": pre_tokenizer(own),
        "post_processor": post_processor(model.sp.id_to_piece(model.bos), model.bos),
        "decoder": decoder(prefix),
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "fuse_unk": True,
            # A user-defined piece is found whole in the vocabulary: no merges lead to it.
            "ignore_merges": bool(own),
            "unk_token": model.sp.id_to_piece(model.sp.unk_id()),
            "merges": merges,
            "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
        },
    }


def config(sp: sentencepiece.SentencePieceProcessor) -> dict:
    """The content of tokenizer_config.json."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": sp.id_to_piece(sp.bos_id()),
        "eos_token": sp.id_to_piece(sp.eos_id()),
        "unk_token": sp.id_to_piece(sp.unk_id()),
    }


def write(content: dict, config: dict, folder: Path, chat_template: str) -> None:
    """Write tokenizer.json and tokenizer_config.json into a folder."""
    # This class takes tokenizer.json as it is, in every version of transformers; LlamaTokenizer of
    # transformers 5 would put no ▁ before a text that begins with a space.
    config = {**config, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat_template:
        config["chat_template"] = chat_template
    cli.write_json(folder / "tokenizer.json", content)
    cli.write_json(folder / "tokenizer_config.json", config)


def puts_prefix(sp: sentencepiece.SentencePieceProcessor) -> bool:
    """Does the model put ▁ before every text (add_dummy_prefix)?"""
    pieces = sp.encode("a", out_type=str)
    return pieces[0].startswith("▁")


def added_tokens(pieces: list[Piece]) -> list[dict]:
    """<unk> and the control pieces, which no merge may make."""
    tokens = []
    for i, piece in enumerate(pieces):
        if piece.type in (UNKNOWN, CONTROL):
            tokens.append(added_token(i, piece.text))
    return tokens


def added_token(i: int, text: str) -> dict:
    """A control token."""
    return {
        "id": i,
        "content": text,
        "special": True,
        "normalized": False,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
    }


def normalizer(prefix: bool) -> dict:
    """▁ before the text, if the model puts one there, and for every space."""
    steps = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": "▁"})
    return {"type": "Sequence", "normalizers": steps}


def pre_tokenizer(own: list[str]) -> dict | None:
    """Cut user-defined pieces out of the text, the longest first, before anything is merged.

    As added tokens they would get a ▁ after them."""
    if not own:
        return None
    longest_first = sorted(own, key=len, reverse=True)
    return split("|".join(regex.escape(text) for text in longest_first))


def split(pattern: str) -> dict:
    """The step that splits a text into what a regular expression matches and what lies between."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def post_processor(bos: str, bos_id: int) -> dict:
    """BOS before a text, and before each of a pair."""
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, start, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def puts_bos(content: dict) -> bool:
    """Does transformers put BOS before a text?"""
    found = content.get("post_processor") or {}
    for step in found.get("processors", [found]):
        if "single" in step and "SpecialToken" in step["single"][0]:
            return True
    return False


def decoder(prefix: bool) -> dict:
    """▁ to spaces, bytes to characters, and the pieces to one string; less the prefix's space."""
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
