"""KoBEST scoring, examples a second: eval_kobest.py against lm-evaluation-harness with transformers.

The same weights, the same requests, the same threads; tokenizing counts, loading the model does not. Batches hold as
many tokens: the harness counts sequences, so it gets --batch_tokens over the mean length of the task's inputs (both pad
to the longest in a batch). The two take turns, task by task; a turn's seconds add up to "all five". On a CPU they are
seconds of this process's work, all threads together: with one thread, what the clock would show on an idle machine.

    OMP_NUM_THREADS=1 python -m bench.kobest --model DIR --data KOBEST_DIR           # pip install lm-eval transformers
"""
import time
from pathlib import Path

import numpy as np
import torch

import eval_kobest as kobest
import model
import tokenizer
from bench import measure
from common import cli


def contenders(args, llama: model.Llama, lm, tokens, name: str) -> tuple[int, dict]:
    """(number of examples, {who: scores the task → (seconds, log-likelihoods)}) of one task."""
    from lm_eval.api.instance import Instance
    examples = kobest.read(args.data, name, args.split, args.limit)
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=(example.context, " " + choice), idx=i)
                for example in examples for i, choice in enumerate(example.choices)]
    lengths = [len(context + answer) - 1 for e in examples for context, answer in kobest.encode(tokens, e)]
    sequences = max(1, round(args.batch_tokens / np.mean(lengths)))

    def ours():
        result = kobest.evaluate(llama, tokens, name, examples, args.batch_tokens)
        return [value for example in result["examples"] for value in example["loglikelihoods"]]

    def harness():
        lm.batch_size_per_gpu = sequences
        return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]

    def timed(score):
        clock = time.process_time if args.device == "cpu" else time.perf_counter
        start, scores = clock(), score()        # a list of floats: the device has finished
        return clock() - start, scores

    return len(examples), {"ours": lambda: timed(ours), "harness": lambda: timed(harness)}


def main(argv: list[str] | None = None) -> None:
    """Score the same examples with both, in turns; compare every number."""
    parser = cli.Parser(description=__doc__, prog="bench.kobest")
    flag = parser.add_argument
    flag("--model", type=Path, required=True, help="model directory, with its tokenizer")
    flag("--data", type=Path, required=True, help="folder of KoBEST")
    flag("--split", default="dev", choices=["dev", "test", "train"], help="which file of each task")
    flag("--limit", type=int, help="the first N examples of each task; None: all")
    flag("--batch_tokens", type=int, default=2048, help="tokens a forward pass")
    flag("--runs", type=int, default=5, help="turns")
    cli.add_device(parser)
    args = parser.parse_args(argv)
    cli.set_device(args)
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise cli.UserError(f"the rival is missing ({error}); pip install lm-eval transformers accelerate") from None
    llama = model.load(args.model, args.device, getattr(torch, args.dtype))
    lm = HFLM(pretrained=str(args.model), dtype=args.dtype, device=args.device, batch_size=1)
    tokens = kobest.encoder(tokenizer.load(args.model), args.model)
    sizes, calls = {}, {}
    for name in kobest.KOBEST:
        sizes[name], both = contenders(args, llama, lm, tokens, name)
        calls |= {(name, who): call for who, call in both.items()}
    turns = measure.interleaved(calls, args.runs)
    seconds = {key: [s for s, _ in figures] for key, figures in turns.items()}
    for who in ("ours", "harness"):
        seconds["all five", who] = [sum(turn) for turn in zip(*(seconds[n, who] for n in sizes), strict=True)]
    rows = []
    for name in [*sizes, "all five"]:
        n, ratios = sizes.get(name, sum(sizes.values())), np.divide(seconds[name, "harness"], seconds[name, "ours"])
        ratio, low, high = measure.quantiles(ratios.tolist())
        apart = max(np.abs(np.subtract(turns[t, "ours"][0][1], turns[t, "harness"][0][1])).max()
                    for t in sizes if name in (t, "all five"))
        rows.append({"task": name, "examples": n,
                     **{f"{w}, a second": n / measure.quantiles(seconds[name, w])[0] for w in ("ours", "harness")},
                     "ratio": ratio, "20 %": low, "80 %": high, "largest difference, nats": float(apart)})
    measure.report("kobest", rows, measure.machine("transformers", "lm_eval") | {
        "dtype": args.dtype, "device": args.device, "batch_tokens": args.batch_tokens, "split": args.split,
        "runs": args.runs, "model": llama.config.__dict__ | {"parameters": sum(p.numel() for p in llama.parameters())}})


if __name__ == "__main__":
    cli.run(main)
