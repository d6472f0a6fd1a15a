"""KoBEST, zero-shot: of several answers, which does the model find likeliest?

KoBEST (Kim et al., 2204.04541) asks five kinds of Korean question, each with two or four answers. A model that was only
pretrained cannot be asked; so every answer is put behind its question, and the answer whose tokens are likeliest is the
prediction (Brown et al., 2005.14165, section 2.4):

    log p(answer | context) = Σ_t log p(answer token t | context, answer tokens before t)

A figure is worth something only beside others' figures. Prompts, spaces, BOS, truncation and metrics are therefore those
of lm-evaluation-harness 0.4.13 (its kobest tasks, version 1.0), odd ones included; they are said where they occur.

The time goes into running contexts. An answer's last token is never fed to the model, so one-token answers have the same
input, the context alone; and the model is causal, so an input that begins another one is answered by the same run.

    python eval_kobest.py --model DIR --data KOBEST_DIR                            # the test split of all five tasks
    python eval_kobest.py --model DIR --data KOBEST_DIR --split dev --tasks copa hellaswag --out scores.json
    python eval_kobest.py --model DIR --data KOBEST_DIR --answer_only              # control: what the answers give away
"""
import argparse
import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
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


def find(data: Path, task: Task, split: str) -> Path:
    """The TSV of a split. `data` is the folder that holds v1.0, or v1.0 itself."""
    folder = (data / "v1.0" if (data / "v1.0").is_dir() else data) / task.folder
    if not folder.is_dir():
        raise cli.UserError(f"no folder {folder}; --data takes the folder of KoBEST that holds v1.0/BoolQ, v1.0/COPA, …")
    file = folder / f"{split}.tsv"
    if not file.is_file():
        present = sorted(path.stem for path in folder.glob("*.tsv"))
        raise cli.UserError(f"no file {file}" + (f"; try --split {present[0]}" if present else ""))
    return file


def read(file: Path, task: Task, limit: int | None = None) -> list[Example]:
    """The examples of a TSV, in the order of the file, the first `limit` of them.

    Python's csv with its default quoting gives the same cells as pandas, through which Hugging Face's loader reads:
    twelve rows of BoolQ hold quotes that it strips. UserError names the file and the row.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            header, *table = [cells for cells in csv.reader(lines, delimiter="\t") if cells] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise cli.UserError(f"{file} is not a table in UTF-8 with tabs between its columns: {error}") from None
    missing = [column for column in task.columns.values() if column not in header]
    if missing:
        raise cli.UserError(f"{file} has no column {missing[0]!r}; its first line names {', '.join(header) or 'none'}")
    if not table:
        raise cli.UserError(f"{file} has no rows below its header")
    examples = []
    for row, cells in enumerate(table[:limit], 1):
        cell = dict(zip(header, cells, strict=False))           # a short row is caught as an empty cell
        fields = {field: cell.get(column, "") for field, column in task.columns.items()}
        for field, column in task.columns.items():
            known = task.values.get(field)
            if not fields[field].strip():
                raise cli.UserError(f"{file}, row {row}: column {column!r} is empty")
            if known and (fields[field].strip().lower() not in known):
                raise cli.UserError(f"{file}, row {row}: {column!r} is {fields[field]!r}, not one of {', '.join(known)}")
            if known:
                fields[field] = known[fields[field].strip().lower()]
        choices = [choice.format(**fields) for choice in task.choices]
        examples.append(Example(row, task.prompt.format(**fields), choices, fields["label"]))
    return examples


def adds_bos(folder: Path) -> bool:
    """Whether the model directory's tokenizer puts BOS in front; Llama's does where nothing is said."""
    file = folder / "tokenizer_config.json"
    return cli.read_json(file).get("add_bos_token", True) if file.exists() else True


def encode(sp: sentencepiece.SentencePieceProcessor, example: Example, bos: bool,
           answer_only: bool = False) -> list[tuple[list[int], list[int]]]:
    """The tokens of (context, continuation), for each choice.

    A continuation is a blank and the choice. Blanks that end the context move to it, because "답변: " + "예" and
    "답변:" + " 예" are other tokens, and text in the wild looks like the second. Both are encoded together and cut at
    the length of the context alone, so that the choice is segmented as it would be in running text. With `answer_only`
    the context is BOS.
    """
    def tokens(text: str) -> list[int]:  # SentencePiece prepends a blank always; transformers only where there is none
        return tokenizer.encode(sp, text.removeprefix(" "), bos=bos)

    if answer_only:
        return [([sp.bos_id()], tokenizer.encode(sp, choice, bos=False)) for choice in example.choices]
    body = example.context.rstrip()
    blanks = example.context[len(body):] + " "
    context = tokens(body)
    return [(context, tokens(body + blanks + choice)[len(context):]) for choice in example.choices]


def share(inputs: list[list[int]]) -> list[list[int]]:
    """Group the inputs that one run answers: each group is a longest input and those that begin it, as indices.

    In lexicographic order an input stands right before those that it begins, so one pass in reverse finds them all.

    >>> share([[5, 6], [5, 6, 7, 8], [5, 9]])
    [[2], [1, 0]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(inputs)), key=inputs.__getitem__, reverse=True):
        if groups and inputs[groups[-1][0]][:len(inputs[i])] == inputs[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@torch.inference_mode()
def loglikelihoods(llama: model.Llama, requests: list[tuple[list[int], list[int]]], batch_tokens: int,
                   name: str = "") -> list[float]:
    """log p(continuation | context) of each request, in nats, in the order given.

    What is longer than the model's positions loses tokens on the left, BOS first (choices of one context may so lose
    different numbers). Batches hold up to `batch_tokens` tokens, padding included, longest inputs first: neighbours are
    alike in length, and what does not fit into memory fails at once. Logits are made at the answers' positions alone.
    """
    device = llama.lm_head.weight.device
    limit = llama.config.max_position_embeddings
    inputs = [(context + continuation)[-(limit + 1):-1] for context, continuation in requests]
    groups = sorted(share(inputs), key=lambda group: -len(inputs[group[0]]))
    total = torch.zeros(len(requests), dtype=torch.float64, device=device)
    bar = tqdm(total=len(requests), desc=name, unit="answer", leave=False, disable=None)
    while groups:
        longest = len(inputs[groups[0][0]])
        size = max(1, batch_tokens // longest)
        batch, groups = groups[:size], groups[size:]
        tokens = torch.tensor([inputs[first] + [0] * (longest - len(inputs[first])) for first, *_ in batch])
        picks = [(b, len(inputs[i]) - len(requests[i][1]) + t, token, i)     # position t of the answer i is predicted
                 for b, group in enumerate(batch) for i in group              # one place before where it stands
                 for t, token in enumerate(requests[i][1])]
        b, position, target, i = torch.tensor(picks, device=device).unbind(1)
        hidden = llama.hidden(tokens.to(device))[b, position]                 # (N, D): right padding is never looked at
        for part in torch.arange(len(picks), device=device).split(1024):      # bounds the logits: 1024 · V
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
    """95 % interval of a share p of n (Wilson, 1927): unlike p ± z·stderr it stays within 0…1, and p = 0 has a width.

    >>> [round(x, 4) for x in wilson(0.5, 100)]
    [0.4038, 0.5962]
    """
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]


def argmax(values: list[float]) -> int:
    """The place of the largest value; of equal ones the first, as numpy has it."""
    return max(range(len(values)), key=values.__getitem__)


def metrics(examples: list[Example], scores: list[list[float]], by_length: bool) -> dict:
    """What the harness reports of a task, and every example. `by_length` adds acc_norm: log-likelihood a character."""
    labels, n = [example.label for example in examples], len(examples)
    predictions = [argmax(values) for values in scores]
    acc = sum(map(int.__eq__, labels, predictions)) / n
    result = {"acc": acc, "macro_f1": macro_f1(labels, predictions), "ci95": wilson(acc, n),
              "acc_stderr": math.sqrt(acc * (1 - acc) / (n - 1)) if n > 1 else None}  # sample deviation / √n of 0s and 1s
    if by_length:
        normed = [argmax([value / len(choice) for value, choice in zip(values, example.choices, strict=True)])
                  for values, example in zip(scores, examples, strict=True)]
        result["acc_norm"] = sum(map(int.__eq__, labels, normed)) / n
    result["examples"] = [{"id": example.row, "label": example.label, "loglikelihoods": values, "prediction": prediction}
                          for example, values, prediction in zip(examples, scores, predictions, strict=True)]
    return result


def evaluate(llama: model.Llama, sp: sentencepiece.SentencePieceProcessor, name: str, file: Path,
             examples: list[Example], bos: bool, batch_tokens: int, answer_only: bool) -> dict:
    """Score one task. UserError where an answer does not fit, or the model returns no number."""
    encoded = [encode(sp, example, bos, answer_only) for example in examples]
    for example, pairs in zip(examples, encoded, strict=True):
        longest = max(len(continuation) for _, continuation in pairs)
        if longest > llama.config.max_position_embeddings:
            raise cli.UserError(f"{file}, row {example.row}: an answer of {longest} tokens does not fit into the "
                                f"model's {llama.config.max_position_embeddings} positions")
    flat = iter(loglikelihoods(llama, [pair for pairs in encoded for pair in pairs], batch_tokens, name))
    scores = [[next(flat) for _ in pairs] for pairs in encoded]
    for example, values in zip(examples, scores, strict=True):
        if not all(map(math.isfinite, values)):
            raise cli.UserError(f"{file}, row {example.row}: the log-likelihoods are {values}; are the weights broken?")
    return metrics(examples, scores, by_length=name == "hellaswag")


def line(name: str, result: dict) -> str:
    low, high = result["ci95"]
    norm = f"   acc_norm {result['acc_norm']:.4f}" if "acc_norm" in result else ""
    return (f"{name:10} {len(result['examples']):6}   acc {result['acc']:.4f} [{low:.4f}, {high:.4f}]   "
            f"macro-F1 {result['macro_f1']:.4f}{norm}")


def main(argv: list[str] | None = None) -> None:
    cuda = torch.cuda.is_available()
    parser = cli.Parser(description=__doc__, prog="eval_kobest.py")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model directory, with its tokenizer")
    add("--data", type=Path, required=True, help="folder of KoBEST: the one that holds v1.0, or v1.0")
    add("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="which of the five")
    add("--split", default="test", choices=["test", "dev", "train"], help="which TSV of each task")
    add("--limit", type=int, default=None, help="the first N examples of each task (default: all)")
    add("--answer_only", action="store_true", help="control: score the answers without their context")
    add("--batch_tokens", type=int, default=4096, help="tokens a forward pass, padding included")
    add("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if cuda else "float32", help="of weights and sums")
    add("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu", help="where the model runs")
    add("--out", type=Path, default=None, help="JSON file for the scores, every example included")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise cli.UserError(f"--limit {args.limit}: give 1 or more examples")
    if args.out and args.out.is_dir():
        raise cli.UserError(f"--out {args.out} is a folder; name a file in it")
    settings = cli.settings(args)
    files = {name: find(args.data, TASKS[name], args.split) for name in args.tasks}     # all read before the weights:
    examples = {name: read(file, TASKS[name], args.limit) for name, file in files.items()}   # errors come at once
    sp, bos = tokenizer.load(args.model), adds_bos(args.model)
    llama = model.load(args.model, device=args.device, dtype=getattr(torch, args.dtype))
    if sp.get_piece_size() > llama.config.vocab_size:
        raise cli.UserError(f"{args.model}: its tokenizer has {sp.get_piece_size()} pieces, its embedding "
                            f"{llama.config.vocab_size} rows; they are of two models")
    tasks = {}
    for name, file in files.items():
        start = time.perf_counter()
        tasks[name] = evaluate(llama, sp, name, file, examples[name], bos, args.batch_tokens, args.answer_only)
        print(f"{line(name, tasks[name])}   {time.perf_counter() - start:.1f} s", flush=True)
    results = list(tasks.values())
    sizes = [len(result["examples"]) for result in results]
    report = {"settings": settings, "tasks": tasks,
              "mean_acc": sum(result["acc"] for result in results) / len(results),
              "mean_macro_f1": sum(result["macro_f1"] for result in results) / len(results),
              "weighted_acc": sum(r["acc"] * n for r, n in zip(results, sizes, strict=True)) / sum(sizes)}
    print(f"\nKoBEST {args.split}, zero-shot{', answers only' if args.answer_only else ''} (95 % Wilson intervals)")
    print("\n".join(line(name, result) for name, result in tasks.items()))
    print("   ".join(f"{key} {report[key]:.4f}" for key in ("mean_acc", "mean_macro_f1", "weighted_acc")))
    if args.out:
        cli.write_json(args.out, report)


if __name__ == "__main__":
    cli.run(main)
