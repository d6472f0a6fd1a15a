"""Gather what the speedrun measured into out/report.json and out/report.md. It reads what the
programs wrote, and runs none of them again.

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
    "base": "base: English only, untouched",
    "plain": "plain: base tokenizer, equal time",
    "full": "full: merged tokenizer, one full stage",
    "nanowhale": "nanowhale: embed, odd, even, LoRA",
}
RUNS = {
    "plain": "run_plain",
    "full": "run_full",
    "nanowhale": "run",
}
TASKS = ("boolq", "copa", "hellaswag", "sentineg", "wic")

# What was dropped, in the prompts that the speedrun gives to every arm.
DROPPED = ("teacup", "plate", "bottle")


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table. All columns but the first are aligned to the right."""
    alignment = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, alignment]
    for row in rows:
        lines.append([f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- What the programs wrote, gathered -----------------------------------------------------------


def check_complete(out: Path) -> None:
    """UserError that names the first arm whose run, scores or answer are missing."""
    for folder in RUNS.values():
        check_finished(out / folder)
    for arm in ARMS:
        for file in (scores_file(out, arm), scores_file(out, arm, answer_only=True)):
            if not file.exists():
                raise cli.UserError(
                    f"{file} is missing: {arm} was not scored; run bash speedrun.sh again, which "
                    "does what is left"
                )
        for noun in DROPPED:
            if not sample_file(out, arm, noun).exists():
                raise cli.UserError(
                    f"{sample_file(out, arm, noun)} is missing: {arm} has not answered the prompt; "
                    "run bash speedrun.sh again, which does what is left"
                )


def scores_file(out: Path, arm: str, answer_only: bool = False) -> Path:
    """Where the speedrun puts an arm's KoBEST scores, or its control's."""
    kind = ".answer_only" if answer_only else ""
    return out / "kobest" / f"{arm}{kind}.json"


def sample_file(out: Path, arm: str, noun: str) -> Path:
    """Where the speedrun puts what an arm answers to a prompt."""
    return out / "samples" / f"{arm}.{noun}.txt"


def samples(out: Path, arm: str) -> dict[str, str]:
    """{what was dropped: the prompt and the arm's continuation}."""
    return {noun: sample_file(out, arm, noun).read_text(encoding="utf-8") for noun in DROPPED}


def gather(out: Path, total_seconds: float) -> dict:
    """Everything that goes into report.json. UserError if an arm is missing."""
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
        "samples": {arm: samples(out, arm) for arm in ARMS},
        "seconds": total_seconds,
    }


def cleaning_report(out: Path, language: str) -> dict:
    """The cleaning's report for a language, with what it found of the planted faults."""
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

    Cleaning may keep either of two copies, so a pair counts as found when one of the two was
    removed, and removing either is right. A fault that another step had removed already is neither
    a hit nor a miss.
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
    """Ids of the documents that a cleaning step removed."""
    return {record["id"] for record in removed if record["step"] == step}


def korean_token_ratio(merged: dict) -> float:
    """Tokens of Korean with the merged tokenizer, divided by those with the base's."""
    for path, numbers in merged["inputs"].items():
        if path.endswith("ko"):
            return numbers["token_ratio"]
    raise cli.UserError(
        "tokens.json has no input whose name ends in ko, so it was not written by the speedrun; "
        "bash speedrun.sh --fresh writes it"
    )


def stage_rows(run: Path) -> list[dict]:
    """One row per stage, as in the paper's table: the training loss, averaged over the last tenth
    of the stage, and the validation losses."""
    names = {}
    for folder in (run / "stages").iterdir():
        number, _, name = folder.name.partition("-")
        names[number] = name

    rows = []
    for record in validations(run)[1:]:  # the first one was before training
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
        # The plain arm starts from the base with its own tokenizer, so its first validation is
        # that of the base.
        record = validations(out / RUNS["plain"])[0]
    else:
        record = validations(out / RUNS[arm])[-1]
    return {language: scores["bits_per_byte"] for language, scores in record["validation"].items()}


def training_cost(run: Path) -> dict:
    """What a run cost: seconds in training steps, megabytes of text read, tokens, and bytes: the
    peak that was measured, and the training state of each stage, and of the largest."""
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
    """{stage: bytes of weights, gradients and moments}, computed by common/plan.py from the run's
    own settings. This is what stages save; activations come on top."""
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
    """An arm's KoBEST accuracies with 95 % intervals, and the control's."""
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
    """The examples of COPA and HellaSwag, the two tasks that models of this size learn."""
    tasks = cli.read_json(scores_file(out, arm))["tasks"]
    return tasks["copa"]["examples"] + tasks["hellaswag"]["examples"]


def compare(arm: list[dict], nanowhale: list[dict]) -> dict:
    """How two arms answered the same questions: how many only the one has right, how many only the
    other, and the p-value of McNemar's exact test that they are equally good.

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
    """report.json as Markdown: the findings, the arms compared, then the recipe step by step."""
    parts = [
        "# What the speedrun found",
        "",
        *summary(report),
        *arms_section(report),
        *samples_section(report["samples"]),
        *kobest_section(report),
        *corpus_section(report["corpus"]),
        *tokenizer_section(report),
        *init_section(report["init"]["bits_per_byte"]),
        *stages_section(report["stages"]),
    ]
    return "\n".join(parts)


def summary(report: dict) -> list[str]:
    """The findings in words, one per line."""
    bits = report["bits_per_byte"]
    memory = {arm: report["training"][arm]["state_bytes"] for arm in RUNS}
    saved = 1 - memory["nanowhale"] / memory["full"]
    best = min(RUNS, key=lambda arm: bits[arm]["ko"])
    lost = {arm: bits[arm]["en"] - bits["base"]["en"] for arm in RUNS}
    kept_most = min(RUNS, key=lambda arm: lost[arm])
    findings = [
        f"Tokens: with the merged tokenizer Korean takes {1 - report['token_ratio']:.0%} fewer.",
        f"Korean: {best} has learned the most, {bits[best]['ko']:.3f} bits per byte (lower is "
        f"better). {and_the_others(best, {arm: bits[arm]['ko'] for arm in RUNS}, '.3f')}.",
        f"English: {kept_most} has lost the least, {lost[kept_most]:+.3f} bits per byte against "
        f"the base's {bits['base']['en']:.3f}. {and_the_others(kept_most, lost, '+.3f')}.",
        f"Memory: the stages need {megabytes(memory['nanowhale'])} MB for weights, gradients and "
        f"moments, {saved:.0%} less than full ({megabytes(memory['full'])} MB).",
    ]
    for arm in ("plain", "full"):
        comparison = verdict(arm, report["against_nanowhale"][arm])
        findings.append(f"COPA and HellaSwag: {comparison}.")
    return [
        f"The built-in toy world, one seed, {report['seconds']:.0f} seconds in all. An English "
        "*base* is adapted to Korean in three ways: *plain* keeps the base's tokenizer, *full* "
        "trains everything at once, *nanowhale* trains in stages.",
        "",
        *(f"- {finding}" for finding in findings),
        "",
        "Another seed may order the arms differently, by their answers above all.",
        "",
    ]


def and_the_others(arm: str, values: dict[str, float], form: str) -> str:
    """The values of all arms but one, in words.

    >>> and_the_others("full", {"plain": 0.34, "full": 0.28, "nanowhale": 0.31}, ".2f")
    'plain: 0.34, nanowhale: 0.31'
    """
    others = [f"{other}: {value:{form}}" for other, value in values.items() if other != arm]
    return ", ".join(others)


def megabytes(n_bytes: int) -> str:
    """Bytes in MB (10⁶ bytes), with one decimal.

    >>> megabytes(21_560_000)
    '21.6'
    """
    return f"{n_bytes / 1e6:.1f}"


def corpus_section(corpus: dict) -> list[str]:
    """What each step left, and what was found of the planted faults."""
    parts = [
        "## 1. Corpus",
        "",
        "The built-in world has faults planted in it. *Recall* is the share of them that was "
        "found, not counting those that another step had removed first; *precision* is the share "
        "of what was removed or masked that was planted.",
        "",
    ]
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

        parts += [f"{name}, what is left after each step:", ""]
        parts += [table(["after", "documents", "MB", "share of bytes"], left), ""]
        parts += [table(["planted fault", "planted", "found", "recall", "precision"], faults), ""]
    return parts


def tokenizer_section(report: dict) -> list[str]:
    """What the new pieces save, and what they cost."""
    merged = report["tokenizer"]
    return [
        "## 2. Tokenizer",
        "",
        f"{merged['added']} pieces were added, {merged['unreachable']} of them unreachable. Korean "
        f"takes {report['token_ratio']:.3f} of the tokens that it took before, and the embedding "
        f"has {merged['embedding_growth']:.2f} times the rows.",
        "",
    ]


def init_section(methods: dict) -> list[str]:
    """The probe's table: one row per method, one column per number of steps."""
    first = next(iter(methods.values()))
    header = ["method", *(f"step {step}" for step in first)]
    rows = [[method, *row.values()] for method, row in methods.items()]
    return [
        "## 3. Initialisation",
        "",
        "Korean bits per byte by the way in which new rows are made, before training and after a "
        "few steps of embedding and head, on the same batches.",
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
        "ko_loss": "Korean eval loss",
        "ko_bits_per_byte": "Korean, bits per byte",
        "en_bits_per_byte": "English, bits per byte",
    }
    rows = [[stage[key] for key in columns] for stage in stages]
    return [
        "## 4. Stages",
        "",
        "Losses are nats per token.",
        "",
        table(list(columns.values()), rows),
        "",
    ]


def arms_section(report: dict) -> list[str]:
    """Bits per byte, memory, time and text of every arm."""
    header = [
        "arm",
        "Korean, bits per byte",
        "English, bits per byte",
        "MB of weights, gradients, moments (largest stage)",
        "training seconds",
        "training tokens",
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
    floor = report["entropy"]
    rows.append(["*floor: entropy of the generator*", floor["ko"], floor["en"], "", "", "", ""])

    stages = []
    for stage, n_bytes in report["training"]["nanowhale"]["state_bytes_by_stage"].items():
        stages.append(f"{stage} {megabytes(n_bytes)}")
    return [
        "## The arms",
        "",
        table(header, rows),
        "",
        "*Bits per byte*: what the model needs to encode a byte of held-out text. Lower is better, "
        "and no model can get below the floor.",
        "",
        f"*Memory*: nanowhale's stages need {', '.join(stages)} MB, and the largest counts. "
        "Activations come on top. `python train.py --plan` computes the same for any model.",
        "",
    ]


def samples_section(texts: dict[str, dict[str, str]]) -> list[str]:
    """How each arm continues the speedrun's prompts, greedily."""
    rows = []
    for arm, name in ARMS.items():
        rows.append([name, *(answer(texts[arm][noun]) for noun in DROPPED)])
    return [
        "## What they answer",
        "",
        "The prompts say: *On Wednesday Minjun dropped the teacup (or the plate, or the bottle) on "
        "the floor. So the teacup …* Right is 산산이 깨졌다, *broke to pieces*. The corpus tells "
        "this of teacups, but never of plates and bottles. The one effect that it tells of plates "
        "is 몹시 뜨거워졌다, *became very hot*; of bottles, 반짝반짝 빛났다, *shone brightly*.",
        "",
        table(["arm", *DROPPED], rows),
        "",
    ]


def answer(text: str) -> str:
    """The sentence that a model completed: what follows "so" in the prompt.

    >>> answer("민준이 찻잔을 떨어뜨렸다. 그래서 찻잔이 산산이 깨졌다. 일월에 승호는")
    '찻잔이 산산이 깨졌다.'
    """
    sentence, stop, _ = text.partition("그래서 ")[2].partition(".")
    # The untouched base may answer with line breaks.
    return " ".join(sentence.split()) + stop


def kobest_section(report: dict) -> list[str]:
    """Accuracies with their intervals, the control, and each arm against nanowhale."""
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
        "## KoBEST",
        "",
        "The toy test split, zero-shot accuracy with 95 % intervals:",
        "",
        table(["arm", *TASKS, "mean"], scored),
        "",
        "The control scores the answers without their context. An arm that is no better in the "
        "table above has not learned the task:",
        "",
        table(["arm", *TASKS], control),
        "",
        "COPA and HellaSwag together, question by question (McNemar's exact test):",
        "",
        *verdicts,
        "",
    ]


def verdict(arm: str, comparison: dict) -> str:
    """Which of two arms is better, in words: a difference counts if p is below 0.05.

    >>> verdict("full", {"arm_alone": 40, "nanowhale_alone": 10, "p_value": 0.00002})
    'full is better than nanowhale (right alone on 40 questions against 10, p = 2e-05)'
    >>> verdict("full", {"arm_alone": 11, "nanowhale_alone": 10, "p_value": 1.0})
    'full and nanowhale show no difference (right alone on 11 questions against 10, p = 1)'
    """
    arm_alone = comparison["arm_alone"]
    nanowhale_alone = comparison["nanowhale_alone"]
    counts = (arm_alone, nanowhale_alone)
    if comparison["p_value"] >= 0.05:
        finding = f"{arm} and nanowhale show no difference"
    elif arm_alone > nanowhale_alone:
        finding = f"{arm} is better than nanowhale"
    else:
        finding = f"nanowhale is better than {arm}"
        counts = (nanowhale_alone, arm_alone)
    return (
        f"{finding} (right alone on {counts[0]} questions against {counts[1]}, "
        f"p = {comparison['p_value']:.2g})"
    )


def accuracy(score: dict) -> str:
    """An accuracy with its 95 % interval.

    >>> accuracy({"acc": 0.5, "ci95": [0.444, 0.556]})
    '0.500 [0.444, 0.556]'
    """
    low, high = score["ci95"]
    return f"{score['acc']:.3f} [{low:.3f}, {high:.3f}]"


def main(argv: list[str] | None = None) -> None:
    """Write report.json and report.md, and print the latter."""
    parser = cli.Parser(description=__doc__, prog="studies.report")
    parser.add_argument("--out", type=Path, default=Path("out"), help="the speedrun's folder")
    parser.add_argument("--seconds", type=float, required=True, help="how long the whole run took")
    args = parser.parse_args(argv)

    report = gather(args.out, args.seconds)
    cli.write_json(args.out / "report.json", report)
    text = render(report)
    with cli.new_file(args.out / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main)
