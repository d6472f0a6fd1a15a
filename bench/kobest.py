"""KoBEST scoring, examples per second: eval_kobest.py beside lm-evaluation-harness on transformers.

The same weights, the same requests, the same threads. Tokenizing counts, loading the model does
not. Batches hold as many tokens: the harness counts sequences, so it gets --batch_tokens over the
mean length of the task's inputs (both pad to the longest in a batch). The two take turns, task by
task; a turn's seconds add up to "all five". On a CPU they are seconds of this process's work, all
threads together: with one thread, what the clock would show on an idle machine.

    pip install lm-eval transformers accelerate
    OMP_NUM_THREADS=1 python -m bench.kobest --model DIR --data KOBEST_DIR
"""
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import eval_kobest as kobest
import sample
from bench import measure
from common import cli

WHO = ("ours", "harness")


def contenders(args, llama, lm, tokens, name: str, examples: list[kobest.Example]) -> dict:
    """{who: a function that scores the task and returns (seconds, log-likelihoods)}."""
    from lm_eval.api.instance import Instance
    requests = []
    lengths = []
    for example in examples:
        for i, choice in enumerate(example.choices):
            requests.append(Instance(request_type="loglikelihood", doc={}, idx=i,
                                     arguments=(example.context, " " + choice)))
        for context, answer in kobest.encode(tokens, example):
            lengths.append(len(context + answer) - 1)
    sequences = max(1, round(args.batch_tokens / np.mean(lengths)))

    def ours() -> list[float]:
        result = kobest.evaluate(llama, tokens, name, examples, args.batch_tokens)
        values = []
        for example in result["examples"]:
            values += example["loglikelihoods"]
        return values

    def harness() -> list[float]:
        lm.batch_size_per_gpu = sequences
        return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]

    return {"ours": timed(ours, args.device), "harness": timed(harness, args.device)}


def timed(score: Callable[[], list[float]], device: str) -> Callable:
    """`score` with its seconds: () → (seconds, log-likelihoods)."""
    clock = time.process_time if device == "cpu" else time.perf_counter

    def run() -> tuple[float, list[float]]:
        start = clock()
        scores = score()        # a list of floats: the device has finished
        return clock() - start, scores

    return run


def row(task: str, examples: int, seconds: dict[str, list[float]], difference: float) -> dict:
    """A row of the table: examples per second of both, and the ratio of their times, by turns."""
    ratios = np.divide(seconds["harness"], seconds["ours"])
    ratio, low, high = measure.quantiles(ratios.tolist())
    result = {"task": task, "examples": examples}
    for who in WHO:
        median, _, _ = measure.quantiles(seconds[who])
        result[f"{who}, per second"] = examples / median
    result |= {"ratio": ratio, "20 %": low, "80 %": high}
    result["largest difference, nats"] = difference
    return result


def main(argv: list[str] | None = None) -> None:
    """Score the same examples with both, in turns; compare every number."""
    parser = cli.Parser(description=__doc__, prog="bench.kobest")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="model directory, with its tokenizer")
    flag("--data", type=Path, required=True, help="folder of KoBEST")
    flag("--split", default="dev", choices=["dev", "test", "train"], help="which file of each task")
    flag("--limit", type=int, help="the first N examples of each task; if not given, all")
    flag("--batch_tokens", type=int, default=2048, help="tokens per forward pass")
    flag("--runs", type=int, default=5, help="turns")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    cli.set_device(args)
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise cli.UserError(f"the rival is missing ({error}); pip install lm-eval transformers "
                            "accelerate") from None
    vocabulary, llama = sample.load(args.model, args.device, getattr(torch, args.dtype))
    tokens = kobest.encoder(vocabulary, args.model)
    lm = HFLM(pretrained=str(args.model), dtype=args.dtype, device=args.device, batch_size=1)

    sizes = {}
    calls = {}
    for name in kobest.KOBEST:
        examples = kobest.read(args.data, name, args.split, args.limit)
        sizes[name] = len(examples)
        for who, call in contenders(args, llama, lm, tokens, name, examples).items():
            calls[name, who] = call
    turns = measure.interleaved(calls, args.runs)       # {(task, who): [(seconds, scores), …]}

    # A row per task; on the way, each turn's total over the tasks.
    rows = []
    differences = []
    totals = {who: [0.0] * args.runs for who in WHO}
    for name in sizes:
        seconds = {who: [s for s, _ in turns[name, who]] for who in WHO}
        for who in WHO:
            totals[who] = np.add(totals[who], seconds[who]).tolist()
        _, ours = turns[name, "ours"][0]
        _, harness = turns[name, "harness"][0]
        differences.append(float(np.abs(np.subtract(ours, harness)).max()))
        rows.append(row(name, sizes[name], seconds, differences[-1]))
    rows.append(row("all five", sum(sizes.values()), totals, max(differences)))

    parameters = sum(p.numel() for p in llama.parameters())
    conditions = measure.machine("transformers", "lm_eval") | {
        "dtype": args.dtype,
        "device": args.device,
        "batch_tokens": args.batch_tokens,
        "split": args.split,
        "runs": args.runs,
        "model": llama.config.__dict__ | {"parameters": parameters},
    }
    measure.report("kobest", rows, conditions)


if __name__ == "__main__":
    cli.run(main)
