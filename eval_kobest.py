"""KoBEST: of several answers, which one does the model find most likely?

KoBEST (Kim et al., 2204.04541) has five kinds of Korean questions, each with two or four answers.
A pretrained model does not answer questions, it continues text. So every answer is appended to its
question, and the prediction is the answer whose tokens are most likely (Brown et al., 2005.14165,
section 2.4):

    log p(answer | context) = Σ_t log p(answer token t | context, answer tokens before t)

Scores can be compared with those of lm-evaluation-harness 0.4.13: prompts, spaces, BOS, truncation,
metrics and the choice of solved examples (--shots) are the same, including its quirks.

A score shows that a model has learned something only if it is above three baselines: chance; always
giving the most common answer (both are printed beside it); and scoring the answers without their
question (--answer_only).

A request that is longer than the model's positions loses the left end of its context, as in the
harness. The number of such requests is printed below a task's scores, and is "truncated" in --out.

    python eval_kobest.py --model DIR --data KOBEST_DIR                  # test split, all tasks
    python eval_kobest.py --model DIR --data KOBEST_DIR --split dev --shots 5 \\
        --tasks copa hellaswag --out scores.json
    python eval_kobest.py --model DIR --data KOBEST_DIR --answer_only    # control: no question
    python eval_kobest.py --compare A.json B.json                        # what changed
    torchrun --nproc_per_node=8 eval_kobest.py --model DIR --data KOBEST_DIR      # on eight GPUs
"""
import csv
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import model
import sample
import tokenizer
from common import cli, parallel, tokenizer_json

# ------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Task:
    """Where the files of a task are, and how a row becomes a context and choices."""
    folder: str                     # of the TSV files
    columns: dict[str, str]         # {field of the templates below: column of the TSV}
    values: dict[str, dict]         # {field: {spelling in the TSV, in lower case: its meaning}}
    prompt: str                     # template of the context
    choices: tuple[str, ...]        # templates of the answers
    version: float = 1.0            # in the harness; versions cannot be compared with each other


# The templates are exactly the harness's, down to the spaces. The comments translate them.
NO_YES = ("아니오", "예")
FALSE_TRUE = {"false": 0, "true": 1}
TASKS = {
    # "{paragraph} Question: {question} Answer: " no / yes. The space at the end is the harness's;
    # `encode` moves it to the answer.
    "boolq": Task(
        folder="BoolQ",
        columns={"paragraph": "Text", "question": "Question", "label": "Answer"},
        values={"label": FALSE_TRUE},
        prompt="{paragraph} 질문: {question} 답변: ",
        choices=NO_YES,
    ),
    # Which is the cause, or the effect, of a premise? "{premise}  because" or "{premise}  so", with
    # two spaces: the harness has one in the template and another before each of the two words.
    "copa": Task(
        folder="COPA",
        columns={
            "premise": "sentence",
            "question": "question",
            "alternative_1": "1",
            "alternative_2": "2",
            "label": "Answer",
        },
        values={"question": {"원인": " 왜냐하면", "결과": " 그래서"}, "label": {"1": 0, "2": 1}},
        prompt="{premise} {question}",
        choices=("{alternative_1}", "{alternative_2}"),
    ),
    # How does it continue? "Sentence: {context}"
    "hellaswag": Task(
        folder="HellaSwag",
        columns={
            "context": "context",
            "ending_1": "choice1",
            "ending_2": "choice2",
            "ending_3": "choice3",
            "ending_4": "choice4",
            "label": "label",
        },
        values={"label": {"0": 0, "1": 1, "2": 2, "3": 3}},
        prompt="문장: {context}",
        choices=("{ending_1}", "{ending_2}", "{ending_3}", "{ending_4}"),
    ),
    # "Sentence: {sentence} Sentiment:" negative / positive
    "sentineg": Task(
        folder="SentiNeg",
        columns={"sentence": "Text", "label": "Label"},
        values={"label": {"0": 0, "1": 1}},
        prompt="문장: {sentence} 긍부정:",
        choices=("부정", "긍정"),
    ),
    # "Sentence 1: … Sentence 2: … Is {word} used in the same sense in both sentences?" no / yes
    "wic": Task(
        folder="WiC",
        columns={
            "word": "Target",
            "context_1": "SENTENCE1",
            "context_2": "SENTENCE2",
            "label": "ANSWER",
        },
        values={"label": FALSE_TRUE},
        prompt="문장1: {context_1} 문장2: {context_2} 두 문장에서 {word}가 같은 뜻으로 쓰였나?",
        choices=NO_YES,
    ),
}
KOBEST = list(TASKS)
# The test sentences of SentiNeg before a negation reversed them ("not bad" was "bad"). This is not
# a sixth task: the means do not count it.
TASKS["sentineg_originated"] = replace(
    TASKS["sentineg"],
    columns={"sentence": "Text_origin", "label": "Label_origin"},
)


@dataclass(frozen=True)
class Example:
    """One row of a file."""
    row: int                        # counted from 1 below the header, like the files' ID column
    context: str
    choices: list[str]
    label: int                      # index of the right choice


def add_shots(examples: list[Example], pool: list[Example], shots: int) -> list[Example]:
    """Put `shots` solved examples of the train split before every context.

    They are drawn as in the harness: one generator serves all examples in turn, and when the train
    split is scored, an example may be among its own shots, with its answer.
    """
    # Drawing without replacement needs at least as many examples.
    if shots > len(pool):
        raise cli.UserError(f"--shots {shots}: the train split has {len(pool)} examples")
    generator = random.Random(1234)         # the harness's seed
    solved = [f"{one.context} {one.choices[one.label]}\n\n" for one in pool]
    result = []
    for example in examples:
        drawn = "".join(generator.sample(solved, shots))
        result.append(replace(example, context=drawn + example.context))
    return result


# ------------------------------------------------------------------------------------- tokens

Request = tuple[list[int], list[int]]       # the tokens of a context, the tokens of an answer


def encoder(vocabulary: tokenizer.Vocabulary, folder: Path) -> Callable[[str], list[int]]:
    """Return a function text → tokens, BOS included, that encodes as transformers 5 does with this
    model directory.

    SentencePiece puts a space before every text, and so does the tokenizer.json that
    `tokenizer.save` writes. But transformers' LlamaTokenizer adds no space to a text that begins
    with one.
    """
    config = cli.read_json_if_any(folder / "tokenizer_config.json")
    # tokenizer.json says whether BOS is added; the setting counts only if there is no such file.
    # The defaults are those of transformers' LlamaTokenizer, which most Llamas use.
    if (folder / "tokenizer.json").exists():
        bos = tokenizer_json.puts_bos(cli.read_json(folder / "tokenizer.json"))
    else:
        bos = config.get("add_bos_token", True)
    is_llama_tokenizer = "LlamaTokenizer" in config.get("tokenizer_class", "LlamaTokenizer")

    def encode_text(text: str) -> list[int]:
        if vocabulary.adds_space and is_llama_tokenizer:
            text = text.removeprefix(" ")
        return vocabulary.encode(text, bos=bos)

    return encode_text


def encode(tokens: Callable[[str], list[int]], example: Example) -> list[Request]:
    """The tokens of (context, answer), for each choice.

    The answer is a space and the choice. It is encoded together with the context and split off
    after as many tokens as the context alone has, because a piece may span the boundary.
    """
    # In running text a token begins with the space before it: "답변:" + " 예" ("answer:" + " yes").
    # So spaces at the end of the context are moved to the answer.
    body = example.context.rstrip()
    spaces = example.context[len(body):] + " "
    context = tokens(body)
    requests = []
    # Encoded alone, a choice could become pieces that it never has in running text.
    for choice in example.choices:
        whole = tokens(body + spaces + choice)
        requests.append((context, whole[len(context):]))
    return requests


# ------------------------------------------------------------------------------------- scoring


@torch.inference_mode()
def loglikelihoods(
    llama: model.Llama,
    requests: list[Request],
    batch_tokens: int,
    name: str = "",
) -> list[float]:
    """log p(answer | context) of each request in nats, in the given order, the same on every rank.

    `batch_tokens` limits the tokens of a forward pass, padding included. `name` labels the progress
    bar. A request that is longer than the model's positions is cut at the left, so BOS goes first.
    """
    limit = llama.config.max_position_embeddings

    # The last token of an answer is predicted but never an input. So all one-token answers to a
    # question have the same input and share a row.
    answers: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for i, (context, answer) in enumerate(requests):
        inputs = (context + answer)[-limit - 1:-1]
        answers.setdefault(tuple(inputs), []).append((i, answer))

    # Sort by length, so that there is little padding; longest first, so that a batch that does not
    # fit into memory fails at once.
    rows = sorted(answers, key=len, reverse=True)
    batches = []
    while rows:
        size = max(1, batch_tokens // len(rows[0]))
        batches.append(rows[:size])
        rows = rows[size:]

    # The ranks take turns. The batches do not depend on the number of ranks, so neither do scores.
    totals = torch.zeros(len(requests), dtype=torch.float64, device=llama.lm_head.weight.device)
    mine = batches[parallel.rank()::parallel.size()]
    for batch in cli.progress(mine, name, " batches"):
        add_batch(llama, batch, answers, totals)
    # A request's total is zero on every rank but the one that ran it.
    return parallel.all_reduce_sum(*totals.tolist())


def add_batch(
    llama: model.Llama,
    batch: list[tuple[int, ...]],
    answers: dict[tuple[int, ...], list[tuple[int, list[int]]]],
    totals: torch.Tensor,
) -> None:
    """Run a batch of inputs, longest first, and add each log-probability to its request's total.

    `answers` maps each input to the requests that have it: (index of the request, its answer).
    """
    # Padding on the right needs no mask: attention is causal, so no token attends to it.
    tokens = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)       # (B, T)
    places = []                     # row, position, the token predicted there, request
    for row, inputs in enumerate(batch):
        tokens[row, :len(inputs)] = torch.tensor(inputs)
        for request, answer in answers[inputs]:
            first = len(inputs) - len(answer)       # predicts the first token of the answer
            for t, token in enumerate(answer):
                places.append((row, first + t, token, request))
    places = torch.tensor(places, device=totals.device)                     # (N, 4)
    row, position, target, request = places.unbind(1)                       # (N,) each

    # With a large vocabulary, logits take more time than a small model and far more memory. So they
    # are computed only at the N places that predict a token of an answer, 512 places at a time.
    hidden = llama.hidden(tokens.to(totals.device), positions=(row, position))          # (N, D)
    for some in torch.arange(len(places), device=totals.device).split(512):
        logits = llama.lm_head(hidden[some]).float()                        # (512, V)
        nats = F.cross_entropy(logits, target[some], reduction="none")
        totals.index_add_(0, request[some], -nats.double())


def evaluate(
    llama: model.Llama,
    tokens: Callable[[str], list[int]],
    name: str,
    examples: list[Example],
    batch_tokens: int,
    context: list[int] | None = None,
) -> dict:
    """Score one task. A `context` (token ids) replaces that of every example.

    `truncated` in the result is the number of requests that lost context. UserError if an answer
    does not fit into the model's positions, or a score is not finite.
    """
    # However much of the context is cut off, the whole answer must be left to predict.
    limit = llama.config.max_position_embeddings
    requests = []
    for example in cli.progress(examples, f"{name}: tokens"):
        for own_context, answer in encode(tokens, example):
            if not 1 <= len(answer) <= limit:
                raise cli.UserError(f"{name}, row {example.row}: an answer has {len(answer)} "
                                    f"tokens; the model takes 1 to {limit}")
            requests.append((context or own_context, answer))

    values = loglikelihoods(llama, requests, batch_tokens, name)
    scores = np.reshape(values, (len(examples), -1)).tolist()       # examples × choices
    # argmax takes NaN for the largest: a model with one broken weight would seem to guess.
    for example, of_choices in zip(examples, scores, strict=True):
        for value in of_choices:
            if not math.isfinite(value):
                raise cli.UserError(f"{name}, row {example.row}: log-likelihood {value}; "
                                    "are the model's weights broken?")
    result = metrics(examples, scores, by_length=name == "hellaswag")
    n_truncated = count_truncated(requests, limit)
    return {"version": TASKS[name].version, "truncated": n_truncated, **result}


def count_truncated(requests: list[Request], limit: int) -> int:
    """The number of requests that lose some of their context in `loglikelihoods`. The harness cuts
    them too and scores them like any other, but with many of them it is no longer the same task.

    >>> count_truncated([([1, 5, 6], [7]), ([1, 5, 6], [7, 8])], limit=3)
    1
    """
    # The last token of an answer is never an input, so it needs no position.
    lengths = [len(context) + len(answer) - 1 for context, answer in requests]
    return len([length for length in lengths if length > limit])


# ------------------------------------------------------------------------------------- metrics


def macro_f1(labels: list[int], predictions: list[int]) -> float:
    """Mean of F1 = 2 · hits / (labels + predictions of a class) over the classes in either list.

    >>> round(macro_f1([0, 0, 1, 1], [0, 0, 0, 0]), 4)     # a constant answer: (2·2/6 + 0) / 2
    0.3333
    """
    pairs = list(zip(labels, predictions, strict=True))
    # A class that is only predicted counts too, with an F1 of 0; one that never occurs does not.
    classes = set(labels) | set(predictions)
    total = 0.0
    for c in classes:
        hits = pairs.count((c, c))
        total += 2 * hits / (labels.count(c) + predictions.count(c))
    return total / len(classes)


def wilson(p: float, n: int, z: float = 1.959964) -> list[float]:
    """95 % confidence interval of a share p of n (Wilson, 1927).

    Unlike p ± z · stderr it stays within 0 … 1, and its width is not 0 at p = 0.
    """
    # The bounds are the p' from which p is z standard errors *of p'* away, the roots of a quadratic
    # equation: (p - p')² = z² p' (1 - p') / n.
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return [(centre - half) / scale, (centre + half) / scale]


def accuracy(labels: list[int], predictions: list[int]) -> float:
    """The share of predictions that are right."""
    right = [a for a, b in zip(labels, predictions, strict=True) if a == b]
    return len(right) / len(labels)


def metrics(examples: list[Example], scores: list[list[float]], by_length: bool) -> dict:
    """The metrics that the harness reports of a task, the baselines, and every example.

    `by_length` adds acc_norm, for which the prediction is the answer most likely per character.
    """
    n = len(examples)
    labels = [example.label for example in examples]
    predictions = [int(np.argmax(values)) for values in scores]         # the first, in a tie
    acc = accuracy(labels, predictions)
    # A sample's standard deviation divides by n - 1, so a single example has none.
    stderr = None
    if n > 1:
        stderr = math.sqrt(acc * (1 - acc) / (n - 1))
    commonest = max(labels, key=labels.count)
    result = {
        "acc": acc,
        "macro_f1": macro_f1(labels, predictions),
        "ci95": wilson(acc, n),
        "acc_stderr": stderr,
        "chance": 1 / len(examples[0].choices),
        "majority": accuracy(labels, [commonest] * n),
    }

    # Every token lowers the sum of log-probabilities, which favours short answers. So acc_norm
    # divides by the number of characters.
    if by_length:
        normed = []
        for example, values in zip(examples, scores, strict=True):
            characters = [len(choice) for choice in example.choices]
            normed.append(int(np.argmax(np.divide(values, characters))))
        result["acc_norm"] = accuracy(labels, normed)

    result["examples"] = []
    for example, values, prediction in zip(examples, scores, predictions, strict=True):
        result["examples"].append({
            "id": example.row,
            "label": example.label,
            "loglikelihoods": values,
            "prediction": prediction,
        })
    return result


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact two-sided p-value (1947) for as many predictions lost and gained, if changes
    for the better and for the worse were equally likely.

    >>> mcnemar(1, 5)                                      # 2 · (1 + 6) / 2⁶
    0.21875
    """
    # Each of the n changes is then a coin toss. The p-value is twice the smaller tail.
    n = lost + gained
    outcomes = sum(math.comb(n, i) for i in range(min(lost, gained) + 1))
    return min(1.0, 2 * outcomes / 2**n)


# ------------------------------------------------------------------------------ KoBEST's files


def find(data: Path, name: str, split: str) -> Path:
    """Find the file of a split: v1.0/BoolQ/dev.tsv, as KoBEST was published, or Hugging Face's
    boolq/validation.jsonl. UserError if there is neither."""
    folder = data / TASKS[name].folder
    # The published repository has v1.0/BoolQ/…; --data may be that, or v1.0 itself.
    if (data / "v1.0").is_dir():
        folder = data / "v1.0" / TASKS[name].folder
    published = folder / f"{split}.tsv"

    # Hugging Face calls the dev split "validation", and the originated task has no folder of its
    # own: sentineg/test_originated.jsonl.
    base, originated, _ = name.partition("_originated")
    stem = split
    if split == "dev":
        stem = "validation"
    hugging_face = data / base / f"{stem}{originated}.jsonl"

    for file in (published, hugging_face):
        if file.is_file():
            return file
    # The advice depends on whether another split of the task is there.
    advice = ("--data takes the folder of KoBEST, which holds v1.0/BoolQ, v1.0/COPA, … "
              "or boolq, copa, …")
    others = sorted(path.stem for path in folder.glob("*.tsv"))
    if others:
        advice = f"try --split {others[0]}"
    raise cli.UserError(f"no file {published}, nor {hugging_face}; {advice}")


def read(data: Path, name: str, split: str, limit: int | None = None) -> list[Example]:
    """Read the first `limit` examples of a split, in the order of its file.

    UserError, with file and row, if a cell is missing, empty or has an unknown value.
    """
    file = find(data, name, split)
    task = TASKS[name]
    columns = task.columns
    values = task.values
    if file.suffix == ".tsv":
        rows = read_tsv(file)
    else:
        # Hugging Face's columns have the names of the template fields, and labels count from 0.
        rows = read_json_lines(file)
        columns = {field: field for field in columns}
        values = {**values, "label": {str(i): i for i in range(len(task.choices))}}
    if not rows:
        raise cli.UserError(f"{file} has no rows")

    examples = []
    # Fields that a task lists under `values` (the label, COPA's question) are translated; the
    # others go into the templates as they are in the file.
    for row, cells in enumerate(rows[:limit], start=1):
        fields = {}
        for field, column in columns.items():
            fields[field] = read_cell(cells, column, values.get(field), f"{file}, row {row}")
        context = task.prompt.format(**fields)
        choices = [choice.format(**fields) for choice in task.choices]
        examples.append(Example(row, context, choices, fields["label"]))
    return examples


def read_tsv(file: Path) -> list[dict[str, str]]:
    """Read the rows of a TSV file as {column: cell}.

    Python's csv with its default quoting gives the same cells as pandas, which Hugging Face's
    loader uses: twelve rows of BoolQ have quotes that both strip.
    """
    # With newline="" csv handles line ends itself: inside quotes they belong to the cell.
    lines = []
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            for cells in csv.reader(stream, delimiter="\t"):
                if cells:
                    lines.append(cells)
    except (csv.Error, ValueError) as error:
        raise cli.UserError(f"{file}, row {len(lines)}: not a UTF-8 table with tabs between its "
                            f"columns ({error})") from None
    if not lines:
        return []
    # Missing cells at the end of a row count as empty, which read_cell reports if they are needed.
    header = lines[0]
    rows = []
    for cells in lines[1:]:
        missing = [""] * (len(header) - len(cells))
        rows.append(dict(zip(header, cells + missing, strict=False)))
    return rows


def read_json_lines(file: Path) -> list[dict]:
    """Read the rows of a JSON Lines file."""
    rows = []
    try:
        with open(file, encoding="utf-8-sig") as stream:
            for line in stream:
                if line.strip():
                    rows.append(dict(json.loads(line)))
    except (ValueError, TypeError) as error:
        raise cli.UserError(f"{file}, row {len(rows) + 1}: not a UTF-8 table with one JSON object "
                            f"per line ({error})") from None
    return rows


def read_cell(cells: dict, column: str, known: dict | None, where: str) -> str | int:
    """The text of a cell, or what it means according to `known`. `where` is for the UserError."""
    if column not in cells:
        raise cli.UserError(f"{where}: no column {column!r}, only {', '.join(cells)}")
    value = cells[column]
    if value is None or not str(value).strip():
        raise cli.UserError(f"{where}: column {column!r} is empty")
    text = str(value)
    if known is None:
        return text
    spelling = text.strip().lower()
    if spelling not in known:
        raise cli.UserError(f"{where}: {column!r} is {text!r}, not one of {', '.join(known)}")
    return known[spelling]


# ----------------------------------------------------------------------------- two sets of scores


def compare(one: Path, other: Path) -> None:
    """Print what changed between two files of --out: metrics, McNemar's test, the rows.

    UserError if the two do not have the same examples.
    """
    before = read_scores(one)
    after = read_scores(other)
    names = [name for name in before if name in after]
    if not names:
        raise cli.UserError(f"{one} and {other} hold no task in common; did --out write both?")
    all_lost = 0
    all_gained = 0
    for name in names:
        if not same_examples(before[name], after[name]):
            raise cli.UserError(f"{one} and {other} hold different examples of {name}; "
                                "score both with the same --split and --limit")
        # List the rows whose prediction changed. Predictions that stayed the same say nothing about
        # which of the two models is better.
        lost = []
        gained = []
        still_wrong = []
        for was, now in zip(before[name]["examples"], after[name]["examples"], strict=True):
            if was["prediction"] == now["prediction"]:
                continue
            if was["prediction"] == was["label"]:
                lost.append(was["id"])
            elif now["prediction"] == was["label"]:
                gained.append(was["id"])
            else:
                still_wrong.append(was["id"])
        all_lost += len(lost)
        all_gained += len(gained)

        acc = f"{before[name]['acc']:.4f} → {after[name]['acc']:.4f}"
        f1 = f"{before[name]['macro_f1']:.4f} → {after[name]['macro_f1']:.4f}"
        p = mcnemar(len(lost), len(gained))
        print(f"{name:10} acc {acc}   macro-F1 {f1}   McNemar's p {p:.3g}")
        print(f"{'':10} lost {len(lost)}: {lost}")
        print(f"{'':10} gained {len(gained)}: {gained}")
        print(f"{'':10} wrong by another answer: {still_wrong}")

    # All tasks together have more changes, so smaller differences become significant.
    p = mcnemar(all_lost, all_gained)
    print(f"{'together':10} lost {all_lost}, gained {all_gained}, McNemar's p {p:.3g}")


def read_scores(file: Path) -> dict[str, dict]:
    """Read the tasks of a file that --out wrote; empty for any other JSON file."""
    scores = cli.read_json(file)
    if not isinstance(scores, dict):
        return {}
    return scores.get("tasks", {})


def same_examples(one: dict, other: dict) -> bool:
    """Do two results of a task have the same rows with the same labels?"""
    # Rows of different splits have the same numbers; the labels tell them apart.
    first = [(example["id"], example["label"]) for example in one["examples"]]
    second = [(example["id"], example["label"]) for example in other["examples"]]
    return first == second


# ------------------------------------------------------------------------------- the program


def main(argv: list[str] | None = None) -> None:
    """Score a model on the tasks, or compare two files of scores."""
    parser = cli.Parser(description=__doc__, prog="eval_kobest.py")
    flag = parser.add_argument
    flag("--model", type=Path,
         help="model directory, with its tokenizer (required, unless --compare is given)")
    flag("--data", type=Path,
         help="folder of KoBEST: its repository, the folder v1.0 in it, or Hugging Face's files as "
              "JSON lines (required, unless --compare is given)")
    flag("--tasks", nargs="+", default=KOBEST, choices=list(TASKS), metavar="TASK",
         help="tasks to score, of " + ", ".join(TASKS))
    flag("--split", default="test", choices=["test", "dev", "train"],
         help="split of each task to score")
    flag("--limit", type=int, help="score only the first N examples of each task (default: all)")
    flag("--shots", type=int, default=0,
         help="number of solved examples of the train split to put before each context")
    flag("--answer_only", action="store_true",
         help="as a control, score the answers without their context")
    flag("--batch_tokens", type=int, default=2048,
         help="tokens per forward pass, at most, padding included")
    flag("--out", type=Path, help="JSON file to write, with the scores of every example")
    flag("--compare", nargs=2, type=Path, metavar="JSON",
         help="compare two files that --out wrote, and score nothing")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    if args.compare:
        compare(*args.compare)
        return
    if not args.model or not args.data:
        parser.error("the following arguments are required: --model, --data (or --compare alone)")
    cli.set_device(args)

    # Check the flags now, not after an hour of scoring.
    if args.limit is not None and args.limit < 1:
        raise cli.UserError(f"--limit {args.limit}: give 1 or more")
    if args.shots < 0:
        raise cli.UserError(f"--shots {args.shots}: give 0 or more")
    if args.batch_tokens < 1:
        raise cli.UserError(f"--batch_tokens {args.batch_tokens}: give 1 or more")
    if args.shots and args.answer_only:
        raise cli.UserError("--answer_only leaves out the context, to which --shots belong; choose "
                            "one")
    if args.out and args.out.is_dir():
        raise cli.UserError(f"--out {args.out} is a folder; name a file in it")
    with parallel.process_group(args.device):
        score(args)


def score(args) -> None:
    """Read the tasks and the model, score them, and print and write the results on rank 0."""
    settings = cli.settings(args)

    # Read the examples before the model, so that a mistake in --data is found within a second.
    examples = {}
    for name in args.tasks:
        examples[name] = read(args.data, name, args.split, args.limit)
        if args.shots:
            pool = read(args.data, name.removesuffix("_originated"), "train")
            examples[name] = add_shots(examples[name], pool, args.shots)

    vocabulary, llama = sample.load(args.model, args.device, getattr(torch, args.dtype))
    tokens = encoder(vocabulary, args.model)
    # The control: each answer is at the beginning of a document, without a question.
    context = None
    if args.answer_only:
        context = vocabulary.encode("", bos=True)

    results = {}
    for name in examples:
        start = time.perf_counter()
        results[name] = evaluate(
            llama, tokens, name, examples[name], args.batch_tokens, context)
        if parallel.rank() == 0:
            print_task(name, results[name], time.perf_counter() - start)

    # Every rank has all the scores; rank 0 prints and writes them.
    means = mean_scores(results)
    if parallel.rank() == 0:
        words = "   ".join(f"{key} {value:.4f}" for key, value in means.items())
        print(f"{args.split}, {args.shots}-shot   {words}")
        if args.out:
            cli.write_json(args.out, {"settings": settings, "tasks": results, **means})


def print_task(name: str, result: dict, seconds: float) -> None:
    """Print a task's scores in one line, with the accuracies of chance and of the most common
    answer; and another line if context was lost."""
    low, high = result["ci95"]
    parts = []
    parts.append(f"{name:10} {len(result['examples']):6}")
    parts.append(f"acc {result['acc']:.4f} [{low:.4f}, {high:.4f}]")
    parts.append(f"(chance {result['chance']:.4f}, majority {result['majority']:.4f})")
    parts.append(f"macro-F1 {result['macro_f1']:.4f}")
    if "acc_norm" in result:
        parts.append(f"acc_norm {result['acc_norm']:.4f}")
    parts.append(f"{seconds:.1f} s")
    print("   ".join(parts), flush=True)

    if result["truncated"]:
        n_requests = sum(len(example["loglikelihoods"]) for example in result["examples"])
        print(f"{'':10} {result['truncated']} of {n_requests} requests are longer than the model's "
              "positions and lost the left end of their context", flush=True)


def mean_scores(results: dict[str, dict]) -> dict[str, float]:
    """Means over the five tasks of KoBEST, as far as they were scored; over all, if none was."""
    counted = [results[name] for name in results if name in KOBEST]
    if not counted:
        counted = list(results.values())
    acc = [result["acc"] for result in counted]
    f1 = [result["macro_f1"] for result in counted]
    # The harness's score of the group weights every example equally, so large tasks count more.
    sizes = [len(result["examples"]) for result in counted]
    return {
        "mean_acc": float(np.mean(acc)),
        "mean_macro_f1": float(np.mean(f1)),
        "weighted_acc": float(np.average(acc, weights=sizes)),
    }


if __name__ == "__main__":
    cli.run(main)
