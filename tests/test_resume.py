"""common/resume.py and common/sources.py: what may change when a run is resumed, and that anything
else is refused by name; moved runs, models and data; continuing in the data of another run."""
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from test_train import exact, records, stopping, weights
from test_train import flags as flags_of_test_train

import data
import train
from common import checkpoint, plan, resume, sources
from common.cli import UserError

# Five steps of four windows each; a checkpoint after the third.
STAGES = ["embed:640:5e-3", "odd:640:5e-3", "lora:640:5e-3"]

# Every flag that may change, with a value other than test_train's flags and the defaults.
CHANGED = ["--save_every", "4", "--eval_every", "4", "--eval_bytes", "2000", "--keep", "3",
           "--micro_batch", "4", "--recompute", "full", "--no-compile", "--kernels", "torch",
           "--deterministic", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Without what these tests do not look at, and what takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "continuation", lambda *args: "")
        patch.setattr(plan, "matmul_rate", lambda *args: 1e12)
        patch.setattr(train, "free_memory", lambda device: None)
        yield


def flags(world, out, *stages, more=()) -> list:
    return flags_of_test_train(world, out, *stages, more=["--eval_bytes", "1000", *more])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """tmp_path, as the current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run of STAGES that was not interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train.main(flags(world, run, *STAGES))
    return run


@pytest.fixture(scope="module")
def begun(world, tmp_path_factory):
    """The same, stopped in step 3 of its second stage: copy it before you resume it."""
    run = tmp_path_factory.mktemp("begun") / "run"
    stop_at(8, flags(world, run, *STAGES))
    return run


@pytest.fixture
def run(begun, tmp_path):
    return Path(shutil.copytree(begun, tmp_path / "run"))


def stop_at(step: int, argv: list) -> None:
    """Train, and stop after this many steps of all stages together."""
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(list(map(str, argv))), step)


def continue_run(run, *more) -> None:
    train.main(["--resume", str(run), *map(str, more)])


def config(run) -> dict:
    return json.loads((Path(run) / "config.json").read_text(encoding="utf-8"))


def write_config(run, **changes) -> None:
    values = {**config(run), **changes}
    values = {name: value for name, value in values.items() if value != "absent"}
    (Path(run) / "config.json").write_text(json.dumps(values), encoding="utf-8")


def assert_same_end(one, other) -> None:
    assert exact(one) == exact(other)
    for name, tensor in weights(Path(one) / "model").items():
        assert torch.equal(tensor, weights(Path(other) / "model")[name]), name


# --------------------------------------------------------------------------------- what may change


def test_all_that_may_change_is_changed_at_once(whole, run, capsys):
    """In larger micro-batches the sums round differently; everything else is the same."""
    write_config(run, compile=True)  # so that --no-compile changes it
    continue_run(run, *CHANGED)
    assert exact(run)[:8] == exact(whole)[:8]
    for mine, other in zip(exact(run), exact(whole), strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    line = capsys.readouterr().out.split("\n")[0]
    for words in ("--save_every 3 → 4", "--micro_batch 2 → 4", "--compile True → False"):
        assert words in line
    # Each flag was given another value, and is saved with it.
    flags_given = {word.removeprefix("--").removeprefix("no-") for word in CHANGED if "--" in word}
    assert flags_given == set(resume.MAY_CHANGE)
    assert config(run)["micro_batch"] == 4 and config(run)["compile"] is False
    assert [record["step"] for record in records(run, "validation")] == [0, 5, 4, 5, 4, 5]


def test_saving_and_measuring_more_often_changes_no_bit(whole, run):
    continue_run(run, "--save_every", 2, "--eval_every", 4, "--eval_bytes", 500, "--keep", 1)
    assert_same_end(run, whole)


def test_repeating_the_whole_command_line_is_no_change(world, whole, run, capsys):
    argv = flags(world, run, *STAGES, more=["--seq_len", "0", "--batch_tokens", "0"])
    train.main([*argv, "--resume", str(run)])
    assert "changed" not in capsys.readouterr().out
    assert_same_end(run, whole)


def test_zero_means_the_saved_value(world, run):
    args = train.parse(["--resume", str(run), "--seq_len", "0", "--lora_rank", "0"])
    assert args.seq_len == 32 and args.lora_rank == 4


def test_a_changed_flag_stays_changed(whole, run):
    """A second resume needs no flags."""
    stop_at(2, ["--resume", run, "--save_every", "2"])
    continue_run(run)
    assert config(run)["save_every"] == 2
    assert_same_end(run, whole)


def test_a_micro_batch_that_does_not_divide_is_replaced_and_reported(run, capsys):
    """By a smaller one: whoever asks for less may have run out of memory."""
    continue_run(run, "--micro_batch", 3)
    out = capsys.readouterr().out
    assert "--micro_batch 3 does not divide the 4 windows per process; using 2" in out


def test_a_run_from_a_gpu_continues_on_a_cpu(run, refused, monkeypatch):
    """The saved device does not exist here: the message names the flag, and the flag works."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_config(run, device="cuda", dtype="bfloat16")
    refused(train, ["--resume", str(run)], "use --device cpu (also to resume")
    continue_run(run, "--device", "cpu")
    assert (run / "model").exists() and config(run)["dtype"] == "bfloat16"


def test_the_plan_of_a_run(run, capsys):
    before = (run / "config.json").read_bytes()
    continue_run(run, "--plan", "--stages", *STAGES, "full:1M:1e-4")
    printed = capsys.readouterr().out
    assert "full" in printed and "odd" in printed
    assert (run / "config.json").read_bytes() == before and not (run / "model").exists()


# -------------------------------------------------------------------------------- what may not


@pytest.mark.parametrize("more, part", [
    (["--seed", "3"], "was started with --seed 0, not 3, which cannot change"),
    (["--seed", "3", "--clip", "2"], "--clip 1.0, not 2.0"),
    (["--clip", "2", "--seed", "3", "--save_every", "9"], "--seed 0, not 3"),
    (["--optimizer", "adamw_bf16"], "--optimizer adamw, not adamw_bf16"),
    (["--batch_tokens", "256"], "--batch_tokens 128, not 256"),
    (["--schedule", "wsd"], "--save_every"),  # what it takes instead
    (["--skip_seen", "x"], "--skip_seen None, not x"),
    (["--config", "x"], "--config None, not x"),
    (["--data", "a=0.5", "b=0.5"], "--data "),
    (["--data", "a=0.75"], "not a=0.75"),
    (["--out", "elsewhere"], "drop --out"),
    (["--model", "elsewhere"], "there is no elsewhere; say where it is: --model PATH"),
    (["--sede", "3"], "did you mean --seed?"),
    (["--no-compil"], "did you mean --no-compile?"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_must_not_change_is_named(more, part, run, refused):
    before = sorted(run.rglob("*")), (run / "config.json").read_bytes()
    refused(train, ["--resume", str(run), *more], part)
    assert before == (sorted(run.rglob("*")), (run / "config.json").read_bytes())


def test_a_config_of_an_older_version_gets_the_default(whole, run, capsys):
    write_config(run, skip_seen="absent", eval_bytes="absent", started_in="absent")
    continue_run(run)
    printed = capsys.readouterr().out
    assert "has no --eval_bytes (an older version wrote it); using the default, 1000000" in printed
    assert "has no --skip_seen" in printed
    assert_same_end(run, whole)
    assert config(run)["eval_bytes"] == 1_000_000


def test_a_setting_that_is_not_a_flag_is_named(run, refused):
    write_config(run, colour="blue")
    refused(train, ["--resume", str(run)], "has 'colour', which is not a flag of this version")


# ------------------------------------------------------------------------------------ the stages


def test_a_lengthened_stage_ends_with_the_bits_of_one_that_was_always_so_long(world, tmp_path,
                                                                              capsys):
    """While the rate does not depend on the length yet: constant, before its decay."""
    more = ["--schedule", "wsd", "--warmup", "0"]
    longer = ["odd:640:5e-3", "full:1280:5e-3"]
    train.main(flags(world, tmp_path / "always", *longer, "lora:256:1e-3", more=more))
    stop_at(8, flags(world, tmp_path / "run", "odd:640:5e-3", "full:640:5e-3", more=more))
    capsys.readouterr()
    continue_run(tmp_path / "run", "--stages", *longer, "lora:256:1e-3")
    assert_same_end(tmp_path / "run", tmp_path / "always")
    line = capsys.readouterr().out.split("\n")[0]
    assert "stage 2: full:640:5e-3 → full:1280:5e-3" in line and "is new" in line
    assert "learning rate at step 4: 0.005 instead of 0.005" in line


def test_another_rate_for_what_is_left_of_a_stage(whole, run):
    continue_run(run, "--stages", STAGES[0], "odd:640:1e-3", STAGES[2])
    before, now = exact(whole), exact(run)
    assert now[:8] == before[:8]
    for old, new in zip(before[8:10], now[8:10], strict=True):
        assert new[4] == pytest.approx(old[4] / 5)  # the rate
    assert now[10:] != before[10:] and [r[4] for r in now[10:]] == [r[4] for r in before[10:]]


def test_a_shorter_stage_decays_to_its_end(run):
    continue_run(run, "--stages", STAGES[0], "odd:512:5e-3")
    assert [record[1] for record in exact(run)] == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert exact(run)[-1][4] == pytest.approx(5e-4)


def test_a_finished_run_is_extended(world, tmp_path):
    """Its data continues where it was, and RUN/model is replaced at the end."""
    train.main(flags(world, tmp_path / "always", *STAGES))
    train.main(flags(world, tmp_path / "run", STAGES[0]))
    first = weights(tmp_path / "run/model")
    continue_run(tmp_path / "run", "--stages", *STAGES)
    assert_same_end(tmp_path / "run", tmp_path / "always")
    assert any((first[name] != t).any() for name, t in weights(tmp_path / "run/model").items())


def test_a_finished_stage_may_be_deleted_once_the_next_one_is_finished(whole, tmp_path, refused):
    """Each is as large as the model. The run's metrics stay, nothing is trained again, and the
    stage cannot become another one."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "stages/1-embed")
    shutil.rmtree(run / "stages/2-odd")
    continue_run(run, "--stages", *STAGES, "full:256:1e-3")
    assert exact(run)[:15] == exact(whole) and len(exact(run)) == 17
    assert not (run / "stages/1-embed").exists()
    argv = ["--resume", str(run), "--stages", "even:640:5e-3", *STAGES[1:], "full:256:1e-3"]
    refused(train, argv, "stage 1 is finished and stays")


def test_a_missing_stage_that_is_needed_is_named(run, refused):
    """Stage 2 has started: without its start, stage 1 would be trained again, and all metrics
    lost."""
    before = (run / "metrics.jsonl").read_bytes()
    os.rename(run / "stages/1-embed", run / "stages/1-renamed")
    refused(train, ["--resume", str(run)], "1-renamed does not belong to this run, whose stage 1")
    shutil.move(run / "stages/1-renamed", run / "elsewhere")
    refused(train, ["--resume", str(run)], "1-embed is missing, from which stage 2 started")
    assert (run / "metrics.jsonl").read_bytes() == before


def test_stages_that_have_not_started_are_free(run):
    continue_run(run, "--stages", *STAGES[:2], "full+embed:256:1e-3", "even:128:1e-3")
    names = sorted(folder.name for folder in (run / "stages").iterdir())
    assert names == ["1-embed", "2-odd", "3-full+embed", "4-even"]


@pytest.mark.parametrize("stages, part", [
    (["embed:2560:5e-3", *STAGES[1:]], "stage 1 is finished and stays as it was, embed:640:5e-3"),
    (STAGES[1:], "add another stage after it"),
    (STAGES[:1], "stage 2 has begun to train odd and must stay"),
    ([STAGES[0], "even:640:5e-3"], "stage 2 has begun to train odd"),
    ([STAGES[0], "odd:384:5e-3"], "stage 2 has trained 3 steps, so it needs more than 384 tokens"),
    ([STAGES[0], "odd:1M"], "what:tokens:peak_lr"),
])
def test_impossible_stages_are_refused(stages, part, run, refused):
    refused(train, ["--resume", str(run), "--stages", *stages], part)


def test_what_a_refusal_advises_works(run):
    """`odd:512:...` for a stage of which three steps of 128 are trained."""
    with pytest.raises(UserError, match="odd:512:0.005 ends it after the next step"):
        continue_run(run, "--stages", STAGES[0], "odd:384:5e-3")
    continue_run(run, "--stages", STAGES[0], "odd:512:0.005")
    assert exact(run)[-1][:2] == (2, 4)


def test_stages_are_compared_as_values(run):
    continue_run(run, "--stages", "embed:0.64k:0.005", "odd:640:5e-03", STAGES[2], "--plan")


def test_a_longer_stage_moves_its_weights_to_the_new_end(world, tmp_path):
    """Korean from a tenth to nine tenths: at the end as many windows as in a stage that always had
    this length, and no window of either source twice."""
    fading = ["--data", f"{world}/shards/ko=0.1:0.9", f"{world}/shards/en=0.9:0.1"]
    train.main(flags(world, tmp_path / "always", "full:1280:1e-3", more=fading))
    stop_at(3, flags(world, tmp_path / "run", "full:640:1e-3", more=fading))
    continue_run(tmp_path / "run", "--stages", "full:1280:1e-3")
    ends = []
    for name in ("always", "run"):
        ends.append(sources.read_state(tmp_path / name / "stages/1-full")["loader"])
    assert ends[0]["counts"] == ends[1]["counts"] == [20, 20]
    assert ends[0]["length"] == ends[1]["length"] == 40


def test_a_loss_that_is_not_finite_advises_flags_that_resume_takes(world, tmp_path, monkeypatch):
    norm, calls = train.gradient_norm, []

    def broken_norm(parameters):
        calls.append(1)
        return norm(parameters) * (torch.inf if len(calls) == 4 else 1)
    with monkeypatch.context() as patch:
        patch.setattr(train, "gradient_norm", broken_norm)
        with pytest.raises(UserError, match=f"--resume {tmp_path}/run --stages ..."):
            train.main(flags(world, tmp_path / "run", "full:640:1e-3"))
    continue_run(tmp_path / "run", "--stages", "full:640:1e-4")
    assert exact(tmp_path / "run")[-1][1] == 5


# -------------------------------------------------------------------------------------- moves


def relative(world, here, model="grown") -> list:
    """The command line of a run in `here` with relative paths."""
    shutil.copytree(world / "model", here / model)
    shutil.copytree(world / "shards", here / "shards")
    argv = flags(world, "run", *STAGES, more=["--data", "shards/ko=0.75", "shards/en=0.25"])
    return ["--model", model, *argv[2:]]


def test_a_run_that_was_moved_and_resumed_from_elsewhere_twice(world, whole, here, monkeypatch):
    stop_at(3, relative(world, here))
    assert config("run")["started_in"] == str(here)
    # The run folder moves: its inputs are still where it was started.
    (here / "other").mkdir()
    shutil.move("run", "other/renamed")
    monkeypatch.chdir(here / "other")
    stop_at(4, ["--resume", "renamed"])
    # Everything moves together, to a place that config.json does not know.
    (here / "third").mkdir()
    monkeypatch.chdir(here / "third")
    for name in ("grown", "shards", "other"):
        shutil.move(here / name, name)
    with pytest.raises(UserError, match="grown is no longer there; say where it is now: --model"):
        continue_run("other/renamed")
    with pytest.raises(UserError, match="ko is no longer there; say where it is now: --data"):
        continue_run("other/renamed", "--model", "grown")
    continue_run("other/renamed", "--model", "grown", "--data", "shards/ko=.75", "shards/en=.25")
    assert_same_end("other/renamed", whole)
    # What is saved now can be opened from anywhere.
    monkeypatch.chdir(here)
    saved = config("third/other/renamed")
    assert Path(saved["model"]) == here / "third/grown"
    continue_run("third/other/renamed")


def test_an_input_found_in_neither_place_is_named_with_its_flag(world, here, monkeypatch, refused):
    stop_at(3, relative(world, here))
    shutil.move("grown", "moved")
    refused(train, ["--resume", "run"],
            f"grown is neither in {here} nor here; say where it is now: --model PATH")
    continue_run("run", "--model", "moved")


def test_a_folder_with_everything_in_it_may_be_moved(world, whole, tmp_path, monkeypatch):
    """Relative paths are valid in the new place too."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    monkeypatch.chdir(old)
    stop_at(3, relative(world, old))
    monkeypatch.chdir(tmp_path)
    old.rename(new)
    monkeypatch.chdir(new)
    continue_run("run")
    assert_same_end("run", whole)


def test_folders_that_moved_need_no_weights(world, whole, run, tmp_path):
    for name in ("ko", "en"):
        shutil.copytree(world / "shards" / name, tmp_path / "new" / name)
    continue_run(run, "--data", tmp_path / "new/ko", tmp_path / "new/en")
    assert config(run)["data"] == [f"{tmp_path}/new/ko=0.75", f"{tmp_path}/new/en=0.25"]
    assert_same_end(run, whole)


def test_a_stage_without_a_complete_checkpoint_announces_that_it_starts_again(whole, run, capsys):
    for folder in checkpoint.find(run):
        (folder / "counters.json").write_text("{")
    continue_run(run)
    assert "stage 2 has no complete checkpoint left, so it starts again" in capsys.readouterr().err
    assert_same_end(run, whole)


def test_other_shards_in_the_moved_place_are_refused(world, here):
    stop_at(3, relative(world, here))
    shutil.move("shards", "elsewhere")
    other_way_round = ["--data", "elsewhere/en=0.75", "elsewhere/ko=0.25"]
    with pytest.raises(UserError, match="is missing, or not what run started with"):
        continue_run("run", *other_way_round)


def test_inputs_are_compared_by_role_and_not_by_place(world, whole, here):
    """inputs.json of an older version compares equal: it has paths, which may no longer exist."""
    stop_at(3, relative(world, here))
    noted = json.loads(Path("run/inputs.json").read_text())
    elsewhere = {f"/gone/{path}": sha for path, sha in noted.items()}
    Path("run/inputs.json").write_text(json.dumps(elsewhere))
    write_config("run", started_in="absent")
    Path("run/loader.json").unlink()  # an older version has none
    continue_run("run")
    assert_same_end("run", whole)


def test_a_run_from_random_weights_is_moved_without_its_config(world, here, monkeypatch, refused):
    shutil.copy(world / "model/config.json", "shape.json")
    shutil.copy(world / "base.model", "t.model")
    argv = ["--config", "shape.json", "--tokenizer", "t.model", *flags(world, "run", *STAGES)[2:]]
    train.main([*argv, "--out", "whole"])
    stop_at(3, argv)
    os.remove("shape.json")
    os.remove("t.model")
    Path("place").mkdir()
    shutil.move("run", "place/run")
    monkeypatch.chdir("place")
    refused(train, ["--resume", "run", "--config", "other.json"], "--config shape.json, not other")
    continue_run("run", *argv, "--out", "run")
    assert_same_end("run", "../whole")


def test_an_equals_sign_in_a_path(world, here):
    for name in ("lr=1e-3", "lr=1e-3/ko"):
        shutil.copytree(world / "shards/ko", name, dirs_exist_ok=True)
    assert sources.parse_source("lr=1e-3") == ("lr=1e-3", (1, 1))
    assert sources.parse_source("lr=1e-3=0.5:1") == ("lr=1e-3", (0.5, 1))
    argv = flags(world, "seed=1", "full:640:1e-3", more=["--data", "lr=1e-3", "lr=1e-3/ko=0.5"])
    stop_at(3, argv)
    # A saved entry is read without its folder.
    shutil.move("lr=1e-3", "b=2")
    with pytest.raises(UserError, match="lr=1e-3 is neither in"):
        continue_run("seed=1")
    continue_run("seed=1", "--data", "b=2", "b=2/ko=0.5")


# --------------------------------------------------------------------- the data of another run


@pytest.fixture
def drawn(monkeypatch):
    """The windows that are read from now on, as (source, number)."""
    windows, read = [], data.Shards.window

    def watched(self, i, seq_len):
        windows.append((self.folder.name, i))
        return read(self, i, seq_len)
    monkeypatch.setattr(data.Shards, "window", watched)
    return windows


def test_skip_seen_trains_exactly_the_windows_that_follow(world, tmp_path, drawn):
    train.main(flags(world, tmp_path / "long", "full:1280:1e-3"))
    long = list(drawn)
    drawn.clear()
    train.main(flags(world, tmp_path / "first", "full:640:1e-3"))
    first = list(drawn)
    drawn.clear()
    start = ["--model", f"{tmp_path}/first/stages/1-full"]
    argv = flags(world, tmp_path / "second", "full:640:1e-3", more=start)
    train.main([*argv, "--skip_seen", str(tmp_path / "first")])
    assert first == long[:20] and drawn == long[20:]
    assert len(set(drawn + first)) == 40


@pytest.mark.parametrize("folder", ["run", "run/stages/1-embed", "run/stages/3-lora"])
def test_skip_seen_reads_a_run_or_a_model_directory(folder, world, whole, tmp_path):
    skip = ["--skip_seen", str(whole.parent / folder)]
    train.main(flags(world, tmp_path / "mine", "full:640:1e-3", more=skip))
    seen = 20 if "1-embed" in folder else 60
    noted = json.loads((tmp_path / "mine/loader.json").read_text())
    assert sum(noted["counts"]) == seen and noted["origin"] == noted["counts"]
    state = sources.read_state(tmp_path / "mine/stages/1-full")
    assert sum(state["loader"]["counts"]) == seen + 20


def test_skip_seen_takes_the_newest_checkpoint_if_it_is_later(begun, whole):
    assert sum(sources.position(begun)["loader"]["counts"]) == 32
    assert sum(sources.position(whole)["loader"]["counts"]) == 60


def test_the_run_that_was_skipped_is_not_needed_to_resume(world, whole, tmp_path, drawn):
    """Not even before its first checkpoint; and the weights count from where it started."""
    other = shutil.copytree(whole, tmp_path / "other")
    more = ["--skip_seen", str(other), "--data", f"{world}/shards/ko=0.25",
            f"{world}/shards/en=0.75"]
    train.main(flags(world, tmp_path / "always", "full:640:1e-3", more=more))
    without_stop = list(drawn)
    assert [name for name, _ in without_stop].count("ko") == 5
    argv = flags(world, tmp_path / "mine", "full:640:1e-3", more=more)

    def fail(*args):
        raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "gradient_norm", fail)
        train.main(argv)
    shutil.rmtree(other)
    drawn.clear()
    continue_run(tmp_path / "mine")
    assert drawn == without_stop
    assert_same_end(tmp_path / "mine", tmp_path / "always")


@pytest.mark.parametrize("more, part", [
    (["--seed", "1"], "that training had --seed 0, this run 1"),
    (["--seq_len", "16", "--batch_tokens", "64"], "that training had --seq_len 32, this run 16"),
    (["--order", "as_packed"], "that training had --order shuffled, this run as_packed"),
    (["--data", "{w}/shards/en", "{w}/shards/ko"], "source 1 of --data is not what"),
], ids=lambda value: value[0] if isinstance(value, list) else "")
def test_skip_seen_names_what_differs(more, part, world, whole, tmp_path, refused):
    more = [word.replace("{w}", str(world)) for word in more]
    argv = flags(world, tmp_path / "mine", "full:640:1e-3", more=[*more, "--skip_seen", str(whole)])
    refused(train, argv, part)


def test_skip_seen_of_something_other_than_a_training(world, tmp_path, refused):
    argv = flags(world, tmp_path / "mine", "full:640:1e-3")
    refused(train, [*argv, "--skip_seen", str(world / "model")],
            "nothing there says which data was seen")


def test_further_sources_may_follow_and_older_states_are_trusted(world, whole, tmp_path):
    order = {"seed": 0, "seq_len": 32, "as_packed": False}
    hashes = sources.position(whole)["data"]
    assert sources.seen_before(whole, order, [*hashes, "another"]) == [45, 15]
    assert sources.seen_before(whole, order, hashes[:1]) == [45]
    old = tmp_path / "old"
    old.mkdir()
    state = sources.position(whole)
    older = {name: state[name] for name in ("stage", "tokens", "loader")}
    (old / "training_state.json").write_text(json.dumps(older))
    assert sources.seen_before(old, order, ["a", "b", "c"]) == [45, 15]
    assert sources.seen_again(old, order, {"ko": "a"}) == ""
    with pytest.raises(UserError, match="read 2 sources, --data has 1"):
        sources.seen_before(old, order, ["a"])
    # A file of this name from another program is not used.
    (old / "training_state.json").write_text('{"step": 3}')
    assert sources.read_state(old) is None


def test_starting_the_same_data_again_is_reported(world, whole, tmp_path, capsys):
    start = whole / "stages/3-lora"
    argv = flags(world, tmp_path / "mine", "full:640:1e-3", more=["--model", str(start)])
    train.main(argv)
    err = capsys.readouterr().err
    assert f"{start} was trained on 45 windows of ko and 15 windows of en" in err
    assert f"--skip_seen {start} continues after them" in err
    # It advises nothing that would be refused: without English --skip_seen is taken, with another
    # source in its place it is not.
    ko = flags(world, tmp_path / "ko", "full:128:1e-3", more=["--model", str(start)])
    train.main([*ko, "--data", str(world / "shards/ko")])
    err = capsys.readouterr().err
    assert "45 windows of ko, and" in err and f"--skip_seen {start} continues" in err
    shutil.copytree(world / "shards/ko", tmp_path / "again")
    both = [str(world / "shards/ko"), str(tmp_path / "again")]
    train.main([*ko, "--out", str(tmp_path / "both"), "--data", *both])
    err = capsys.readouterr().err
    assert "45 windows of ko, and" in err and "another --seed gives another order" in err
    # In another place a source has another order.
    train.main([*ko, "--out", str(tmp_path / "en"), "--data", str(world / "shards/en")])
    assert "was trained on" not in capsys.readouterr().err
    # No notice for what it suggests, for another order, or for a resume.
    for out, more in (("skips", ["--skip_seen", str(start)]), ("seed", ["--seed", "1"])):
        train.main([*argv, "--out", str(tmp_path / out), *more])
    continue_run(tmp_path / "mine")
    assert "was trained on" not in capsys.readouterr().err
