"""export.py: a checkpoint as a model directory, a LoRA as an adapter, and how training continues
from there."""
import argparse
import shutil

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from test_parallel import torchrun
from test_train import copy_of_the_model, flags, records, stopping, weights

import data
import eval_bits
import export
import init
import model
import tokenizer
import train
from common import checkpoint, cli, plan

# Checkpoints and validations after the same steps: 3, 6 and 9 of ten.
TOGETHER = ["--save_every", "3", "--eval_every", "3", "--keep", "99"]
KINDS = ["embed", "new_rows", "odd", "lora", "lora+embed", "full"]


def grown_model(world, folder, **config):
    """The world's model directory with rows that count as new, with a tied head, or in another
    dtype."""
    if config.pop("tied", False):
        folder.mkdir()
        torch.manual_seed(0)
        tied = tiny_config(tie_word_embeddings=True, base_vocab_size=300, **config)
        model.save(model.Llama(tied), folder)
        tokenizer.save(world / "base.model", folder)
        return folder
    return copy_of_the_model(world, folder, base_vocab_size=300, **config)


def train_and_save_beside(argv, monkeypatch, beside) -> None:
    """Train; at every checkpoint also write the live model, as at the end of a stage, to
    `beside`/STAGE-STEP."""
    save = checkpoint.save
    load_stage = train.load_stage
    live = []

    def watched_load(stage, start, args, number):
        live[:] = stage, start, args
        return load_stage(stage, start, args, number)

    def watched_save(run, llama, optimizer, counters, keep):
        folder = save(run, llama, optimizer, counters, keep)
        stage, start, args = live
        export.save_stage(llama, stage, start, beside / folder.name, args, counters)
        return folder

    with monkeypatch.context() as patch:
        patch.setattr(train, "load_stage", watched_load)
        patch.setattr(checkpoint, "save", watched_save)
        train.main(argv)


def same_files(a, b) -> bool:
    names = sorted(str(path.relative_to(a)) for path in a.rglob("*"))
    assert names == sorted(str(path.relative_to(b)) for path in b.rglob("*"))
    files = [name for name in names if (a / name).is_file()]
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in files)


def bits(folder, shards, dtype=torch.float32) -> float:
    """Bits per byte of a model directory."""
    return data.bits_per_byte(model.load(folder, dtype=dtype), data.Shards(shards), 32)[
        "bits_per_byte"
    ]


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A finished run of two stages, the second with a LoRA, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("export") / "run"
    train.main(flags(world, folder, "odd:1280:5e-3", "lora+embed:1280:5e-3", more=TOGETHER))
    return folder


@pytest.fixture
def stopped(run, tmp_path):
    """The same run as it was during its second stage, with two checkpoints of that stage."""
    folder = tmp_path / "stopped"
    shutil.copytree(run, folder)
    for part in ("model", "stages/2-lora+embed", "checkpoints/02-00000009"):
        shutil.rmtree(folder / part)
    return folder


# ------------------------------------------------------------------------ a model directory


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("what", KINDS)
def test_a_checkpoint_is_written_as_the_live_model_would_be(
    what, tied, world, tmp_path, monkeypatch
):
    """Every byte of every file; the tied ones with bfloat16 masters."""
    more = [*TOGETHER, "--eval_every", "0"]
    if tied:
        more += ["--optimizer", "adamw_bf16"]
    start = grown_model(world, tmp_path / "start", tied=tied)
    argv = flags(world, tmp_path / "run", f"{what}:640:1e-2", more=["--model", str(start), *more])
    train_and_save_beside(argv, monkeypatch, tmp_path / "live")
    at = ["--stage", "1", "--step", "3"]
    export.main([str(tmp_path / "run"), *at, "--out", str(tmp_path / "out")])
    assert same_files(tmp_path / "live/01-00000003", tmp_path / "out")
    if "lora" in what:
        export.main([str(tmp_path / "run"), *at, "--adapter", str(tmp_path / "adapter")])
        assert same_files(tmp_path / "out/adapter", tmp_path / "adapter")


def test_an_exported_checkpoint_scores_what_validation_said(world, run, tmp_path):
    validations = [record for record in records(run, "validation") if record["step"] in (3, 6, 9)]
    assert len(validations) == 6
    for record in validations:
        at = ["--stage", str(record["stage"]), "--step", str(record["step"])]
        export.main([str(run), *at, "--out", str(tmp_path / "out")])
        for language in ("ko", "en"):
            said = record["validation"][language]["bits_per_byte"]
            assert bits(tmp_path / "out", world / "shards" / language) == pytest.approx(
                said, rel=1e-6
            )


def test_under_bfloat16_compute_it_is_scored_in_bfloat16(world, tmp_path):
    """Masters and frozen weights are rounded as in training, so the score is the same to the bit.
    Except with a LoRA: merged, it is rounded together with the matrix."""
    run = tmp_path / "run"
    more = [*TOGETHER, "--dtype", "bfloat16"]
    train.main(flags(world, run, "full:640:1e-2", "lora:640:1e-2", more=more))
    for record in records(run, "validation"):
        if record["step"] == 3:
            at = ["--stage", str(record["stage"]), "--step", "3"]
            export.main([str(run), *at, "--out", str(tmp_path / "out")])
            said = record["validation"]["ko"]["bits_per_byte"]
            relative = 0 if record["stage"] == 1 else 2e-3
            score = bits(tmp_path / "out", world / "shards/ko", torch.bfloat16)
            assert score == pytest.approx(said, rel=relative, abs=0)


def test_by_default_the_newest_checkpoint_is_exported(stopped, tmp_path, capsys):
    export.main([str(stopped), "--out", str(tmp_path / "out")])
    assert "stage 2 (lora+embed) step 6" in capsys.readouterr().out
    counters = cli.read_json(stopped / "checkpoints/02-00000006/counters.json")
    del counters["files"]
    assert cli.read_json(tmp_path / "out/training_state.json") == counters
    # Again, onto itself; and another one.
    export.main([str(stopped), "--step", "3", "--out", str(tmp_path / "out")])
    assert cli.read_json(tmp_path / "out/training_state.json")["step"] == 3
    export.main([str(stopped), "--stage", "1", "--step", "9", "--out", str(tmp_path / "out")])
    assert cli.read_json(tmp_path / "out/training_state.json")["stage"] == 1


def test_nothing_in_the_run_is_changed_or_locked(stopped, tmp_path):
    before = sorted((str(path), path.stat().st_mtime_ns) for path in stopped.rglob("*"))
    with checkpoint.lock(stopped):
        locked = before + [(str(stopped / ".lock"), (stopped / ".lock").stat().st_mtime_ns)]
        export.main([str(stopped), "--out", str(tmp_path / "out")])
    after = sorted((str(path), path.stat().st_mtime_ns) for path in stopped.rglob("*"))
    assert set(after) <= set(locked)


def test_moments_and_frozen_weights_take_no_memory(stopped, world):
    settings = argparse.Namespace(**checkpoint.read_settings(stopped))
    stage = plan.parse_stage(settings.stages[1])
    folder = checkpoint.find(stopped)[0]
    llama = export.read_checkpoint(folder, stage, stopped / "stages/1-odd", settings)
    for name, p in llama.named_parameters():
        assert p.is_meta != plan.is_trained(name, stage.what), name


def test_naming_the_folder_of_an_unfinished_run_suggests_export(stopped, world, refused):
    argv = ["--models", str(stopped), "--data", str(world / "shards/ko")]
    refused(eval_bits, argv, f"export.py {stopped} --out DIR makes a model directory")


def test_a_broken_checkpoint_is_skipped(stopped, tmp_path, capsys, refused):
    shard = stopped / "checkpoints/02-00000006/__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    export.main([str(stopped), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert "02-00000006 is broken (__0_0.distcp is missing or has changed)" in printed.err
    assert "step 3 of" in printed.out
    asked = [str(stopped), "--step", "6", "--out", str(tmp_path / "out")]
    refused(export, asked, "02-00000006 is broken (__0_0.distcp is missing or has changed)")


def test_a_checkpoint_that_is_deleted_meanwhile_is_one_line(stopped, tmp_path, refused,
                                                            monkeypatch):
    """The run continues and deletes it between the check of its hashes and the reading."""
    newest = checkpoint.newest

    def and_gone(*args):
        found = newest(*args)
        shutil.rmtree(found[0])
        return found
    monkeypatch.setattr(checkpoint, "newest", and_gone)
    asked = [str(stopped), "--out", str(tmp_path / "out")]
    refused(export, asked, "during training a run keeps only its newest ones")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_deleted_while_it_is_checked_is_skipped(
    stopped, tmp_path, capsys, monkeypatch
):
    sha256 = checkpoint.sha256

    def gone(file):
        if file.parent.name == "02-00000006":
            shutil.rmtree(file.parent)
        return sha256(file)
    monkeypatch.setattr(checkpoint, "sha256", gone)
    export.main([str(stopped), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert "it was deleted just now" in printed.err and "step 3 of" in printed.out


def test_available_checkpoints_are_listed(stopped, run, tmp_path, refused):
    out = ["--out", str(tmp_path / "out")]
    there_is = (
        f"stage 1 step 3, 6, 9; stage 1, finished, in {stopped}/stages/1-odd; stage 2 step 3, 6"
    )
    refused(export, [str(stopped), "--step", "4", *out], f"stage 2 step 4; there is {there_is}")
    refused(export, [str(stopped), "--stage", "3", *out], "stages 1 to 2")
    refused(export, [str(stopped), "--stage", "1", *out], f"its model is {stopped}/stages/1-odd")
    refused(export, [str(run), *out], f"its model is {run}/model")


def test_what_cannot_be_exported_is_one_line(stopped, world, tmp_path, refused):
    out = ["--out", str(tmp_path / "out")]
    refused(export, [f"{tmp_path}/none", *out], "none/config.json: No such file")
    refused(export, [f"{world}/model", *out], "is it a run folder?")
    refused(export, [str(stopped)], "give --out")
    refused(export, [str(stopped), *out, "--adapter", f"{tmp_path}/a"], "give --out")
    refused(export, [str(stopped), "--out", f"{stopped}/model"], "lies inside the run")
    refused(export, [str(stopped), "--out", f"{world}/shards"], "holds something else")
    refused(export, [str(stopped), "--out", f"{world}/ko.jsonl"], "is a file")
    at = ["--stage", "1", "--step", "3", "--adapter", f"{tmp_path}/a"]
    refused(export, [str(stopped), *at], "stage 1 of")
    shutil.rmtree(stopped / "checkpoints")
    refused(export, [str(stopped), "--stage", "2", *out], "has no complete checkpoint of stage 2")
    shutil.rmtree(stopped / "stages/1-odd")
    refused(export, [str(stopped), *out], "has no checkpoint yet")
    assert not (tmp_path / "out").exists()


def test_the_start_may_have_moved_but_not_changed(world, tmp_path, refused):
    start = copy_of_the_model(world, tmp_path / "start")
    argv = flags(world, tmp_path / "run", "odd:640:1e-2", more=["--model", str(start)])
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(argv), after=3)
    (start / "training_state.json").write_text("{}")  # a stage or an export, which may be replaced
    refused(export, [str(tmp_path / "run"), "--out", str(start)], "started from; choose another")
    start.rename(tmp_path / "moved")
    asked = [str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    refused(export, asked, "say where it is now: --model DIR")
    export.main([*asked, "--model", str(tmp_path / "moved")])
    tensors = weights(tmp_path / "moved")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, tmp_path / "moved/model.safetensors", metadata={"format": "pt"})
    refused(export, [*asked, "--model", str(tmp_path / "moved")], "not what")


def test_a_run_from_random_weights_can_be_moved_and_exported(world, tmp_path):
    argv = flags(world, tmp_path / "run", "full:640:1e-2")[2:]
    start = ["--config", f"{world}/model/config.json", "--tokenizer", f"{world}/base.model"]
    with pytest.raises(SystemExit):
        stopping(lambda: train.main([*start, *argv]), after=3)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    export.main([str(tmp_path / "elsewhere"), "--out", str(tmp_path / "out")])
    model.load(tmp_path / "out")


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_exported_by_one(world, tmp_path):
    argv = flags(world, tmp_path / "run", "odd:1280:5e-3", "lora+embed:1280:5e-3", more=TOGETHER)
    out = torchrun(2, argv)
    assert out.returncode == 0, out.stderr
    for record in records(tmp_path / "run", "validation"):
        if record["step"] in (3, 9):
            at = ["--stage", str(record["stage"]), "--step", str(record["step"])]
            export.main([str(tmp_path / "run"), *at, "--out", str(tmp_path / "out")])
            said = record["validation"]["ko"]["bits_per_byte"]
            assert bits(tmp_path / "out", world / "shards/ko") == pytest.approx(said, rel=1e-6)
    adapter = tmp_path / "run/stages/2-lora+embed/adapter"
    assert merged_by_hand(tmp_path / "run/stages/1-odd", adapter) == 0


# ------------------------------------------------------------------------ a LoRA by itself


def merged_by_hand(start, adapter) -> float:
    """The largest difference between the stage's weights and W + alpha/r B A from the files."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = cli.read_json(adapter / "adapter_config.json")
    expected = weights(start)
    for name in expected:
        prefix = "base_model.model." + name.removesuffix("weight")
        if prefix + "lora_A.weight" in tensors:
            a, b = (tensors[f"{prefix}lora_{x}.weight"].float() for x in "AB")
            expected[name] = expected[name].float() + config["lora_alpha"] / config["r"] * (b @ a)
        elif prefix + "weight" in tensors:
            expected[name] = tensors[prefix + "weight"]
    after = weights(adapter.parent)
    assert after.keys() == expected.keys()
    differences = []
    for name, tensor in after.items():
        rounded = expected[name].to(tensor.dtype)
        differences.append(float((tensor - rounded).abs().max()))
    return max(differences)


LORAS = {
    "lora": ("lora", {}, []),
    "lora+embed": ("lora+embed", {}, ["--lora_alpha", "10"]),
    "tied": ("lora+embed", {"tied": True}, []),
    "bfloat16": ("lora+embed", {"dtype": "bfloat16"}, ["--optimizer", "adamw_bf16"]),
}


@pytest.mark.parametrize("name", LORAS)
def test_the_adapter_is_what_was_merged(name, world, tmp_path):
    what, config, more = LORAS[name]
    start = grown_model(world, tmp_path / "start", **config)
    more = ["--model", str(start), *more]
    train.main(flags(world, tmp_path / "run", f"{what}:640:2e-2", more=more))
    adapter = tmp_path / f"run/stages/1-{what}/adapter"
    assert merged_by_hand(start, adapter) == 0
    masters = {tensor.dtype for tensor in load_file(adapter / "adapter_model.safetensors").values()}
    assert masters == {torch.bfloat16 if name == "bfloat16" else torch.float32}
    assert not (tmp_path / "run/model/adapter").exists()
    # The finished stage's adapter, in a folder of its own.
    export.main([str(tmp_path / "run"), "--adapter", str(tmp_path / "copy")])
    assert same_files(adapter, tmp_path / "copy")


@pytest.mark.parametrize("name", LORAS)
def test_peft_opens_the_adapter_with_equal_logits(name, world, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    what, config, more = LORAS[name]
    start = grown_model(world, tmp_path / "start", **config)
    argv = flags(world, tmp_path / "run", f"{what}:640:2e-2", more=["--model", str(start), *more])
    ends = []
    validate = train.validate

    def watched(llama, *args):
        validate(llama, *args)
        with torch.no_grad():
            ends.append(llama(tokens))
    monkeypatch.setattr(train, "validate", watched)
    tokens = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    train.main(argv)

    load = transformers.AutoModelForCausalLM.from_pretrained
    base = load(start, dtype=torch.float32)
    peer = peft.PeftModel.from_pretrained(base, tmp_path / f"run/stages/1-{what}/adapter").eval()
    with torch.no_grad():
        assert (peer(tokens).logits - ends[-1]).abs().max() < 1e-5
        assert (ends[0] - ends[-1]).abs().max() > 1e-2
        peer = peer.merge_and_unload()
        merged = peer(tokens).logits
        ours = model.load(tmp_path / "run/model")(tokens)
    assert peer.config.tie_word_embeddings == (name == "tied")
    # A bfloat16 directory is rounded once more when it is written.
    assert (merged - ours).abs().max() < (2e-2 if name == "bfloat16" else 1e-5)


def test_the_adapter_of_a_run_that_was_moved_names_its_start_there(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    export.main([str(moved), "--adapter", str(tmp_path / "a")])
    settings = cli.read_json(tmp_path / "a/adapter_config.json")
    assert settings["base_model_name_or_path"] == str(moved / "stages/1-odd")


def test_a_missing_adapter_of_an_older_run_is_named(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/stages/2-lora+embed/adapter")
    asked = [str(tmp_path / "run"), "--adapter", str(tmp_path / "a")]
    refused(export, asked, "has no adapter/, because an older version")


# ------------------------------------------------------------------------ continuing from there


def test_a_decay_branches_from_the_stable_phase(world, tmp_path):
    """20 steps of a long wsd stage, then a separate decay from there."""
    more = ["--schedule", "wsd", "--keep", "9"]
    stable = flags(world, tmp_path / "stable", "full:12800:5e-3", more=more)
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(stable), after=20)
    export.main([str(tmp_path / "stable"), "--out", str(tmp_path / "branch")])
    more = ["--model", str(tmp_path / "branch"), "--schedule", "wsd", "--min_lr", "0"]
    train.main(flags(world, tmp_path / "decay", "full:1920:5e-3", more=more))
    stood = records(tmp_path / "stable")[-1]["loss"]
    losses = [record["loss"] for record in records(tmp_path / "decay")]
    assert losses[0] == pytest.approx(stood, abs=0.15)
    validations = records(tmp_path / "decay", "validation")
    first, last = (validations[i]["validation"]["ko"]["bits_per_byte"] for i in (0, -1))
    assert first == bits(tmp_path / "branch", world / "shards/ko") and last < first


def test_training_state_goes_with_every_directory_but_not_into_a_grown_model(world, run, tmp_path):
    of_the_stage = cli.read_json(run / "stages/2-lora+embed/training_state.json")
    assert cli.read_json(run / "model/training_state.json") == of_the_stage
    torch.manual_seed(0)
    (tmp_path / "base").mkdir()
    model.save(model.Llama(tiny_config(vocab_size=400)), tmp_path / "base")
    tokenizer.save(world / "base.model", tmp_path / "base")
    cli.write_json(tmp_path / "base/training_state.json", of_the_stage)
    init.main(["--model", str(tmp_path / "base"), "--tokenizer", str(tmp_path / "base"),
               "--out", str(tmp_path / "grown"), "--method", "mean"])
    assert not (tmp_path / "grown/training_state.json").exists()


def test_a_finished_run_keeps_no_checkpoints_unless_asked(world, run, tmp_path):
    argv = flags(world, tmp_path / "run", "odd:1280:5e-3", "even:1280:5e-3")
    with pytest.raises(SystemExit):
        stopping(lambda: train.main(argv), after=18)
    names = [folder.name for folder in checkpoint.find(tmp_path / "run")]
    assert names == ["02-00000008", "02-00000006"]
    train.main(["--resume", str(tmp_path / "run")])
    assert not checkpoint.find(tmp_path / "run")
    assert len(checkpoint.find(run)) == 6


def test_a_run_that_is_killed_before_its_checkpoints_are_deleted(world, tmp_path, monkeypatch):
    argv = flags(world, tmp_path / "run", "odd:640:5e-3")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "delete_all", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(argv)
    assert checkpoint.find(tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes()
              for name in ("metrics.jsonl", "model/model.safetensors", "config.json")}
    for _ in range(2):
        train.main(["--resume", str(tmp_path / "run")])
        assert not checkpoint.find(tmp_path / "run")
        for name, content in before.items():
            assert (tmp_path / "run" / name).read_bytes() == content
