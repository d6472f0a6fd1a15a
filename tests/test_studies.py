"""studies/: the arithmetic, on hand-made inputs; arms that are skipped, resumed, refused; what a
person gets wrong."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import korean

import data
import model
import tokenizer
import train
from common import cli, plan
from studies import (
    arms,
    curriculum,
    document_mask,
    experts,
    forgetting,
    laws,
    mixture,
    plain,
    plot,
    replay,
    report,
    runs,
    scaling,
)


def test_a_pair_counts_as_found_whichever_copy_went():
    planted = {"exact": [["a2", "a1"], ["b2", "b1"]], "near": [["c2", "c1"]], "junk": ["j"],
               "personal": ["p"], "leaked": ["l", "m"]}
    by_step = {"exact": ["a1", "x"], "near": ["c2", "m"], "rules": ["j"], "decontaminate": ["l"]}
    removed = [{"id": i, "step": step} for step, ids in by_step.items() for i in ids]
    masked = [{"id": "p", "step": "mask"}, {"id": "q", "step": "mask"},
              {"id": "r", "step": "normalise"}]
    found = report.found(planted, removed, masked)
    assert found["exact"] == {
        "planted": 2, "found": 1, "recall": 0.5, "precision": 0.5, "removed": 2}
    assert found["near"]["recall"] == 1 and found["near"]["precision"] == 0.5  # m is no copy
    assert found["leaked"]["recall"] == 1  # m was gone before decontamination could see it
    assert found["junk"]["precision"] == 1 and found["personal"]["precision"] == 0.5


def test_mcnemar_equals_the_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random()
    a, b = ([{"label": 0, "prediction": rng.randrange(2)} for _ in range(60)] for _ in range(2))
    better = sum(x["prediction"] < y["prediction"] for x, y in zip(a, b, strict=True))
    worse = sum(x["prediction"] > y["prediction"] for x, y in zip(a, b, strict=True))
    comparison = report.compare(a, b)
    assert comparison["arm_alone"] == better and comparison["nanowhale_alone"] == worse
    expected = stats.binomtest(better, better + worse).pvalue
    assert comparison["p_value"] == pytest.approx(expected)
    assert report.compare(a, a)["p_value"] == 1


def test_memory_of_each_stage_is_that_of_the_plan(world, tmp_path):
    """Four bytes per frozen float32 weight, sixteen per trained one."""
    run = tmp_path / "run"
    cli.write_json(run / "config.json", {
        "stages": ["full:1M:1e-3", "embed:1M:1e-3", "odd:1M:1e-3"], "lora_rank": 4, "seq_len": 32,
        "dtype": "float32", "optimizer": "adamw"})
    shutil.copytree(world / "model", run / "model")
    found = report.state_bytes(run)
    parameters = dict(model.load(world / "model").named_parameters())
    everything = sum(p.numel() for p in parameters.values())
    tables = sum(p.numel() for name,
                 p in parameters.items() if "embed" in name or "lm_head" in name)
    assert found["full"] == 16 * everything
    assert found["embed"] == 16 * tables + 4 * (everything - tables)
    assert found["odd"] < found["full"]
    for what, n_bytes in found.items():
        stage = plan.parse_stage(f"{what}:1M:1e-3")
        cost = plan.cost(model.Config.read(run / "model"), stage, 4, 32, torch.float32)
        assert n_bytes == cost["weights"] + cost["gradients"] + cost["optimizer"]


def arm_cost(state_bytes: int, by_stage: dict[str, int]) -> dict:
    """What the report holds of an arm's training."""
    return {"seconds": 40.4, "tokens": 900_000, "megabytes": 4.5, "state_bytes": state_bytes,
            "state_bytes_by_stage": by_stage}


def test_the_report_says_in_words_what_was_found():
    task = {"acc": 0.5, "ci95": [0.4, 0.6], "answer_only": 0.5}
    corpus = {
        "input": {"documents": 10, "bytes": 1_000_000},
        "steps": [{"step": "exact", "documents_out": 9, "bytes_out": 900_000}],
        "planted": {"exact": {"planted": 1, "found": 1, "recall": 1.0, "precision": 1.0}},
    }
    text = report.render({
        "seconds": 600,
        "token_ratio": 0.43,
        "corpus": {"ko": corpus, "en": corpus},
        "tokenizer": {"added": 1034, "unreachable": 0, "embedding_growth": 1.67},
        "init": {"bits_per_byte": {"mean": {"0": 3.0, "30": 0.9}}},
        "entropy": {"ko": 0.22, "en": 0.27},
        "bits_per_byte": {
            "base": {"ko": 8.15, "en": 0.313},
            "plain": {"ko": 0.343, "en": 0.354},
            "full": {"ko": 0.283, "en": 0.336},
            "nanowhale": {"ko": 0.311, "en": 0.347},
        },
        "stages": [{"stage": "embed", "tokens": 300_000, "train_loss": 2.0, "ko_loss": 1.5,
                    "ko_bits_per_byte": 0.4, "en_bits_per_byte": 0.35}],
        "kobest": {arm: {task_name: task for task_name in report.TASKS} | {"mean_acc": 0.5}
                   for arm in report.ARMS},
        "against_nanowhale": {
            "base": {"arm_alone": 5, "nanowhale_alone": 200, "p_value": 1e-9},
            "plain": {"arm_alone": 11, "nanowhale_alone": 10, "p_value": 1.0},
            "full": {"arm_alone": 40, "nanowhale_alone": 10, "p_value": 2e-5},
        },
        "training": {
            "plain": arm_cost(18_000_000, {"full": 18_000_000}),
            "full": arm_cost(20_000_000, {"full": 20_000_000}),
            "nanowhale": arm_cost(15_000_000, {"embed": 15_000_000, "odd": 10_000_000}),
        },
        # On Wednesday ... dropped. So the teacup broke to pieces. In January
        "samples": {arm: dict.fromkeys(report.DROPPED, "떨어뜨렸다. 그래서 찻잔이\n깨졌다. 일월에")
                    for arm in report.ARMS},
    })
    findings = [line for line in text.splitlines() if line.startswith("- ")][:6]
    assert "57% fewer" in findings[0]
    assert "full has learned the most, 0.283" in findings[1] and "nanowhale: 0.311" in findings[1]
    assert "full has lost the least, +0.023" in findings[2] and "nanowhale: +0.034" in findings[2]
    assert "15.0 MB" in findings[3] and "25% less than full (20.0 MB)" in findings[3]
    assert "plain and nanowhale show no difference" in findings[4]
    assert "full is better than nanowhale (right alone on 40" in findings[5]
    assert "nanowhale is better than base (right alone on 200 questions against 5" in text
    base, _, _, staged = text[text.index("| base"):].splitlines()[:4]
    assert base.endswith("|  |  |  |  |") and "| 15.0 | 40 | 900000 | 4.500 |" in staged
    assert "embed 15.0, odd 10.0 MB" in text
    assert "one full stage | 찻잔이 깨졌다. | 찻잔이 깨졌다. | 찻잔이 깨졌다. |" in text


def test_bytes_read_are_those_of_the_windows_drawn(world, tmp_path):
    train.main(["--model", f"{world}/model", "--out", f"{tmp_path}/run",
                "--data", f"{world}/shards/ko=0.75", f"{world}/shards/en=0.25",
                "--stages", "full:640:1e-3", "--seq_len", "32", "--batch_tokens", "128",
                "--device", "cpu"])
    read = runs.bytes_read(tmp_path / "run")
    for language, windows in (("ko", 15), ("en", 5)):
        index = cli.read_json(world / "shards" / language / "index.json")
        n_bytes = windows * 32 * index["bytes"] / index["tokens"]
        assert read[world / "shards" / language] == pytest.approx(n_bytes)
    records = map(json.loads, open(tmp_path / "run/metrics.jsonl"))
    seconds = [128 / r["tokens_per_second"] for r in records if "tokens_per_second" in r]
    assert runs.seconds(tmp_path / "run") == pytest.approx(sum(seconds))


def test_a_run_that_is_missing_or_was_stopped_is_one_line(tmp_path, refused):
    out = tmp_path / "out"
    reporting = ["--out", str(out), "--seconds", "1"]
    training = ["--equal", "bytes", "--run", f"{out}/run", "--out", f"{out}/run_plain"]
    refused(plain, training, "there is no run in")
    refused(report, reporting, "there is no run in")
    for folder in report.RUNS.values():
        cli.write_json(out / folder / "config.json", {"batch_tokens": 100})
    refused(plain, training, f"resume it: python train.py --resume {out}/run")
    refused(report, reporting, f"resume it: python train.py --resume {out}/run_plain")
    for folder in report.RUNS.values():
        (out / folder / "model").mkdir()
    refused(report, reporting, "kobest/base.json is missing: base was not scored")
    for name in ("base.json", "base.answer_only.json"):
        cli.write_json(out / "kobest" / name, {})
    refused(report, reporting, "base.teacup.txt is missing: base has not answered the prompt")


def test_plain_training_is_a_fair_race_and_is_resumed(world, tmp_path, monkeypatch):
    quick = ["--eval_bytes", "500", "--device", "cpu"]
    mixed = [f"{world}/shards/ko=0.75", f"{world}/shards/en=0.25"]
    for run, tokens in (("run", 640), ("base_run", 256)):
        train.main(["--model", f"{world}/model", "--out", f"{tmp_path}/{run}", "--data", *mixed,
                    "--stages", f"full:{tokens}:1e-3", "--seq_len", "32", "--batch_tokens", "128",
                    *quick])
    calls = []

    def command(argv, log):
        """train.py, in this process; a new run loses its last folder, as if it had been stopped."""
        flags = argv[2:]
        calls.append(flags)
        if "--resume" in flags:
            train.main(flags)
        else:
            train.main([*flags, *quick])
            shutil.rmtree(f"{flags[-1]}/model")

    monkeypatch.setattr(arms, "command", command)
    common = ["--run", f"{tmp_path}/run", "--base_run", f"{tmp_path}/base_run",
              "--model", f"{world}/model", "--data", f"{world}/shards"]
    for equal in ("bytes", "time"):
        run = tmp_path / equal
        argv = ["--equal", equal, "--out", str(run), *common]
        with pytest.raises(cli.UserError, match=f"did not finish {run}; the same command resumes"):
            plain.main(argv)
        plain.main(argv)
        assert calls[-1] == ["--resume", str(run)]
        plain.main(argv)
    assert len(calls) == 4  # what is finished is not trained again
    # With the same tokenizer in both, as here, equal bytes are equal tokens.
    assert runs.steps(tmp_path / "bytes")[-1]["tokens"] == 640
    settings = runs.run_settings(tmp_path / "bytes")
    assert (settings["seq_len"], settings["batch_tokens"]) == (32, 128)
    speed = 256 / runs.seconds(tmp_path / "base_run")
    tokens = plain.equal_time(tmp_path / "run", world / "shards", tmp_path / "base_run")
    assert sum(tokens.values()) == pytest.approx(runs.seconds(tmp_path / "run") * speed)


def test_a_table_is_markdown():
    table = report.table(["a", "b"], [["x", 0.5], ["y", 2]])
    assert table == "| a | b |\n| --- | ---: |\n| x | 0.500 |\n| y | 2 |"


# ---- scaling laws --------------------------------------------------------------------------------

SCRATCH = np.array([np.log(2.1), np.log(90), 0.32, np.log(400), 0.41, 0])
CONTINUED = np.array([np.log(2.1), np.log(90), 0.32, np.log(40), 0.28, 0.06])
AXES = np.meshgrid(np.geomspace(4e5, 8e6, 4), np.geomspace(5e4, 1.6e6, 4))
GRID = tuple(axis.ravel() for axis in AXES)


def losses_of(theta, noise, rng):
    return *GRID, laws.loss(theta, *GRID) * np.exp(noise * rng.standard_normal(16))


def test_without_noise_the_fit_finds_the_law():
    given = [losses_of(theta, 0, np.random.default_rng()) for theta in (SCRATCH, CONTINUED)]
    found = laws.both(*given, starts=4)
    np.testing.assert_allclose(found, (SCRATCH, CONTINUED), rtol=1e-3, atol=1e-4)


def test_with_noise_the_law_lies_within_the_intervals():
    # One draw, not a fresh one: the bound below would be broken once in some hundred.
    rng = np.random.default_rng(0)
    given = [losses_of(theta, 0.003, rng) for theta in (SCRATCH, CONTINUED)]
    fitted = laws.both(*given, starts=4)
    samples = laws.bootstrap(*given, fitted, np.arange(16), 12)
    for i, true in enumerate((SCRATCH, CONTINUED)):
        drawn = np.array([sample[i] for sample in samples])
        assert (np.abs(fitted[i] - true) > 1e-6).any()
        assert (np.abs(fitted[i] - true) <= 3 * drawn.std(0)).all(), (fitted[i], true, drawn.std(0))
        assert (drawn.std(0) < 0.5).all()  # and they say something
    share = [laws.saved(*sample, 4e6, 1e6) for sample in samples]
    assert min(share) - 0.01 < laws.saved(SCRATCH, CONTINUED, 4e6, 1e6) < max(share) + 0.01


def test_the_best_split_is_that_of_the_closed_form_and_saved_tokens_reach_the_same_loss():
    (_, a, alpha, b, beta, _), C = SCRATCH, 1e15  # Hoffmann et al., equation 4
    balance = alpha * np.exp(a) / (beta * np.exp(b))
    best = balance ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))
    N, D, loss = laws.split(SCRATCH, C)
    assert best == pytest.approx(N, rel=0.01) and 6 * N * D == pytest.approx(C)
    assert all(loss <= laws.loss(SCRATCH, N * x, D / x) for x in (0.9, 1.1))
    never = SCRATCH.copy()
    never[laws.ALPHA] = -0.1  # the loss rises with N: no split is best
    assert np.isnan(laws.split(never, C)).all()
    assert scaling.interval([np.nan, 1.0, 1.0]) == "[1, 1] none in 33%"
    assert scaling.interval([np.nan]) == "none"
    share = laws.saved(SCRATCH, CONTINUED, 3e6, 2e5)
    assert 0 < share < 1
    with_fewer = laws.loss(CONTINUED, 3e6, 2e5 * (1 - share))
    assert laws.loss(SCRATCH, 3e6, 2e5) == pytest.approx(with_fewer)


def test_a_bootstrap_draws_in_common_what_a_group_has_in_common(monkeypatch):
    rng, group, drawn = np.random.default_rng(), np.arange(8000) % 800, []
    residuals = 0.02 * rng.standard_normal(800)[group] + 0.005 * rng.standard_normal(8000)
    assert laws.noise(residuals, group, 0) == pytest.approx((0.02, 0.005), rel=0.2)
    group = np.arange(16) % 4
    L = laws.loss(SCRATCH, *GRID) * np.exp(0.01 * np.array([1, -1, 1, -1]))[group]
    monkeypatch.setattr(laws, "both", lambda first, second, **_: drawn.append(first[2]))
    laws.bootstrap((*GRID, L), (*GRID, L), (SCRATCH, SCRATCH), group, 3)
    for losses in np.log(drawn / laws.loss(SCRATCH, *GRID)):
        np.testing.assert_allclose(losses, losses[:4][group], atol=1e-12)
        assert losses.std() > 1e-3


# ---- mixture and curriculum ----------------------------------------------------------------------


def test_shares_follow_the_perplexities_by_hand():
    shares = {"a": 0.6, "b": 0.2, "c": 0.2}
    before, after = {"a": 100, "b": 100, "c": 100}, {"a": 60, "b": 100, "c": 150}
    # δ = -0.4, 0, 0.5; with α = 1 f = 0.6, 1, 1.5; r f = 0.36, 0.2, 0.3, together 0.86
    free = mixture.next_shares(shares, before, after, 1.0, 0.01, 0.99)
    assert free == pytest.approx({"a": 0.36 / 0.86, "b": 0.2 / 0.86, "c": 0.3 / 0.86})
    # a cap of 0.4 holds a; the 0.6 left are shared 2 : 3
    capped = mixture.next_shares(shares, before, after, 1.0, 0.01, 0.4)
    assert capped == pytest.approx({"a": 0.4, "b": 0.24, "c": 0.36})
    # a floor of 0.3 lifts b; the 0.7 left are shared 0.36 : 0.3
    assert mixture.next_shares(shares, before, after, 1.0, 0.3, 0.9) == pytest.approx(
        {"a": 0.7 * 36 / 66, "b": 0.3, "c": 0.7 * 30 / 66})
    assert mixture.next_shares(shares, before, after, 0.0, 0.01, 0.99) == pytest.approx(shares)


def test_bounded_shares_keep_their_bounds_and_sum_to_one():
    rng = random.Random()
    for _ in range(50):
        wanted = {i: rng.lognormvariate(0, 2) for i in range(5)}
        shares = mixture.bounded(wanted, 0.05, 0.4)
        assert sum(shares.values()) == pytest.approx(1)
        assert all(0.05 <= s <= 0.4 for s in shares.values())
        inside = [shares[i] / wanted[i] for i in wanted if 0.051 < shares[i] < 0.399]
        assert max(inside, default=1) == pytest.approx(min(inside, default=1))


def test_orders_of_a_curriculum():
    drawn = random.Random().sample(range(1000), 30)
    docs = [{"text": str(i), "bits_per_byte": bits} for i, bits in enumerate(drawn)]
    found = curriculum.orders(docs)
    bits = {name: [d["bits_per_byte"] for d in ordered] for name, ordered in found.items()}
    assert bits["easy_first"] == sorted(bits["random"]) == bits["hard_first"][::-1]
    assert len({tuple(order) for order in bits.values()}) == 4
    assert len({frozenset(order) for order in bits.values()}) == 1


def test_difficulty_is_a_document_s_share_of_the_bits_a_byte(world):
    llama, shards = model.load(world / "model"), data.Shards(world / "shards/ko")
    sp = tokenizer.load(world / "model")
    ids, n_bytes = shards.validation(2000)
    texts = [sp.decode(row.tolist()) for row in ids]
    assert sum(len(text.encode()) for text in texts) == n_bytes
    total = sum(curriculum.difficulty(llama, sp, text, 32) * len(text.encode()) for text in texts)
    whole = data.bits_per_byte(llama, shards, 32, 2000)["bits_per_byte"]
    assert total / n_bytes == pytest.approx(whole, rel=1e-5)


# ---- arms ----------------------------------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch):
    """train.py and data.py run here instead of in a process of their own; their command lines."""
    calls = []

    def run(argv, *_, **__):
        calls.append([str(word) for word in argv[2:]])
        (data if str(argv[1]).endswith("data.py") else train).main(calls[-1])
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(arms.subprocess, "run", run)
    monkeypatch.setattr(arms, "command", run)
    return calls


def small(tmp_path, **changes) -> Namespace:
    values = {"out": tmp_path, "tokens": 512, "lr": 1e-3, "seq_len": 32, "batch_tokens": 128,
              "eval_bytes": 500, "train_flags": ["--device", "cpu"]}
    return Namespace(**{**values, **changes})


def test_an_arm_runs_once_and_measures_what_it_does_not_train_on(world, tmp_path, in_process):
    args = small(tmp_path)
    mix = [f"{world}/shards/ko={1 - arms.NEVER:g}", f"{world}/shards/en={arms.NEVER:g}"]
    flags = {"model": world / "model", "data": mix}
    run = arms.train(args, "arm", **flags, stages=arms.full(args, 512))
    assert cli.read_json(run / "stages/1-full/training_state.json")["loader"]["counts"] == [16, 0]
    start, end = arms.measured(run)
    assert set(end["scores"]) == {"ko", "en"} and (start["tokens"], end["tokens"]) == (0, 512)
    assert arms.train(args, "arm", **flags, stages=arms.full(args, 512)) == run
    assert len(in_process) == 1
    with pytest.raises(cli.UserError, match="other flags"):
        arms.train(args, "arm", **flags, stages=arms.full(args, 1024))


def test_flags_for_train_py_are_one_string():
    p = arms.parser("", "x.py", "tokens")
    for words in (["--train_flags", "--compile --dtype bfloat16"],
                  ["--train_flags=--compile --dtype 'bfloat16'"]):
        args = p.parse_args(["--out", "o", *words])
        assert args.train_flags == ["--compile", "--dtype", "bfloat16"]
    assert p.parse_args(["--out", "o"]).train_flags == []
    for wrong in (["--train_flags=--dtype 'x"], ["--train_flag", "--compile --dtype x"]):
        with pytest.raises(SystemExit):
            p.parse_args(["--out", "o", *wrong])


def test_a_stopped_arm_resumes_and_one_that_never_began_may_be_mended(
        world, tmp_path, in_process, monkeypatch):
    args = small(tmp_path)
    flags = {"model": world / "model", "data": [f"{world}/shards/ko"],
             "stages": ["odd:256:1e-3", "even:256:1e-3"]}
    with pytest.raises(cli.UserError):
        arms.train(args, "arm", **flags | {"model": tmp_path / "none"})
    finish = train.train_stage

    def stop_after_one(number, *more):
        if number > 1:
            raise SystemExit
        return finish(number, *more)

    monkeypatch.setattr(train, "train_stage", stop_after_one)
    with pytest.raises(SystemExit):
        arms.train(args, "arm", **flags)
    monkeypatch.setattr(train, "train_stage", finish)
    run = arms.train(args, "arm", **flags)
    assert in_process[-1] == ["--resume", str(run)]
    assert [r["stage"] for r in arms.measured(run)] == [1, 1, 2]


def test_what_was_made_once_for_other_flags_is_no_result(world, tmp_path, in_process):
    text = tmp_path / "ko.jsonl"
    rows = [{"text": korean(random.Random(i), 30)} for i in range(60)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    text.write_text("".join(lines), encoding="utf-8")
    args = small(tmp_path / "out", model=world / "model", scorer=world / "model",
                 text=[str(text)], experts=4, balance=0.01)
    args.out.mkdir()
    shards = args.out / "shards"
    made = [lambda: arms.pack(text, world / "model", shards, val_fraction=args.balance),
            lambda: curriculum.sample(args), lambda: experts.upcycled(args)]
    first = [make() for make in made]
    assert [make() for make in made] == first and len(in_process) == 1
    args.tokens, args.balance = 600, 0.1
    for make in made:
        with pytest.raises(cli.UserError, match="other flags"):
            make()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_study_stops_its_program_which_may_take_its_time(tmp_path, number):
    program = """
import signal, sys, time
def save(*_):
    time.sleep(0.6)
    print("saved")
    sys.exit()
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, save)
print("on", flush=True)
time.sleep(60)
"""

    def interrupt():
        while not (tmp_path / "log").read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    with open(tmp_path / "log", "w") as log:
        before, watch = signal.getsignal(number), threading.Thread(target=interrupt)
        watch.start()
        arms.command([sys.executable, "-c", program], log)
        watch.join()
    assert (tmp_path / "log").read_text() == "on\nsaved\n" and signal.getsignal(number) == before


def test_averages_of_a_run_lie_between_its_ends(world, tmp_path, in_process):
    args = small(tmp_path, model=world / "model", data=world / "shards", points=2, lora_rank=4)
    path = forgetting.trained(args, "plain")
    assert len(path) == 3
    end = model.load(tmp_path / "plain/model").requires_grad_(False)
    base = model.load(world / "model").requires_grad_(False)
    found = forgetting.checkpoint.find(tmp_path / "plain")
    checkpoint = forgetting.weights(model.load(world / "model"), *found)
    way = [float((dict(end.named_parameters())[name] - p).norm()) for name, p in checkpoint.items()]
    pairs = zip(end.parameters(), base.parameters(), strict=True)
    whole = [float((q - p).norm()) for q, p in pairs]
    assert 0 < sum(way) < sum(whole)
    mean = forgetting.mean([(0.25, dict(base.named_parameters())),
                            (0.75, dict(end.named_parameters()))])
    for name, p in base.named_parameters():
        torch.testing.assert_close(mean[name], p + 0.75 * (dict(end.named_parameters())[name] - p))
    scores = forgetting.averages(args)
    assert set(scores) == {*forgetting.BETWEEN, "mean of checkpoints"}
    assert path[-1]["ko"] < scores["plain, ½ of the way"]["ko"] < path[0]["ko"]


def test_figures_are_left_out_in_one_line_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    plot.figure(tmp_path / "x.svg", lambda axes: axes.plot([1, 2]))
    assert "pip install matplotlib" in capsys.readouterr().out and not (tmp_path / "x.svg").exists()


def test_experts_apart():
    a, b = np.random.default_rng().dirichlet(np.ones(4), (2, 3))
    assert experts.apart(a, a).tolist() == [0, 0, 0]
    assert experts.apart(a, b) == pytest.approx(np.clip(a - b, 0, None).sum(-1))


# ---- what goes wrong -----------------------------------------------------------------------------

MODEL = ["--model", "m", "--out"]
KINDS = ["--short", "s", "--long", "l", "--english", "e"]
SCRATCH_RUN = ["--tokenizer", "t", "--data", "d", "--out", "o"]
MIXED = [*MODEL, "o", "--english", "e", "--topics", "a=a", "b=b"]


@pytest.mark.parametrize("program, argv, part", [
    (replay, [*MODEL, "o", "--data", "d", "--seeds", "0"], "--seeds 0"),
    (replay, [*MODEL, "o", "--data", "d", "--token", "5"], "did you mean --tokens?"),
    (forgetting, [*MODEL, "o", "--data", "d", "--points", "0"], "--points 0"),
    (document_mask, [*MODEL, "o", *KINDS, "--seeds", "0"], "--seeds 0"),
    (scaling, [*SCRATCH_RUN, "--sizes", "64x2"], "two different ones"),
    (scaling, [*SCRATCH_RUN, "--tokens", "2000"], "--tokens 2000"),
    (mixture, [*MODEL, "o", "--english", "e", "--topics", "law", "wiki=w"], "NAME=TEXT"),
    (mixture, [*MIXED, "--floor", "0.6"], "--floor 0.6"),
    (mixture, [*MODEL, "o", "--english", "x/en", "--topics", "a=a", "en=b"],
     "what --english is called"),
    (experts, [*MODEL, "o", "--data", "d", "--experts", "1"], "--experts 1"),
    (experts, [*MODEL, "o", "--data", "d"], "cannot read m"),
])
def test_what_a_person_gets_wrong(tmp_path, monkeypatch, refused, program, argv, part):
    monkeypatch.chdir(tmp_path)
    refused(program, argv, part)


def test_sizes_and_text_that_do_not_do(world, tmp_path, refused):
    refused(scaling, ["--tokenizer", f"{world}/base.model", "--data", f"{world}/shards",
                      "--out", f"{tmp_path}/s", "--sizes", "64x2", "50x2"], "--sizes '50x2'")
    text = tmp_path / "ko.jsonl"
    row = {"text": korean(random.Random(), 30)}
    text.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    refused(curriculum, ["--model", f"{world}/model", "--scorer", f"{world}/model",
                         "--text", str(text), "--data", f"{world}/shards",
                         "--out", f"{tmp_path}/c", "--tokens", "9999"], "tokens too few")
