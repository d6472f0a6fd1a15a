"""Continue a prompt by sampling one token after the other from the model.

A language model gives every token a probability of coming next. Two settings change this
distribution before a token is drawn from it:

- The temperature divides the logits before the softmax. 0 always takes the most likely token
  (greedy decoding), 1 is the model's own distribution, and above 1 the text becomes more random.
- Nucleus sampling (Holtzman et al., 1904.09751) keeps only the fewest tokens whose probabilities
  add up to `--top_p`. The many unlikely tokens of a small model are mostly noise, and one bad token
  derails what follows.

`Llama.generate` in model.py does both, with a key-value cache.

    # "The capital of South Korea is", greedily
    python sample.py --model DIR --prompt "대한민국의 수도는" --temperature 0
    # "Once upon a time"
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
    """Load the tokenizer and the model of a directory. UserError if they do not fit together."""
    cli.check_model_folder(folder)
    vocabulary = tokenizer.load(folder)
    tokenizer.check_rows(vocabulary, folder / "config.json")
    llama = model.load(folder, device=device, dtype=dtype)
    # Rows beyond the tokenizer's pieces are padding and must never be sampled. Not every
    # config.json says how many there are.
    llama.config.unpadded_vocab_size = vocabulary.size
    return vocabulary, llama


def end_tokens(folder: Path, llama: model.Llama, vocabulary: tokenizer.Vocabulary) -> list[int]:
    """The tokens that end a text: the tokenizer's EOS, and those that the directory names. In Llama
    3's chat models an answer ends with another token than a document."""
    generation = cli.read_json_if_any(folder / "generation_config.json")
    more = special_tokens.id_list(generation.get("eos_token_id"))
    return [*special_tokens.id_list(vocabulary.eos), *llama.config.eos_ids(), *more]


def special_ids(vocabulary: tokenizer.Vocabulary, folder: Path) -> dict[str, int]:
    """The special tokens of a model directory: {text: id}."""
    special = dict(vocabulary.controls)
    # In some models they are user-defined pieces, and other files say that they are special.
    for i, token in special_tokens.described(folder).items():
        if i < vocabulary.size:
            special[token["content"]] = i
    return special


def split_at(special: dict[str, int], folder: Path, prompt: str) -> list[str]:
    """Split a prompt into special tokens and the text between them, which may be empty."""
    patterns = {text: regex.escape(text) for text in special}
    if not patterns:
        return [prompt]
    # Some special tokens include the spaces beside them.
    for token in special_tokens.described(folder).values():
        text = token["content"]
        if text in patterns and token["lstrip"]:
            patterns[text] = r"\s*" + patterns[text]
        if text in patterns and token["rstrip"]:
            patterns[text] += r"\s*"
    # If one token is the beginning of another, the longer one is meant.
    longest_first = sorted(patterns, key=len, reverse=True)
    any_of_them = "|".join(patterns[text] for text in longest_first)
    return regex.split(f"({any_of_them})", prompt)


def encode_prompt(vocabulary: tokenizer.Vocabulary, folder: Path, prompt: str) -> list[int]:
    """Token ids of a prompt, with BOS in front. The text of a control token becomes that token, as
    in transformers with this directory. (In packed documents it is text like any other.)"""
    # SentencePiece may put a space before a text. The directory's files say whether it also does so
    # after a control token.
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
    """Continue the prompt, and print the whole text."""
    parser = cli.Parser(description=__doc__, prog="sample.py")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="model directory, with its tokenizer")
    flag("--prompt", required=True,
         help="text to continue; an empty text starts a new document; special tokens such as "
              "<|im_end|> are recognised")
    flag("--max_new_tokens", type=int, default=128,
         help="stop after this many new tokens, or at the model's last position")
    flag("--temperature", type=float, default=0.8,
         help="divide the logits by this; 0: always take the most likely token")
    flag("--top_p", type=float, default=0.95,
         help="sample only from the most likely tokens whose probabilities add up to this; 1: from "
              "all")
    flag("--seed", type=int, default=0,
         help="seed of the random draws; the same seed gives the same text")
    flag("--out", type=Path, help="file to write the text to; it is printed as well")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    cli.set_device(args)
    if args.max_new_tokens < 1 or args.temperature < 0 or not 0 < args.top_p <= 1:
        raise cli.UserError("--max_new_tokens must be at least 1, --temperature at least 0, and "
                            "--top_p above 0 and at most 1; they are "
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
        raise cli.UserError(f"--prompt has {len(prompt)} tokens, but the model has {limit} "
                            "positions, and at least one must be left for a new token; shorten it")

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
