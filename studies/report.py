"""Gather what the speedrun measured into out/report.json and out/report.md. Computes nothing that was not run.

    python -m studies.report --out out --seconds 540
"""
import json
import math
from pathlib import Path

from common import cli
from studies.plain import bytes_read, seconds, steps

ARMS = {"base": "English base, untouched", "plain": "plain, equal bytes", "plain_equal_time": "plain, equal time",
        "full": "merged tokenizer, one full stage", "nanowhale": "nanowhale: embed, odd, even, LoRA"}
RUNS = {"plain": "run_plain", "plain_equal_time": "run_plain_equal_time", "full": "run_full", "nanowhale": "run"}
TASKS = ("boolq", "copa", "hellaswag", "sentineg", "wic")


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table; numbers to the right."""
    shown = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in
                     [header, ["---"] + ["---:"] * (len(header) - 1), *shown])


def validations(run: Path) -> list[dict]:
    """The lines of a run's metrics that are validations."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "validation" in record]


def lines(path: Path) -> list[dict]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def found(planted: dict, removed: list[dict], masked: list[dict]) -> dict:
    """Precision and recall of each kind of planted fault: {kind: {"planted", "found", "precision", "recall"}}.

    Of two copies the cleaner may keep either, so a pair counts as found when one of the two was removed, and removing
    either counts as right. A fault that an earlier step removed for its own reason is neither a hit nor a miss.
    """
    gone = {record["id"]: record for record in removed}
    caught = {"exact": {i for i, r in gone.items() if r["step"] == "exact"},
              "near": {i for i, r in gone.items() if r["step"] == "near"},
              "junk": {i for i, r in gone.items() if r["step"] == "rules"},
              "leaked": {i for i, r in gone.items() if r["step"] == "decontaminate"},
              "personal": {record["id"] for record in masked}}
    result = {}
    for kind, hits in caught.items():
        pairs = [pair if isinstance(pair, list) else [pair] for pair in planted[kind]]
        members = {i for pair in pairs for i in pair}
        eligible = [p for p in pairs if any(i in hits for i in p) or not any(i in gone for i in p)]
        right = sum(any(i in hits for i in pair) for pair in eligible)
        false = [i for i in hits if i not in members]
        result[kind] = {"planted": len(pairs), "found": right, "recall": right / max(1, len(eligible)),
                        "precision": (len(hits) - len(false)) / max(1, len(hits)), "removed": len(hits)}
    return result


def mcnemar(a: list[dict], b: list[dict]) -> float:
    """Exact two-sided p that two lists of examples are equally accurate (McNemar, 1947), by the binomial law."""
    right = [(x["prediction"] == x["label"], y["prediction"] == y["label"]) for x, y in zip(a, b, strict=True)]
    only_a, only_b = right.count((True, False)), right.count((False, True))
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)


def gather(out: Path, total_seconds: float) -> dict:
    """Everything that report.json holds, under the keys that DESIGN and README name."""
    corpus = {language: cli.read_json(out / f"clean/{language}/report.json") for language in ("ko", "en")}
    planted = cli.read_json(out / "world/planted.json")
    for language, report in corpus.items():
        folder = out / "clean" / language
        report["planted"] = found(planted[language], lines(folder / "removed.jsonl"), lines(folder / "masked.jsonl"))
    scores = {arm: {language: v["bits_per_byte"] for language, v in validations(out / run)[-1]["validation"].items()}
              for arm, run in RUNS.items()}
    scores["base"] = {language: v["bits_per_byte"]
                      for language, v in validations(out / "run_plain")[0]["validation"].items()}
    kobest = {}
    for arm in ARMS:
        full, alone = (cli.read_json(out / f"kobest/{arm}{kind}.json") for kind in ("", ".answer_only"))
        kobest[arm] = {task: {"acc": full["tasks"][task]["acc"], "ci95": full["tasks"][task]["ci95"],
                              "answer_only": alone["tasks"][task]["acc"]} for task in TASKS}
        kobest[arm]["mean_acc"] = full["mean_acc"]
    examples = {arm: cli.read_json(out / f"kobest/{arm}.json")["tasks"] for arm in ARMS}
    pooled = {arm: [e for task in ("copa", "hellaswag") for e in examples[arm][task]["examples"]] for arm in ARMS}
    merged = list(cli.read_json(out / "tokens.json")["tokenizers"].values())[-1]  # the base's comes first
    return {"corpus": corpus, "tokenizer": merged, "init": cli.read_json(out / "probe.json"),
            "token_ratio": next(n["token_ratio"] for path, n in merged["inputs"].items() if path.endswith("ko")),
            "stages": stage_rows(out / "run"), "entropy": cli.read_json(out / "world/entropy.json"),
            "bits_per_byte": scores, "kobest": kobest,
            "p_value_against_nanowhale": {arm: mcnemar(pooled[arm], pooled["nanowhale"])
                                          for arm in ARMS if arm != "nanowhale"},
            "training": {arm: {"seconds": seconds(out / run), "megabytes": sum(bytes_read(out / run).values()) / 1e6,
                               "tokens": steps(out / run)[-1]["tokens"],
                               "peak_memory": max(s["peak_memory"] for s in steps(out / run))}
                         for arm, run in RUNS.items()},
            "seconds": total_seconds}


def stage_rows(run: Path) -> list[dict]:
    """One row a stage, like the paper's table: training loss (mean of its last tenth) and validation loss."""
    rows = []
    for record in validations(run)[1:]:
        losses = [s["loss"] for s in steps(run) if s["stage"] == record["stage"]]
        tail = losses[-max(1, len(losses) // 10):]
        name = next(p.name for p in (run / "stages").iterdir() if p.name.startswith(f"{record['stage']}-"))
        rows.append({"stage": name.partition("-")[2], "tokens": record["tokens"], "train_loss": sum(tail) / len(tail),
                     **{f"{language}_{key}": v[key] for language, v in record["validation"].items()
                        for key in ("loss", "bits_per_byte")}})
    return rows


def corpus_section(corpus: dict) -> list[str]:
    """What each step left, and what was found of the planted faults."""
    parts = ["## 1. Corpus", ""]
    for language, name in (("ko", "Korean"), ("en", "English")):
        one = corpus[language]
        total = one["input"]["bytes"]
        steps_left = [["raw", one["input"]["documents"], total / 1e6, 1.0]]
        steps_left += [[s["step"], s["documents_out"], s["bytes_out"] / 1e6, s["bytes_out"] / total]
                       for s in one["steps"]]
        faults = [[kind, *(f[k] for k in ("planted", "found", "recall", "precision"))]
                  for kind, f in one["planted"].items() if f["planted"]]
        parts += [f"{name}:", "", table(["after", "documents", "MB", "share of bytes"], steps_left), "",
                  table(["planted fault", "planted", "found", "recall", "precision"], faults), ""]
    return parts


def arms_section(r: dict) -> list[str]:
    """Bits per byte, time and text of every arm."""
    floor, rows = r["entropy"], []
    for arm, name in ARMS.items():
        used = r["training"].get(arm)
        rows.append([name, r["bits_per_byte"][arm]["ko"], r["bits_per_byte"][arm]["en"],
                     *([round(used["seconds"]), used["tokens"], used["megabytes"]] if used else ["", "", ""])])
    return ["## The arms", "",
            f"The generator's own entropy, the floor: {floor['ko']:.3f} (ko), {floor['en']:.3f} (en).", "",
            table(["arm", "bits a byte ko", "bits a byte en", "seconds", "tokens", "MB read"], rows), ""]


def kobest_section(r: dict) -> list[str]:
    """Accuracies with their intervals, the control, and the test against nanowhale."""
    kobest = r["kobest"]
    cell = lambda s: f"{s['acc']:.3f} [{s['ci95'][0]:.3f}, {s['ci95'][1]:.3f}]"
    return ["## KoBEST (toy test split, zero-shot accuracy)", "",
            table(["arm", *TASKS, "mean"], [[name, *(cell(kobest[arm][t]) for t in TASKS), kobest[arm]["mean_acc"]]
                                            for arm, name in ARMS.items()]), "",
            "The control, answers scored without their context:", "",
            table(["arm", *TASKS], [[name, *(kobest[arm][t]["answer_only"] for t in TASKS)]
                                    for arm, name in ARMS.items()]), "",
            "Against nanowhale on COPA and HellaSwag together (McNemar's exact test): "
            + ", ".join(f"{arm} p = {p:.3g}" for arm, p in r["p_value_against_nanowhale"].items()) + "."]


def render(r: dict) -> str:
    """report.json as Markdown, for reading: the four ideas in order, then the scores. Intervals are 95 %."""
    columns = ("stage", "tokens", "train_loss", "ko_loss", "ko_bits_per_byte", "en_bits_per_byte")
    merged, methods = r["tokenizer"], r["init"]["bits_per_byte"]
    return "\n".join([
        "# What the speedrun found", "", f"{r['seconds']:.0f} seconds in all, one seed, on the built-in world. "
        "Differences inside the intervals are no differences.", "", *corpus_section(r["corpus"]),
        "## 2. Tokenizer", "",
        f"Korean takes {r['token_ratio']:.3f} times the base's tokens; the embedding has "
        f"{merged['embedding_growth']:.2f} times its rows; {merged['added']} pieces were added, "
        f"{merged['unreachable']} of them unreachable.", "",
        "## 3. Initialisation", "", "Korean bits per byte before and after a few steps of embedding and head alone, on "
        "the same batches.", "",
        table(["method", *(f"step {step}" for step in next(iter(methods.values())))],
              [[method, *row.values()] for method, row in methods.items()]), "",
        "## 4. Stages", "",
        table(["stage", "tokens so far", "train loss", "eval loss ko", "bits a byte ko", "bits a byte en"],
              [[s[k] for k in columns] for s in r["stages"]]), "",
        *arms_section(r), *kobest_section(r)]) + "\n"


def main() -> None:
    """Write report.json, then report.md, and print the latter."""
    parser = cli.Parser(description=__doc__, prog="studies.report")
    parser.add_argument("--out", type=Path, default=Path("out"), help="the speedrun's folder")
    parser.add_argument("--seconds", type=float, required=True, help="what the whole run took")
    args = parser.parse_args()
    report = gather(args.out, args.seconds)
    cli.write_json(args.out / "report.json", report)
    text = render(report)
    with cli.new_file(args.out / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main)
