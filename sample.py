"""Continue a prompt: the model's next-token distribution, drawn from again and again.

A language model gives a probability to every token that could come next. Temperature divides the
logits before the softmax: 0 takes the likeliest token each time (greedy), 1 is the model's own
distribution, above 1 is wilder. Nucleus sampling (Holtzman et al., 1904.09751) then keeps the
fewest tokens whose probabilities reach `--top_p`: the long tail of a small model is noise, and one
bad token derails what follows. `Llama.generate` does both, with a key-value cache.

    # "The capital of Korea is", greedily; then "Once upon a time"
    python sample.py --model DIR --prompt "대한민국의 수도는" --temperature 0
    python sample.py --model DIR --prompt "옛날 옛적에" --top_p 0.9 --seed 1
"""
from pathlib import Path

import regex
import torch

import model
import tokenizer
from common import cli, special_tokens, tokenizer_json


def load(
    folder: Path,
    device: str,
    dtype: torch.dtype,
) -> tuple[tokenizer.Vocabulary, model.Llama]:
    """The tokenizer and the model of a model directory. UserError where they do not fit."""
    cli.check_model_folder(folder)
    vocabulary = tokenizer.load(folder)
    tokenizer.check_rows(vocabulary, folder / "config.json")
    llama = model.load(folder, device=device, dtype=dtype)
    # More rows than pieces are padding, never to be sampled. Not every model's config.json says so.
    llama.config.unpadded_vocab_size = vocabulary.size
    return vocabulary, llama


def end_tokens(folder: Path, llama: model.Llama, vocabulary: tokenizer.Vocabulary) -> list[int]:
    """The tokens at which a text ends: the tokenizer's EOS, and those that the directory names.
    Llama 3's chat models end an answer with another token than a document."""
    generation = cli.read_json_if_any(folder / "generation_config.json")
    more = special_tokens.id_list(generation.get("eos_token_id"))
    return [*special_tokens.id_list(vocabulary.eos), *llama.config.eos_ids(), *more]


def special_ids(vocabulary: tokenizer.Vocabulary, folder: Path) -> dict[str, int]:
    """The special tokens of a model directory: {text: id}."""
    special = dict(vocabulary.controls)
    # Some models have them as pieces (user-defined ones), and files that call them special.
    for i, token in special_tokens.described(folder).items():
        if i < vocabulary.size:
            special[token["content"]] = i
    return special


def split_at(special: dict[str, int], folder: Path, prompt: str) -> list[str]:
    """A prompt as special tokens and the stretches of text between them, which may be empty."""
    patterns = {text: regex.escape(text) for text in special}
    if not patterns:
        return [prompt]
    # Some take the spaces beside them along.
    for token in special_tokens.described(folder).values():
        text = token["content"]
        if text in patterns and token["lstrip"]:
            patterns[text] = r"\s*" + patterns[text]
        if text in patterns and token["rstrip"]:
            patterns[text] += r"\s*"
    # Of two that begin alike, the longer one is meant.
    longest_first = sorted(patterns, key=len, reverse=True)
    any_of_them = "|".join(patterns[text] for text in longest_first)
    return regex.split(f"({any_of_them})", prompt)


def encode_prompt(vocabulary: tokenizer.Vocabulary, folder: Path, prompt: str) -> list[int]:
    """Token ids of a prompt, with BOS in front. A control token in it becomes its id, as with
    transformers and this directory (in packed documents it is text like any other)."""
    # SentencePiece may put a space before a text. Does what follows a control token count as one?
    config = special_tokens.read_config(folder)
    content = cli.read_json_if_any(folder / "tokenizer.json")
    everywhere = tokenizer_json.prefix_everywhere(config, content)

    ids = []
    special = special_ids(vocabulary, folder)
    for i, part in enumerate(split_at(special, folder, prompt)):
        if part.strip() in special:
            ids.append(special[part.strip()])
        elif part and (i == 0 or everywhere):
            ids += vocabulary.encode(part, bos=False)
        elif part:
            ids += vocabulary.encode_inside(part)
    # A prompt that a chat template made may begin with BOS already.
    if ids[:1] != [vocabulary.bos]:
        ids = [*vocabulary.encode("", bos=True), *ids]
    return ids


def main(argv: list[str] | None = None) -> None:
    """Continue the prompt."""
    parser = cli.Parser(description=__doc__, prog="sample.py")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="model directory, with its tokenizer")
    flag("--prompt", required=True,
         help="text to continue; an empty one starts a document; special tokens such as "
              "<|im_end|> are read as such")
    flag("--max_new_tokens", type=int, default=128,
         help="stop after so many tokens (or at the model's last position)")
    flag("--temperature", type=float, default=0.8,
         help="divides the logits; 0 takes the likeliest token")
    flag("--top_p", type=float, default=0.95,
         help="keep the likeliest tokens up to this probability; 1 keeps all")
    flag("--seed", type=int, default=0,
         help="of the random draws; the same seed gives the same text")
    flag("--out", type=Path, help="a file for the text, which is printed as well")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    cli.set_device(args)
    if args.max_new_tokens < 1 or args.temperature < 0 or not 0 < args.top_p <= 1:
        raise cli.UserError("--max_new_tokens starts at 1, --temperature at 0, and --top_p lies "
                            "above 0 and up to 1; not "
                            f"{args.max_new_tokens}, {args.temperature} and {args.top_p}")
    cli.settings(args)

    vocabulary, llama = load(args.model, args.device, getattr(torch, args.dtype))
    prompt = encode_prompt(vocabulary, args.model, args.prompt)
    rows = llama.config.vocab_size
    if max(prompt) >= rows:
        raise cli.UserError(f"--prompt holds the special token {vocabulary.pieces[max(prompt)]}, "
                            f"but the model has {rows} rows and none for it; leave it out")
    limit = llama.config.max_position_embeddings
    if len(prompt) >= limit:
        raise cli.UserError(f"--prompt has {len(prompt)} tokens; the model has {limit} positions, "
                            "and at least one must be left for a new token; shorten it")

    generator = torch.Generator(args.device).manual_seed(args.seed)
    tokens = llama.generate(
        torch.tensor([prompt], device=args.device),         # (1, T)
        min(args.max_new_tokens, limit - len(prompt)),
        args.temperature,
        args.top_p,
        generator,
        eos=end_tokens(args.model, llama, vocabulary),
    )
    text = vocabulary.decode(tokens[0].tolist())
    if args.out:
        with cli.new_file(args.out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main)
