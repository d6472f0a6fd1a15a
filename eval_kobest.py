"""KoBEST: of several answers, which does the model find likeliest?

KoBEST (Kim et al., 2204.04541) asks five kinds of Korean question, each with two or four answers. A model that was only
pretrained cannot be asked; so every answer is put behind its question, and the answer whose tokens are likeliest is the
prediction (Brown et al., 2005.14165, section 2.4):

    log p(answer | context) = Σ_t log p(answer token t | context, answer tokens before t)

A score means something only beside other people's. Prompts, blanks, BOS, truncation, metrics and the draw of solved
examples (--shots) are therefore those of lm-evaluation-harness 0.4.13, odd ones included.

The time goes into contexts, so each is run once for all its answers. An answer's last token is never fed to the model:
one-token answers have the same input. The model is causal: an input that begins another is answered by the same run.
Answers that part ways go on from copies of the context's keys and values (see `plan`).

    python eval_kobest.py --model DIR --data KOBEST_DIR                            # the test split of all five tasks
    python eval_kobest.py --model DIR --data KOBEST_DIR --split dev --shots 5 --tasks copa hellaswag --out scores.json
    python eval_kobest.py --model DIR --data KOBEST_DIR --answer_only              # control: what the answers give away
    python eval_kobest.py --compare A.json B.json                                  # what changed between two --out's
    torchrun --nproc_per_node=8 eval_kobest.py --model DIR --data KOBEST_DIR       # eight processes share the work
"""
import csv
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor

import model
import tokenizer
from common import cli, parallel


@dataclass(frozen=True)
class Task:
    """Where a task lies, and how a row becomes a context and choices. Templates name the harness's fields."""
    folder: str
    columns: str                    # field=column of the TSV that holds it
    values: dict[str, dict]         # field: what each spelling in the TSV (in lower case) stands for
    prompt: str
    choices: tuple[str, ...]
    version: float = 1.0            # of the task in the harness: scores of different versions do not compare


NO_YES, FALSE_TRUE = ("아니오", "예"), {"label": {"false": 0, "true": 1}}
TASKS = {
    # "{paragraph} Question: {question} Answer: ". The blank at the end is the harness's: see `encode`.
    "boolq": Task("BoolQ", "paragraph=Text question=Question label=Answer", FALSE_TRUE,
                  "{paragraph} 질문: {question} 답변: ", NO_YES),
    # cause / effect: "{premise}  because" or "{premise}  so" (two blanks, as in the harness)
    "copa": Task("COPA", "premise=sentence question=question alternative_1=1 alternative_2=2 label=Answer",
                 {"question": {"원인": " 왜냐하면", "결과": " 그래서"}, "label": {"1": 0, "2": 1}},
                 "{premise} {question}", ("{alternative_1}", "{alternative_2}")),
    # "Sentence: {context}"
    "hellaswag": Task("HellaSwag", "context=context" + "".join(f" ending_{i}=choice{i}" for i in "1234")
                      + " label=label", {"label": {str(i): i for i in range(4)}}, "문장: {context}",
                      tuple(f"{{ending_{i}}}" for i in "1234")),
    # "Sentence: {sentence} Sentiment:" negative / positive
    "sentineg": Task("SentiNeg", "sentence=Text label=Label", {"label": {"0": 0, "1": 1}},
                     "문장: {sentence} 긍부정:", ("부정", "긍정")),
    # "Sentence 1: … Sentence 2: … Is {word} used in the same sense in both sentences?"
    "wic": Task("WiC", "word=Target context_1=SENTENCE1 context_2=SENTENCE2 label=ANSWER", FALSE_TRUE,
                "문장1: {context_1} 문장2: {context_2} 두 문장에서 {word}가 같은 뜻으로 쓰였나?", NO_YES),
}
KOBEST = list(TASKS)
# The test sentences of SentiNeg before a negation turned them round. They are not a sixth task: no mean counts them.
TASKS["sentineg_originated"] = replace(TASKS["sentineg"], columns="sentence=Text_origin label=Label_origin")


@dataclass(frozen=True)
class Example:
    """One row of a file. Rows count from 1, in a TSV below the header, as the ID column of the files does."""
    row: int
    context: str
    choices: list[str]
    label: int


def find(data: Path, name: str, split: str) -> Path:
    """The file of a split: v1.0/BoolQ/dev.tsv as KoBEST was published, or Hugging Face's boolq/validation.jsonl."""
    base, originated, _ = name.partition("_originated")
    folder = (data / "v1.0" if (data / "v1.0").is_dir() else data) / TASKS[name].folder
    files = [folder / f"{split}.tsv", data / base / f"{'validation' if split == 'dev' else split}{originated}.jsonl"]
    for file in filter(Path.is_file, files):
        return file
    others = sorted(path.stem for path in folder.glob("*.tsv"))
    raise cli.UserError(f"no file {files[0]}, nor {files[1]}; " + (f"try --split {others[0]}" if others else
                        "--data takes the folder of KoBEST, which holds v1.0/BoolQ, v1.0/COPA, … or boolq, copa, …"))


def read(data: Path, name: str, split: str, limit: int | None = None) -> list[Example]:
    """The first `limit` examples of a split, in the order of its file. UserError names the file and the row.

    Python's csv with its default quoting gives the same cells as pandas, through which Hugging Face's loader reads:
    twelve rows of BoolQ hold quotes that both strip.
    """
    file, task, rows, examples = find(data, name, split), TASKS[name], [], []
    columns, values, tabs = dict(pair.split("=") for pair in task.columns.split()), task.values, file.suffix == ".tsv"
    if not tabs:  # JSON lines: columns are called as the fields, and labels count from 0
        columns, values = {f: f for f in columns}, {**values, "label": {str(i): i for i in range(len(task.choices))}}
    try:
        with open(file, encoding="utf-8-sig", newline="" if tabs else None) as lines:
            for cells in csv.reader(lines, delimiter="\t") if tabs else filter(str.strip, lines):
                rows += [cells if tabs else dict(json.loads(cells))] if cells else []
    except (csv.Error, ValueError, TypeError) as error:
        kind = "tabs between its columns" if tabs else "a JSON object a line"
        raise cli.UserError(f"{file}, row {len(rows) + (not tabs)}: not a UTF-8 table with {kind} ({error})") from None
    if tabs:
        header, *rows = rows or [[]]
        rows = [dict(zip(header, cells + [""] * len(header), strict=False)) for cells in rows]
    if not rows:
        raise cli.UserError(f"{file} has no rows")
    for row, cells in enumerate(rows[:limit], 1):
        fields = {}
        for field, column in columns.items():
            if column not in cells:
                raise cli.UserError(f"{file}, row {row}: no column {column!r}, only {', '.join(cells)}")
            text, known = "" if cells[column] is None else str(cells[column]), values.get(field)
            if not text.strip():
                raise cli.UserError(f"{file}, row {row}: column {column!r} is empty")
            if known and text.strip().lower() not in known:
                raise cli.UserError(f"{file}, row {row}: {column!r} is {text!r}, not one of {', '.join(known)}")
            fields[field] = known[text.strip().lower()] if known else text
        choices = [choice.format(**fields) for choice in task.choices]
        examples.append(Example(row, task.prompt.format(**fields), choices, fields["label"]))
    return examples


def add_shots(examples: list[Example], pool: list[Example], shots: int) -> list[Example]:
    """Put `shots` solved examples of the train split before every context, as the harness draws them: one generator
    goes from example to example, and an example of the train split may find itself, answer and all, among its shots."""
    if shots > len(pool):
        raise cli.UserError(f"--shots {shots}: the train split has {len(pool)} examples")
    draw, solved = random.Random(1234), [f"{e.context} {e.choices[e.label]}\n\n" for e in pool]
    return [replace(e, context="".join(draw.sample(solved, shots)) + e.context) for e in examples]


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


Request = tuple[list[int], list[int]]       # the tokens of a context and of a continuation
Row = tuple[list[int], int, list[int], int]  # tokens; where an answer's first one is predicted; requests; context


def plan(requests: list[Request], limit: int, batch_tokens: int) -> list[tuple[list[list[int]], list[Row]]]:
    """Batches of (contexts of one length, rows that go on from them) in which no context is run twice.

    What is longer than the model's `limit` positions loses tokens on the left, BOS first. Choices of one context may so
    lose different numbers, and see different contexts; a family is what sees the same one. If it branches, it shares a
    run of the context. A batch's contexts are cut to the length of the shortest and the rows bring the rest along: so
    nothing is padded on the left, and no mask is needed. Longest first: what does not fit into memory fails at once.
    """
    seen: dict[tuple, list[int]] = {}
    for i, (context, answer) in enumerate(requests):
        seen.setdefault(tuple(context[max(0, len(context) + len(answer) - limit - 1):]), []).append(i)
    families, batches = [], []
    for context, members in seen.items():
        branches: list[tuple[list[int], list[int]]] = []
        for tail, i in sorted(((requests[i][1][:-1], i) for i in members), reverse=True):  # behind what it begins
            if not branches or branches[-1][0][:len(tail)] != tail:
                branches.append((tail, []))
            branches[-1][1].append(i)
        if len(branches) > 1 and len(context) > 1:  # a context's last token predicts the answers' first
            families.append((len(context) - 1, 0, context, branches))
        else:
            families += [(0, len(context) + len(tail), context, [(tail, here)]) for tail, here in branches]
    families.sort(key=lambda family: family[:2], reverse=True)
    while families:
        longest, whole, *_ = families[0]
        batch = [f for f in families[:max(1, batch_tokens // (longest or whole))] if f[0] >= 0.9 * longest]
        families, cut = families[len(batch):], batch[-1][0]
        rows = [([*context[cut:], *tail], len(context) - 1 - cut, members, c)
                for c, (*_, context, branches) in enumerate(batch) for tail, members in branches]
        batches.append(([list(context[:cut]) for *_, context, _ in batch], rows))
    return batches


def run(llama: model.Llama, batch: tuple[list[list[int]], list[Row]], requests: list[Request], batch_tokens: int,
        total: torch.Tensor) -> None:
    """Add to `total` (requests,) what one batch of `plan` answers. Rows of like length run together, `batch_tokens` at
    most, padding and cache included. Logits are made where an answer's token is predicted, only."""
    (contexts, rows), new, branch = batch, dict(device=total.device), None
    cut, rows = len(contexts[0]), sorted(rows, key=lambda row: -len(row[0]))
    cache = lambda batch, length: model.Cache(llama.config, batch, length, total.device, llama.compute_dtype)
    if cut:
        first = [torch.tensor([0], **new)] * 2                  # of the states any will do: the cache is what counts
        llama.hidden(torch.tensor(contexts, **new), trunk := cache(len(contexts), cut), tuple(first))
    while rows:
        longest = len(rows[0][0])
        size = max(1, batch_tokens // (cut + longest))
        part, rows = rows[:size], rows[size:]
        if cut:
            branch, origin = cache(len(part), cut + longest), [row[3] for row in part]
            branch.keys[..., :cut, :], branch.values[..., :cut, :] = trunk.keys[:, origin], trunk.values[:, origin]
            branch.used = cut
        tokens = torch.tensor([row[0] + [0] * (longest - len(row[0])) for row in part], **new)
        picks = [(b, first + t, token, i) for b, (_, first, members, _) in enumerate(part) for i in members
                 for t, token in enumerate(requests[i][1])]
        b, position, target, i = torch.tensor(picks, **new).unbind(1)                   # (N,) each
        hidden = llama.hidden(tokens, branch, (b, position))                            # (N, D); causal: padding unseen
        for some in torch.arange(len(picks), **new).split(512):                         # bounds the logits to 512 · V
            loss = F.cross_entropy(llama.lm_head(hidden[some]).float(), target[some], reduction="none")
            total.index_add_(0, i[some], -loss.double())


@torch.inference_mode()
def loglikelihoods(llama: model.Llama, requests: list[Request], batch_tokens: int, name: str = "") -> list[float]:
    """log p(continuation | context) of each request, in nats, in the order given; under torchrun, on every rank.

    The ranks take turns with the batches, which do not depend on how many ranks there are: nor do the figures.
    """
    total = torch.zeros(len(requests), dtype=torch.float64, device=llama.lm_head.weight.device)
    batches = plan(requests, llama.config.max_position_embeddings, batch_tokens)[parallel.rank()::parallel.size()]
    for batch in cli.progress(batches, name, " batches"):
        run(llama, batch, requests, batch_tokens, total)
    return parallel.all_reduce_sum(*total.tolist())  # each request was run by one rank, and is zero on the others


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
    asked = [(one, *pair) for one in cli.progress(examples, f"{name}: tokens") for pair in encode(tokens, one)]
    limit = llama.config.max_position_embeddings
    for example, _, answer in asked:
        if not 1 <= len(answer) <= limit:
            raise cli.UserError(f"{name}, row {example.row}: answer of {len(answer)} tokens; the model takes 1…{limit}")
    flat = loglikelihoods(llama, [(context or own, answer) for _, own, answer in asked], batch_tokens, name)
    for (example, *_), value in zip(asked, flat, strict=True):
        if not math.isfinite(value):
            raise cli.UserError(f"{name}, row {example.row}: log-likelihood {value}; are the model's weights broken?")
    scores = np.reshape(flat, (len(examples), -1)).tolist()
    return {"version": TASKS[name].version, **metrics(examples, scores, by_length=name == "hellaswag")}


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact two-sided p (1947): is a change as likely for the better as for the worse?

    >>> mcnemar(1, 5)                                              # 2 · (1 + 6) / 2⁶
    0.21875
    """
    n = lost + gained
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(lost, gained) + 1)) / 2**n)


def compare(one: Path, other: Path) -> None:
    """Print what changed between two files of scores: metrics, McNemar's test, and the rows of the examples."""
    a, b = (cli.read_json(file) for file in (one, other))
    a, b = (scores.get("tasks", {}) if isinstance(scores, dict) else {} for scores in (a, b))
    names, sums = [name for name in a if name in b], [0, 0]
    if not names:
        raise cli.UserError(f"{one} and {other} hold no task in common; did --out write both?")
    for name in names:
        was, now = a[name]["examples"], b[name]["examples"]
        if [(e["id"], e["label"]) for e in was] != [(e["id"], e["label"]) for e in now]:
            raise cli.UserError(f"{one} and {other} hold different examples of {name}; use one --split and --limit")
        changed = [(e, f["prediction"]) for e, f in zip(was, now, strict=True) if e["prediction"] != f["prediction"]]
        lost = [e["id"] for e, _ in changed if e["prediction"] == e["label"]]
        gained = [e["id"] for e, new in changed if new == e["label"]]
        rest = [e["id"] for e, new in changed if e["label"] not in (e["prediction"], new)]
        sums = [sums[0] + len(lost), sums[1] + len(gained)]
        acc, f1 = (f"{a[name][key]:.4f} → {b[name][key]:.4f}" for key in ("acc", "macro_f1"))
        print(f"{name:10} acc {acc}   macro-F1 {f1}   McNemar's p {mcnemar(len(lost), len(gained)):.3g}\n{'':10} "
              f"lost {len(lost)}: {lost}\n{'':10} gained {len(gained)}: {gained}\n{'':10} wrong both times: {rest}")
    print(f"{'together':10} lost {sums[0]}, gained {sums[1]}, McNemar's p {mcnemar(*sums):.3g}")


def main(argv: list[str] | None = None) -> None:
    """Score a model on the tasks; print the table, write the JSON."""
    parser = cli.Parser(description=__doc__, prog="eval_kobest.py")
    flag = parser.add_argument
    flag("--model", type=Path, help="model directory, with its tokenizer")
    flag("--data", type=Path, help="folder of KoBEST: the one that holds v1.0, or v1.0, or Hugging Face's JSON lines")
    flag("--tasks", nargs="+", default=KOBEST, choices=list(TASKS), metavar="TASK", help="of " + ", ".join(TASKS))
    flag("--split", default="test", choices=["test", "dev", "train"], help="which file of each task")
    flag("--limit", type=int, help="the first N examples of each task; if not given, all")
    flag("--shots", type=int, default=0, help="solved examples of the train split before each context")
    flag("--answer_only", action="store_true", help="control: score the answers without their context")
    flag("--batch_tokens", type=int, default=2048, help="tokens a forward pass, padding and cache included")
    flag("--out", type=Path, help="JSON file for the scores, every example included")
    flag("--compare", nargs=2, type=Path, metavar="JSON", help="only print what changed between two such files")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    if args.compare:
        return compare(*args.compare)
    if not args.model or not args.data:
        parser.error("the following arguments are required: --model, --data (or --compare alone)")
    cli.set_device(args)
    for name, least in (("limit", 1), ("shots", 0), ("batch_tokens", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise cli.UserError(f"--{name} {getattr(args, name)}: give {least} or more")
    if args.shots and args.answer_only:
        raise cli.UserError("--answer_only leaves the context out, and --shots are part of it; choose one")
    if args.out and args.out.is_dir():
        raise cli.UserError(f"--out {args.out} is a folder; name a file in it")
    with parallel.process_group(args.device):
        score(args)


def score(args) -> None:
    """Read the tasks and the model, score, print, and write --out."""
    if parallel.rank():
        sys.stdout = open(os.devnull, "w")      # one process talks
    settings, tasks = cli.settings(args), {}
    examples = {name: read(args.data, name, args.split, args.limit) for name in args.tasks}
    for name in examples if args.shots else ():
        pool = read(args.data, name.removesuffix("_originated"), "train")
        examples[name] = add_shots(examples[name], pool, args.shots)
    sp = tokenizer.load(args.model)
    tokens, context = encoder(sp, args.model), [sp.bos_id()] if args.answer_only else None     # BOS: nothing is asked
    llama = model.load(args.model, device=args.device, dtype=getattr(torch, args.dtype))
    if sp.get_piece_size() > llama.config.vocab_size:
        raise cli.UserError(f"{args.model}: its tokenizer has {sp.get_piece_size()} pieces, its embedding "
                            f"{llama.config.vocab_size} rows; they are of two models")
    for name, own in examples.items():
        start = time.perf_counter()
        tasks[name] = result = evaluate(llama, tokens, name, own, args.batch_tokens, context)
        norm = f"   acc_norm {result['acc_norm']:.4f}" if "acc_norm" in result else ""
        print(f"{name:10} {len(own):6}   acc {result['acc']:.4f} [{result['ci95'][0]:.4f}, {result['ci95'][1]:.4f}]   "
              f"macro-F1 {result['macro_f1']:.4f}{norm}   {time.perf_counter() - start:.1f} s", flush=True)
    counted = [result for name, result in tasks.items() if name in KOBEST] or list(tasks.values())
    acc, f1, size = zip(*((r["acc"], r["macro_f1"], len(r["examples"])) for r in counted), strict=True)
    means = {"mean_acc": float(np.mean(acc)), "mean_macro_f1": float(np.mean(f1)),
             "weighted_acc": float(np.average(acc, weights=size))}          # the harness's group score
    print(f"{args.split}, {args.shots}-shot   " + "   ".join(f"{key} {value:.4f}" for key, value in means.items()))
    if args.out and not parallel.rank():
        cli.write_json(args.out, {"settings": settings, "tasks": tasks, **means})


if __name__ == "__main__":
    cli.run(main)
