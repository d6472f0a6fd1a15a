"""KoBEST, zero-shot: of several answers, which does the model find likeliest?

KoBEST (Kim et al., 2204.04541) asks five kinds of Korean question, each with two or four answers. A model that was only
pretrained cannot be asked; so every answer is put behind its question, and the answer whose tokens are likeliest is the
prediction (Brown et al., 2005.14165, section 2.4):

    log p(answer | context) = Σ_t log p(answer token t | context, answer tokens before t)

A score means something only beside other people's. Prompts, blanks, BOS, truncation and metrics are therefore those of
lm-evaluation-harness 0.4.13 (its kobest tasks, version 1.0), odd ones included.

The time goes into running contexts. An answer's last token is never fed to the model, so all one-token answers have the
same input: the context. And the model is causal, so an input that begins another one is answered by the same run.

    python eval_kobest.py --model DIR --data KOBEST_DIR                            # the test split of all five tasks
    python eval_kobest.py --model DIR --data KOBEST_DIR --split dev --tasks copa hellaswag --out scores.json
    python eval_kobest.py --model DIR --data KOBEST_DIR --answer_only              # control: what the answers give away
"""
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm

import cli
import model
import tokenizer


@dataclass(frozen=True)
class Task:
    """Where a task lies, and how a row becomes a context and choices. Templates name the harness's fields."""
    folder: str
    columns: dict[str, str]         # field: the column of the TSV that holds it
    values: dict[str, dict]         # field: what each spelling in the TSV (in lower case) stands for
    prompt: str
    choices: tuple[str, ...]


FALSE_TRUE = {"false": 0, "true": 1}
NO_YES = ("아니오", "예")
TASKS = {
    # "{paragraph} Question: {question} Answer: " no / yes. The blank at the end is the harness's: see `encode`.
    "boolq": Task("BoolQ", {"paragraph": "Text", "question": "Question", "label": "Answer"}, {"label": FALSE_TRUE},
                  "{paragraph} 질문: {question} 답변: ", NO_YES),
    # cause / effect: "{premise}  because" or "{premise}  so" (two blanks, as in the harness)
    "copa": Task("COPA", {"premise": "sentence", "question": "question", "alternative_1": "1", "alternative_2": "2",
                          "label": "Answer"},
                 {"question": {"원인": " 왜냐하면", "결과": " 그래서"}, "label": {"1": 0, "2": 1}},
                 "{premise} {question}", ("{alternative_1}", "{alternative_2}")),
    # "Sentence: {context}"
    "hellaswag": Task("HellaSwag", {"context": "context", **{f"ending_{i}": f"choice{i}" for i in range(1, 5)},
                                    "label": "label"}, {"label": {str(i): i for i in range(4)}},
                      "문장: {context}", tuple(f"{{ending_{i}}}" for i in range(1, 5))),
    # "Sentence: {sentence} Sentiment:" negative / positive
    "sentineg": Task("SentiNeg", {"sentence": "Text", "label": "Label"}, {"label": {"0": 0, "1": 1}},
                     "문장: {sentence} 긍부정:", ("부정", "긍정")),
    # "Sentence 1: … Sentence 2: … Is {word} used in the same sense in both sentences?" no / yes
    "wic": Task("WiC", {"word": "Target", "context_1": "SENTENCE1", "context_2": "SENTENCE2", "label": "ANSWER"},
                {"label": FALSE_TRUE},
                "문장1: {context_1} 문장2: {context_2} 두 문장에서 {word}가 같은 뜻으로 쓰였나?", NO_YES),
}


@dataclass(frozen=True)
class Example:
    """One row of a TSV. Rows count from 1 below the header, as the ID column of the files does."""
    row: int
    context: str
    choices: list[str]
    label: int


def read(data: Path, task: Task, split: str, limit: int | None = None) -> list[Example]:
    """The first `limit` examples of a split, in the order of its TSV. `data` is the folder that holds v1.0, or v1.0.

    Python's csv with its default quoting gives the same cells as pandas, through which Hugging Face's loader reads:
    twelve rows of BoolQ hold quotes that both strip. UserError names the file and the row.
    """
    file = (data / "v1.0" if (data / "v1.0").is_dir() else data) / task.folder / f"{split}.tsv"
    if not file.is_file():
        others = sorted(path.stem for path in file.parent.glob("*.tsv"))
        raise cli.UserError(f"no file {file}; " + (f"try --split {others[0]}" if others else "--data takes the folder "
                                                   "of KoBEST, which holds v1.0/BoolQ, v1.0/COPA, …"))
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            header, *table = [cells for cells in csv.reader(lines, delimiter="\t") if cells] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise cli.UserError(f"{file} is not a table in UTF-8 with tabs between its columns: {error}") from None
    missing = [column for column in task.columns.values() if column not in header]
    if missing or not table:
        raise cli.UserError(f"{file} has no column {missing[0]!r}; its first line names {', '.join(header) or 'none'}"
                            if missing else f"{file} has no rows below its header")
    examples = []
    for row, cells in enumerate(table[:limit], 1):
        cell, fields = dict(zip(header, cells, strict=False)), {}
        for field, column in task.columns.items():
            text, known = cell.get(column, ""), task.values.get(field)   # a short row lacks its last columns
            if not text.strip():
                raise cli.UserError(f"{file}, row {row}: column {column!r} is empty")
            if known and text.strip().lower() not in known:
                raise cli.UserError(f"{file}, row {row}: {column!r} is {text!r}, not one of {', '.join(known)}")
            fields[field] = known[text.strip().lower()] if known else text
        choices = [choice.format(**fields) for choice in task.choices]
        examples.append(Example(row, task.prompt.format(**fields), choices, fields["label"]))
    return examples


def encoder(sp: SentencePieceProcessor, folder: Path) -> Callable[[str], list[int]]:
    """text → tokens, BOS included, as transformers 5 makes them from this model directory.

    SentencePiece puts a blank before every text, and so does the tokenizer.json that `tokenizer.save` writes; but
    transformers' own LlamaTokenizer puts none where there is one already.
    """
    file = folder / "tokenizer_config.json"
    said = cli.read_json(file) if file.exists() else {}
    bos, own = said.get("add_bos_token", True), "LlamaTokenizer" in said.get("tokenizer_class", "LlamaTokenizer")
    return lambda text: tokenizer.encode(sp, text.removeprefix(" ") if own else text, bos=bos)


def encode(tokens: Callable[[str], list[int]], example: Example) -> list[tuple[list[int], list[int]]]:
    """The tokens of (context, continuation), for each choice.

    A continuation is a blank and the choice. Blanks that end the context move to it: tokens of running text begin with
    their blank, "답변:" + " 예" (answer: yes). Both are encoded together, then cut where the context alone would end.
    """
    body = example.context.rstrip()
    context, blanks = tokens(body), example.context[len(body):] + " "
    return [(context, tokens(body + blanks + choice)[len(context):]) for choice in example.choices]


def share(inputs: list[list[int]]) -> list[list[int]]:
    """Group the inputs that one run answers, as indices: in each group a longest input, then those that begin it.

    In lexicographic order an input stands right before those that it begins, so one pass in reverse finds them all.

    >>> share([[5, 6], [5, 6, 7, 8], [5, 9]])
    [[2], [1, 0]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(inputs)), key=inputs.__getitem__, reverse=True):
        if not groups or inputs[groups[-1][0]][:len(inputs[i])] != inputs[i]:
            groups.append([])
        groups[-1].append(i)
    return groups


@torch.inference_mode()
def loglikelihoods(llama: model.Llama, requests: list[tuple[list[int], list[int]]], batch_tokens: int,
                   name: str = "") -> list[float]:
    """log p(continuation | context) of each request, in nats, in the order given.

    What is longer than the model's positions loses tokens on the left, BOS first (choices of one context may so lose
    different numbers). Batches hold up to `batch_tokens` tokens, padding included, longest inputs first: neighbours are
    alike in length, and what does not fit into memory fails at once. Logits are made at the answers' positions alone.
    """
    device, limit = llama.lm_head.weight.device, llama.config.max_position_embeddings
    inputs = [(context + continuation)[-(limit + 1):-1] for context, continuation in requests]
    answers = [continuation for _, continuation in requests]
    groups = sorted(share(inputs), key=lambda group: -len(inputs[group[0]]))
    total = torch.zeros(len(requests), dtype=torch.float64, device=device)
    bar = tqdm(total=len(requests), desc=name, unit="answer", leave=False, disable=None)
    while groups:
        longest = len(inputs[groups[0][0]])
        batch = groups[:max(1, batch_tokens // longest)]
        groups = groups[len(batch):]
        tokens = torch.tensor([inputs[first] + [0] * (longest - len(inputs[first])) for first, *_ in batch])
        picks = [(b, len(inputs[i]) - len(answers[i]) + t, token, i)       # each token is predicted by the place before
                 for b, group in enumerate(batch) for i in group for t, token in enumerate(answers[i])]
        b, position, target, i = torch.tensor(picks, device=device).unbind(1)                   # (N,) each
        hidden = llama.hidden(tokens.to(device))[b, position]              # (N, D); causal: the padding is never seen
        for part in torch.arange(len(picks), device=device).split(1024):   # bounds the logits to 1024 · V
            loss = F.cross_entropy(llama.lm_head(hidden[part]).float(), target[part], reduction="none")
            total.index_add_(0, i[part], -loss.double())
        bar.update(sum(map(len, batch)))
    bar.close()
    return total.tolist()


def macro_f1(labels: list[int], predictions: list[int]) -> float:
    """Mean over the classes that occur, in either list, of F1 = 2 · hits / (labels + predictions of that class).

    >>> round(macro_f1([0, 0, 1, 1], [0, 0, 0, 0]), 4)             # a constant answer: (2·2/6 + 0) / 2
    0.3333
    """
    classes = set(labels) | set(predictions)
    hits = [label for label, prediction in zip(labels, predictions, strict=True) if label == prediction]
    return sum(2 * hits.count(c) / (labels.count(c) + predictions.count(c)) for c in classes) / len(classes)


def wilson(p: float, n: int, z: float = 1.959964) -> list[float]:
    """95 % interval of a share p of n (Wilson, 1927): unlike p ± z·stderr it stays within 0…1, and p = 0 has width."""
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]


def metrics(examples: list[Example], scores: list[list[float]], by_length: bool) -> dict:
    """What the harness reports of a task, and every example. `by_length` adds acc_norm: log-likelihood a character."""
    labels, n = [example.label for example in examples], len(examples)
    predictions = [int(np.argmax(values)) for values in scores]           # of equal ones the first
    acc = sum(map(int.__eq__, labels, predictions)) / n
    result = {"acc": acc, "macro_f1": macro_f1(labels, predictions), "ci95": wilson(acc, n),
              "acc_stderr": math.sqrt(acc * (1 - acc) / (n - 1)) if n > 1 else None}     # sample deviation / √n
    if by_length:
        lengths = [[len(choice) for choice in example.choices] for example in examples]
        normed = [int(np.argmax(np.divide(*pair))) for pair in zip(scores, lengths, strict=True)]
        result["acc_norm"] = sum(map(int.__eq__, labels, normed)) / n
    result["examples"] = [dict(id=example.row, label=example.label, loglikelihoods=values, prediction=prediction)
                          for example, values, prediction in zip(examples, scores, predictions, strict=True)]
    return result


def evaluate(llama: model.Llama, tokens: Callable[[str], list[int]], name: str, examples: list[Example],
             batch_tokens: int, context: list[int] | None = None) -> dict:
    """Score one task. A `context` replaces everyone's own. UserError for what does not fit, or scores that are NaN."""
    requests = [[(context or own, answer) for own, answer in encode(tokens, example)] for example in examples]
    limit = llama.config.max_position_embeddings
    for example, pairs in zip(examples, requests, strict=True):
        lengths = [len(answer) for _, answer in pairs]
        if not 1 <= min(lengths) <= max(lengths) <= limit:
            raise cli.UserError(f"{name}, row {example.row}: answers of {lengths} tokens; the model takes 1 to {limit}")
    flat = iter(loglikelihoods(llama, [pair for pairs in requests for pair in pairs], batch_tokens, name))
    scores = [[next(flat) for _ in pairs] for pairs in requests]
    for example, values in zip(examples, scores, strict=True):
        if not np.isfinite(values).all():
            raise cli.UserError(f"{name}, row {example.row}: log-likelihoods {values}; are the model's weights broken?")
    return metrics(examples, scores, by_length=name == "hellaswag")


def line(name: str, result: dict) -> str:
    """A task's scores on one line, with the 95 % interval of its accuracy."""
    low, high = result["ci95"]
    norm = f"   acc_norm {result['acc_norm']:.4f}" if "acc_norm" in result else ""
    return (f"{name:10} {len(result['examples']):6}   acc {result['acc']:.4f} [{low:.4f}, {high:.4f}]   "
            f"macro-F1 {result['macro_f1']:.4f}{norm}")


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__, prog="eval_kobest.py")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="model directory, with its tokenizer")
    flag("--data", type=Path, required=True, help="folder of KoBEST: the one that holds v1.0, or v1.0")
    flag("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="which of the five")
    flag("--split", default="test", choices=["test", "dev", "train"], help="which TSV of each task")
    flag("--limit", type=int, help="the first N examples of each task; None: all")
    flag("--answer_only", action="store_true", help="control: score the answers without their context")
    flag("--batch_tokens", type=int, default=2048, help="tokens a forward pass, padding included")
    flag("--out", type=Path, help="JSON file for the scores, every example included")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    cli.set_device(args)
    if args.limit is not None and args.limit < 1:
        raise cli.UserError(f"--limit {args.limit}: give 1 or more examples")
    if args.out and args.out.is_dir():
        raise cli.UserError(f"--out {args.out} is a folder; name a file in it")
    settings = cli.settings(args)
    examples = {name: read(args.data, TASKS[name], args.split, args.limit) for name in args.tasks}
    sp = tokenizer.load(args.model)
    tokens, context = encoder(sp, args.model), [sp.bos_id()] if args.answer_only else None     # BOS: nothing is asked
    llama = model.load(args.model, device=args.device, dtype=getattr(torch, args.dtype))
    if sp.get_piece_size() > llama.config.vocab_size:
        raise cli.UserError(f"{args.model}: its tokenizer has {sp.get_piece_size()} pieces, its embedding "
                            f"{llama.config.vocab_size} rows; they are of two models")
    tasks = {}
    for name in examples:
        start = time.perf_counter()
        tasks[name] = evaluate(llama, tokens, name, examples[name], args.batch_tokens, context)
        print(f"{line(name, tasks[name])}   {time.perf_counter() - start:.1f} s", flush=True)
    acc, f1, size = zip(*((r["acc"], r["macro_f1"], len(r["examples"])) for r in tasks.values()), strict=True)
    means = {"mean_acc": float(np.mean(acc)), "mean_macro_f1": float(np.mean(f1)),
             "weighted_acc": float(np.average(acc, weights=size))}
    print(f"\nKoBEST {args.split}, zero-shot{', answers only' if args.answer_only else ''} (95 % Wilson intervals)")
    print("\n".join(line(name, result) for name, result in tasks.items()))
    print("   ".join(f"{key} {value:.4f}" for key, value in means.items()))
    if args.out:
        cli.write_json(args.out, {"settings": settings, "tasks": tasks, **means})


if __name__ == "__main__":
    cli.run(main)
