"""Gather what the speedrun measured into out/report.json and out/report.md; nothing runs again.

    python -m studies.report --out out --seconds 540
"""
from pathlib import Path

import torch

import eval_kobest
import model
from common import cli, plan
from studies.runs import (
    bytes_read,
    check_finished,
    read_jsonl,
    run_settings,
    seconds,
    steps,
    validations,
)

# The arms in the order of the tables: what each is called, and the folder of its run.
ARMS = {
    "base": "English base, untouched",
    "plain": "plain, base tokenizer, equal time",
    "full": "merged tokenizer, one full stage",
    "nanowhale": "nanowhale: embed, odd, even, LoRA",
}
RUNS = {
    "plain": "run_plain",
    "full": "run_full",
    "nanowhale": "run",
}
TASKS = ("boolq", "copa", "hellaswag", "sentineg", "wic")


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table; numbers are aligned to the right."""
    alignment = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, alignment]
    for row in rows:
        lines.append([f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- What the programs wrote, gathered -----------------------------------------------------------


def check_complete(out: Path) -> None:
    """UserError that names the first arm without a finished run or scores."""
    for folder in RUNS.values():
        check_finished(out / folder)
    for arm in ARMS:
        for file in (scores_file(out, arm), scores_file(out, arm, answer_only=True)):
            if not file.exists():
                raise cli.UserError(
                    f"{file} is missing: {arm} was not scored; bash speedrun.sh does what is left"
                )
        if not sample_file(out, arm).exists():
            raise cli.UserError(
                f"{sample_file(out, arm)} is missing: {arm} has not answered the prompt; "
                "bash speedrun.sh does what is left"
            )


def scores_file(out: Path, arm: str, answer_only: bool = False) -> Path:
    """Where the speedrun puts an arm's KoBEST scores, or its control's."""
    kind = ".answer_only" if answer_only else ""
    return out / "kobest" / f"{arm}{kind}.json"


def sample_file(out: Path, arm: str) -> Path:
    """Where the speedrun puts what an arm answers to the prompt."""
    return out / "samples" / f"{arm}.txt"


def gather(out: Path, total_seconds: float) -> dict:
    """Everything that report.json holds. UserError if an arm is missing."""
    check_complete(out)
    tokenizers = cli.read_json(out / "tokens.json")["tokenizers"]
    merged = list(tokenizers.values())[-1]  # the base's comes first
    examples = {arm: pooled_examples(out, arm) for arm in ARMS}
    rivals = [arm for arm in ARMS if arm != "nanowhale"]
    return {
        "corpus": {language: cleaning_report(out, language) for language in ("ko", "en")},
        "tokenizer": merged,
        "init": cli.read_json(out / "probe.json"),
        "token_ratio": korean_token_ratio(merged),
        "stages": stage_rows(out / "run"),
        "entropy": cli.read_json(out / "world" / "entropy.json"),
        "bits_per_byte": {arm: bits_per_byte(out, arm) for arm in ARMS},
        "kobest": {arm: accuracies(out, arm) for arm in ARMS},
        "against_nanowhale": {
            arm: compare(examples[arm], examples["nanowhale"]) for arm in rivals
        },
        "training": {arm: training_cost(out / folder) for arm, folder in RUNS.items()},
        "samples": {arm: sample_file(out, arm).read_text(encoding="utf-8") for arm in ARMS},
        "seconds": total_seconds,
    }


def cleaning_report(out: Path, language: str) -> dict:
    """The report of a language's cleaning, and what it found of the planted faults."""
    folder = out / "clean" / language
    planted = cli.read_json(out / "world" / "planted.json")[language]
    report = cli.read_json(folder / "report.json")
    removed = read_jsonl(folder / "removed.jsonl")
    changed = read_jsonl(folder / "changed.jsonl")
    report["planted"] = found(planted, removed, changed)
    return report


def found(planted: dict, removed: list[dict], changed: list[dict]) -> dict:
    """Precision and recall of each kind of planted fault:
    {kind: {"planted", "found", "recall", "precision", "removed"}}.

    Of two copies the cleaner may keep either, so a pair counts as found when one of the two was
    removed, and removing either counts as right. A fault that an earlier step removed for its own
    reason is neither a hit nor a miss.
    """
    removed_ids = {record["id"] for record in removed}
    # Which step of the cleaning should find which kind of fault.
    caught = {
        "exact": ids_removed_by(removed, "exact"),
        "near": ids_removed_by(removed, "near"),
        "junk": ids_removed_by(removed, "rules"),
        "leaked": ids_removed_by(removed, "decontaminate"),
        "personal": {record["id"] for record in changed if record["step"] == "mask"},
    }
    result = {}
    for kind, hits in caught.items():
        # Copies are planted in pairs, the other faults one by one.
        groups = [fault if isinstance(fault, list) else [fault] for fault in planted[kind]]
        members = set()
        right = 0
        eligible = 0
        for group in groups:
            members.update(group)
            if not hits.isdisjoint(group):
                right += 1
                eligible += 1
            elif removed_ids.isdisjoint(group):
                eligible += 1  # a miss: no other step took it away first

        result[kind] = {
            "planted": len(groups),
            "found": right,
            "recall": right / max(1, eligible),
            "precision": len(hits & members) / max(1, len(hits)),
            "removed": len(hits),
        }
    return result


def ids_removed_by(removed: list[dict], step: str) -> set[str]:
    """Ids of the documents that a step of the cleaning removed."""
    return {record["id"] for record in removed if record["step"] == step}


def korean_token_ratio(merged: dict) -> float:
    """Tokens of Korean with the merged tokenizer, the base's = 1."""
    for path, numbers in merged["inputs"].items():
        if path.endswith("ko"):
            return numbers["token_ratio"]
    raise cli.UserError("tokens.json has no --input whose name ends in ko: was it the speedrun's?")


def stage_rows(run: Path) -> list[dict]:
    """One row per stage, like the paper's table: training loss (mean of the stage's last tenth) and
    validation losses."""
    names = {}
    for folder in (run / "stages").iterdir():
        number, _, name = folder.name.partition("-")
        names[number] = name

    rows = []
    for record in validations(run)[1:]:  # the first is that of the start
        losses = [step["loss"] for step in steps(run) if step["stage"] == record["stage"]]
        tail = losses[-max(1, len(losses) // 10):]
        row = {
            "stage": names[str(record["stage"])],
            "tokens": record["tokens"],
            "train_loss": sum(tail) / len(tail),
        }
        for language, scores in record["validation"].items():
            row[f"{language}_loss"] = scores["loss"]
            row[f"{language}_bits_per_byte"] = scores["bits_per_byte"]
        rows.append(row)
    return rows


def bits_per_byte(out: Path, arm: str) -> dict[str, float]:
    """{language: bits per byte} at the end of an arm's run."""
    if arm == "base":
        # Plain training starts from the base, with its tokenizer: its first validation.
        record = validations(out / RUNS["plain"])[0]
    else:
        record = validations(out / RUNS[arm])[-1]
    return {language: scores["bits_per_byte"] for language, scores in record["validation"].items()}


def training_cost(run: Path) -> dict:
    """Seconds in training steps, megabytes of text read, tokens, peak memory in bytes, and the
    bytes of state that its largest stage holds."""
    trained = steps(run)
    by_stage = state_bytes(run)
    largest = max(by_stage, key=by_stage.get)
    return {
        "seconds": seconds(run),
        "megabytes": sum(bytes_read(run).values()) / 1e6,
        "tokens": trained[-1]["tokens"],
        "peak_memory": max(step["peak_memory"] for step in trained),
        "state_bytes": by_stage[largest],
        "largest_stage": largest,
        "state_bytes_by_stage": by_stage,
    }


def state_bytes(run: Path) -> dict[str, int]:
    """{stage: bytes of its weights, gradients and moments}, by common/plan.py.

    This is what stages save. Activations come on top, and do not depend much on the stage.
    """
    settings = run_settings(run)
    config = model.Config.read(run / "model")
    by_stage = {}
    for text in settings["stages"]:
        stage = plan.parse_stage(text)
        cost = plan.cost(
            config,
            stage,
            settings["lora_rank"],
            settings["seq_len"],
            getattr(torch, settings["dtype"]),
            settings["optimizer"],
        )
        by_stage[stage.what] = cost["weights"] + cost["gradients"] + cost["optimizer"]
    return by_stage


def accuracies(out: Path, arm: str) -> dict:
    """An arm's KoBEST accuracies with 95 % intervals, and those of answers without context."""
    scores = cli.read_json(scores_file(out, arm))
    control = cli.read_json(scores_file(out, arm, answer_only=True))
    result = {}
    for task in TASKS:
        result[task] = {
            "acc": scores["tasks"][task]["acc"],
            "ci95": scores["tasks"][task]["ci95"],
            "answer_only": control["tasks"][task]["acc"],
        }
    result["mean_acc"] = scores["mean_acc"]
    return result


def pooled_examples(out: Path, arm: str) -> list[dict]:
    """The examples of COPA and HellaSwag, the two tasks that the toy world's arms learn."""
    tasks = cli.read_json(scores_file(out, arm))["tasks"]
    return tasks["copa"]["examples"] + tasks["hellaswag"]["examples"]


def compare(arm: list[dict], nanowhale: list[dict]) -> dict:
    """How two arms answered the same examples: {"arm_alone", "nanowhale_alone": examples that only
    one of them has right, "p_value": McNemar's exact p that they are equally good}.

    >>> right = {"prediction": 1, "label": 1}
    >>> wrong = {"prediction": 0, "label": 1}
    >>> compare([right, right, wrong], [right, wrong, wrong])
    {'arm_alone': 1, 'nanowhale_alone': 0, 'p_value': 1.0}
    """
    arm_alone = 0
    nanowhale_alone = 0
    for one, other in zip(arm, nanowhale, strict=True):
        arm_is_right = one["prediction"] == one["label"]
        nanowhale_is_right = other["prediction"] == other["label"]
        if arm_is_right and not nanowhale_is_right:
            arm_alone += 1
        if nanowhale_is_right and not arm_is_right:
            nanowhale_alone += 1
    return {
        "arm_alone": arm_alone,
        "nanowhale_alone": nanowhale_alone,
        "p_value": eval_kobest.mcnemar(arm_alone, nanowhale_alone),
    }


# ---- report.md -----------------------------------------------------------------------------------


def render(report: dict) -> str:
    """report.json as Markdown: the summary, the four ideas in order, then the arms compared."""
    parts = [
        "# What the speedrun found",
        "",
        *summary(report),
        *arms_section(report),
        *samples_section(report["samples"]),
        *corpus_section(report["corpus"]),
        *tokenizer_section(report),
        *init_section(report["init"]["bits_per_byte"]),
        *stages_section(report["stages"]),
        *kobest_section(report),
    ]
    return "\n".join(parts) + "\n"


def summary(report: dict) -> list[str]:
    """The findings in words, a line each."""
    bits = report["bits_per_byte"]
    training = report["training"]
    trained = list(RUNS)
    best = min(trained, key=lambda arm: bits[arm]["ko"])
    smallest = min(trained, key=lambda arm: training[arm]["state_bytes"])
    most_english = min(trained, key=lambda arm: bits[arm]["en"])
    saved = 1 - training["nanowhale"]["state_bytes"] / training["full"]["state_bytes"]
    return [
        f"{report['seconds']:.0f} seconds in all, on the built-in world, one seed: two runs of the "
        "same arm can differ by as much as two arms do here.",
        "",
        f"- Korean takes {report['token_ratio']:.3f} of the base's tokens with the merged tokenizer.",
        f"- The most Korean was learned by *{ARMS[best]}* "
        f"({bits[best]['ko']:.3f} bits per byte; lower is better).",
        f"- The most English was kept by *{ARMS[most_english]}* "
        f"({bits[most_english]['en']:.3f}; the base: {bits['base']['en']:.3f}).",
        f"- The least memory was needed by *{ARMS[smallest]}* "
        f"({megabytes(training[smallest]['state_bytes'])} MB). "
        f"The stages need {saved:.0%} less than one full stage.",
        "",
    ]


def megabytes(n_bytes: int) -> str:
    """Bytes in MB (10⁶), with one digit after the point.

    >>> megabytes(21_560_000)
    '21.6'
    """
    return f"{n_bytes / 1e6:.1f}"


def corpus_section(corpus: dict) -> list[str]:
    """What each step left, and what was found of the planted faults."""
    parts = ["## 1. Corpus", ""]
    for language, name in (("ko", "Korean"), ("en", "English")):
        report = corpus[language]
        raw = report["input"]
        left = [["raw", raw["documents"], raw["bytes"] / 1e6, 1.0]]
        for step in report["steps"]:
            share = step["bytes_out"] / raw["bytes"]
            left.append([step["step"], step["documents_out"], step["bytes_out"] / 1e6, share])

        faults = []
        for kind, score in report["planted"].items():
            if score["planted"]:
                numbers = [score[key] for key in ("planted", "found", "recall", "precision")]
                faults.append([kind, *numbers])

        parts += [f"{name}:", ""]
        parts += [table(["after", "documents", "MB", "share of bytes"], left), ""]
        parts += [table(["planted fault", "planted", "found", "recall", "precision"], faults), ""]
    return parts


def tokenizer_section(report: dict) -> list[str]:
    """What the new pieces save, and what they cost."""
    merged = report["tokenizer"]
    return [
        "## 2. Tokenizer",
        "",
        f"Korean takes {report['token_ratio']:.3f} times the base's tokens; the embedding has "
        f"{merged['embedding_growth']:.2f} times its rows; {merged['added']} pieces were added, "
        f"{merged['unreachable']} of them unreachable.",
        "",
    ]


def init_section(methods: dict) -> list[str]:
    """The probe's table: a row per method, a column per number of steps."""
    first = next(iter(methods.values()))
    header = ["method", *(f"step {step}" for step in first)]
    rows = [[method, *row.values()] for method, row in methods.items()]
    return [
        "## 3. Initialisation",
        "",
        "Korean bits per byte before and after a few steps of embedding and head alone, on the "
        "same batches.",
        "",
        table(header, rows),
        "",
    ]


def stages_section(stages: list[dict]) -> list[str]:
    """The paper's table of losses by stage."""
    columns = {
        "stage": "stage",
        "tokens": "tokens so far",
        "train_loss": "train loss",
        "ko_loss": "eval loss ko",
        "ko_bits_per_byte": "bits per byte ko",
        "en_bits_per_byte": "bits per byte en",
    }
    rows = [[stage[key] for key in columns] for stage in stages]
    return ["## 4. Stages", "", table(list(columns.values()), rows), ""]


def arms_section(report: dict) -> list[str]:
    """Bits per byte, memory, time and text of every arm."""
    floor = report["entropy"]
    header = [
        "arm",
        "Korean, bits per byte",
        "English, bits per byte",
        "MB of training state",
        "seconds",
        "tokens",
        "MB of text read",
    ]
    rows = []
    for arm, name in ARMS.items():
        bits = report["bits_per_byte"][arm]
        cost = ["", "", "", ""]  # the base was not trained on Korean
        if arm in report["training"]:
            training = report["training"][arm]
            cost = [
                megabytes(training["state_bytes"]),
                round(training["seconds"]),
                training["tokens"],
                training["megabytes"],
            ]
        rows.append([name, bits["ko"], bits["en"], *cost])
    name = "*floor: the entropy of the world's generator*"
    rows.append([name, floor["ko"], floor["en"], "", "", "", ""])

    stages = []
    for stage, n_bytes in report["training"]["nanowhale"]["state_bytes_by_stage"].items():
        stages.append(f"{stage} {megabytes(n_bytes)}")
    return [
        "## The arms",
        "",
        table(header, rows),
        "",
        "Training state: the bytes of weights, gradients and optimizer moments, of the largest "
        f"stage ({', '.join(stages)} MB); `python train.py --plan` computes them for any model. "
        "Activations come on top.",
        "",
    ]


def samples_section(samples: dict[str, str]) -> list[str]:
    """What each arm answers to the same prompt, greedily."""
    lines = []
    for arm, name in ARMS.items():
        # The untouched base may answer with line breaks and half characters.
        text = " ".join(samples[arm].split())
        lines.append(f"{name + ':':36} {text}")
    return [
        "## What they answer",
        "",
        "The prompt says: *On Wednesday Eunho dropped the teacup on the floor. So the teacup …* "
        "Right is 산산이 깨졌다, *broke to pieces*.",
        "",
        "```text",
        *lines,
        "```",
        "",
    ]


def kobest_section(report: dict) -> list[str]:
    """Accuracies with their intervals, the control, and the test against nanowhale."""
    scored = []
    control = []
    for arm, name in ARMS.items():
        scores = report["kobest"][arm]
        scored.append([name, *(accuracy(scores[task]) for task in TASKS), scores["mean_acc"]])
        control.append([name, *(scores[task]["answer_only"] for task in TASKS)])
    verdicts = []
    for arm, comparison in report["against_nanowhale"].items():
        verdicts.append(f"- {verdict(arm, comparison)}")
    return [
        "## KoBEST (toy test split, zero-shot accuracy, 95 % intervals)",
        "",
        table(["arm", *TASKS, "mean"], scored),
        "",
        "The control, answers scored without their context. An arm that is no better above has "
        "learned nothing of the task:",
        "",
        table(["arm", *TASKS], control),
        "",
        "COPA and HellaSwag together, question by question (McNemar's exact test):",
        "",
        *verdicts,
    ]


def verdict(arm: str, comparison: dict) -> str:
    """Which of two arms is better, in words. Below p = 0.05 the difference counts as one.

    >>> verdict("full", {"arm_alone": 40, "nanowhale_alone": 10, "p_value": 0.00002})
    'full is better than nanowhale: 40 questions only full has right, 10 only nanowhale (p = 2e-05)'
    >>> verdict("plain", {"arm_alone": 11, "nanowhale_alone": 10, "p_value": 1.0})
    'plain and nanowhale do not differ: 11 questions only plain has right, 10 only nanowhale (p = 1)'
    """
    arm_alone = comparison["arm_alone"]
    nanowhale_alone = comparison["nanowhale_alone"]
    if comparison["p_value"] >= 0.05:
        finding = f"{arm} and nanowhale do not differ"
    elif arm_alone > nanowhale_alone:
        finding = f"{arm} is better than nanowhale"
    else:
        finding = f"nanowhale is better than {arm}"
    return (
        f"{finding}: {arm_alone} questions only {arm} has right, {nanowhale_alone} only "
        f"nanowhale (p = {comparison['p_value']:.3g})"
    )


def accuracy(score: dict) -> str:
    """An accuracy with its 95 % interval.

    >>> accuracy({"acc": 0.5, "ci95": [0.444, 0.556]})
    '0.500 [0.444, 0.556]'
    """
    low, high = score["ci95"]
    return f"{score['acc']:.3f} [{low:.3f}, {high:.3f}]"


def main(argv: list[str] | None = None) -> None:
    """Write report.json, then report.md, and print the latter."""
    parser = cli.Parser(description=__doc__, prog="studies.report")
    parser.add_argument("--out", type=Path, default=Path("out"), help="the speedrun's folder")
    parser.add_argument("--seconds", type=float, required=True, help="what the whole run took")
    args = parser.parse_args(argv)

    report = gather(args.out, args.seconds)
    cli.write_json(args.out / "report.json", report)
    text = render(report)
    with cli.new_file(args.out / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main)
