"""Week 3, initialisation: see week3.md.  python -m pytest exercises/test_week3.py"""
import argparse
import json
import math

import pytest
import torch
from test_week2 import base_of, pieces

import data
import init
import model
import tokenizer
from common import cli
from toy import world as toy

torch.set_num_threads(1)
EMBED, HEAD = init.TABLES
# Korea, the same after a space, "great Korea", country, chicken, the same after a space
KOREAN = ("한국", "▁한국", "대한", "▁국", "닭", "▁닭")
LETTERS = "▁대한국abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model/: a tiny Llama with a hand-made base tokenizer that has ▁ 대 한 국, and no 닭;
    merged.model; shards/ (of English, with the base's tokenizer)."""
    folder = tmp_path_factory.mktemp("week3")
    base = base_of("th", "he", letters=LETTERS)
    (folder / "model").mkdir()
    (folder / "base.model").write_bytes(base.raw)
    (folder / "merged.model").write_bytes(tokenizer.merge(base, pieces(*KOREAN)))
    torch.manual_seed(0)
    llama = model.Llama(
        model.Config(
            vocab_size=len(base.pieces),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
        )
    )
    with torch.no_grad():
        llama.lm_head.weight.mul_(3)  # so that the two tables differ in scale
    model.save(llama, folder / "model")
    tokenizer.save(folder / "base.model", folder / "model")
    teller = toy.Teller("week 3", 1)
    lines = [json.dumps({"text": teller.document()}) + "\n" for _ in range(40)]
    (folder / "en.jsonl").write_text("".join(lines))
    data.main(
        [
            "pack",
            "--input",
            f"{folder}/en.jsonl",
            "--tokenizer",
            f"{folder}/base.model",
            "--out",
            f"{folder}/shards",
            "--val_fraction",
            "0.2",
        ]
    )
    return folder


# ---------------------------------------------------------------------------------------- 1. growth


def test_a_piece_is_cut_as_the_base_has_spelled_it(folder):
    grow = init.growth(folder / "model", folder / "merged.model", 1)
    name = tokenizer.load(folder / "model").sp.id_to_piece
    assert [" ".join(map(name, ids)) for ids in grow.parts] == [
        "한 국",
        "▁ 한 국",
        "대 한",
        "▁ 국",
        "<0xEB> <0x8B> <0xAD>",
        "▁ <0xEB> <0x8B> <0xAD>",
    ]
    assert name(grow.space) == "▁"


def test_the_numbers_of_rows(folder):
    base = len(tokenizer.read(folder / "model").pieces)
    for pad_to, padded in ((1, base + 6), (64, 320), (1000, 1000)):
        grow = init.growth(folder / "model", folder / "merged.model", pad_to)
        assert (grow.base, grow.size, grow.padded) == (base, base + 6, padded)


def test_a_tokenizer_that_does_not_continue_the_models_is_refused(folder, tmp_path):
    other = base_of("he", "th", letters=LETTERS)  # the first two changed places
    (tmp_path / "other.model").write_bytes(tokenizer.merge(other, pieces(*KOREAN)))
    with pytest.raises(cli.UserError):
        init.growth(folder / "model", tmp_path / "other.model", 64)


# -------------------------------------------------------------------------------------- 2. new_rows

TABLE = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 8.0], [91.0, -12.0]])
# Row 3 is the bare ▁'s.
GROW = init.Growth(base=4, size=7, padded=9, parts=[[0, 1], [3, 1, 2], [3]], space=3)


def test_by_hand():
    mean = [25.0, 0.0]
    rows = {
        "mean": [mean] * 3,
        "subtoken": [[2, 2], [33, 0], [91, -12]],
        "first": [[1, 0], [3, 4], [91, -12]],
    }
    for method, rules in init.METHODS.items():
        for name, rule in zip(init.TABLES, rules, strict=True):
            new = init.new_rows(name, TABLE, method, False, GROW, 0)
            assert new.shape == (5, 2) and new[3:].tolist() == [mean] * 2
            assert rule == "random" or new[:3].tolist() == rows[rule], (method, name)


def test_rows_below_the_bases_are_not_looked_at():
    longer = torch.cat([TABLE, torch.full((3, 2), 1e6)])  # rows without a piece
    assert init.new_rows(EMBED, longer, "mean", False, GROW, 0).tolist() == [[25.0, 0.0]] * 5


def test_random_rows_are_as_large_as_the_tables_own():
    grow = init.Growth(500, 900, 900, [[0]] * 400, 3)
    for scale in (0.02, 3.0):
        table = scale * torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
        new = {}
        for name in init.TABLES:
            for seed in (1, 2):
                new[name, seed] = init.new_rows(name, table, "random", False, grow, seed)
        for rows in new.values():
            assert float(rows.std()) == pytest.approx(scale, rel=0.03)
            assert abs(float(rows.mean())) < 0.03 * scale
        again = init.new_rows(EMBED, table, "random", False, grow, 1)
        assert torch.equal(new[EMBED, 1], again)
        assert not torch.equal(new[EMBED, 1], new[EMBED, 2])
        assert not torch.equal(new[EMBED, 1], new[HEAD, 1])


def test_a_tied_table_follows_the_rule_of_the_input():
    for name in init.TABLES:
        new = init.new_rows(name, TABLE, "eeve", True, GROW, 0)
        assert new[:3].tolist() == [[2, 2], [33, 0], [91, -12]]


def test_means_of_bfloat16_rows_are_rounded_once():
    table = torch.randn(3000, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    grow = init.Growth(3000, 3001, 3002, [list(range(2000))], 0)
    piece, padding = init.new_rows(EMBED, table, "subtoken", False, grow, 0)
    assert torch.equal(piece, table[:2000].double().mean(0).bfloat16())
    assert torch.equal(padding, table.double().mean(0).bfloat16())


def test_padding_is_never_likely():
    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(3)) + 1
    grow = init.Growth(50, 50, 52, [], 0)
    head = torch.cat([table, init.new_rows(HEAD, table, "mean_both", False, grow, 0)])
    hidden = 10 * torch.randn(1000, 16, generator=torch.Generator().manual_seed(4))
    assert float(torch.softmax(hidden @ head.T, 1)[:, 50:].max()) <= 1 / 50


# --------------------------------------------------------------------------------- 3. train_briefly


def tune(folder, steps, trained=lambda name: True, lr=3e-3):
    """(the model before and after, bits per byte at the steps)."""
    shards = data.Shards(folder / "shards")
    before = model.load(folder / "model")
    llama = model.load(folder / "model")
    for name, parameter in llama.named_parameters():
        parameter.requires_grad = trained(name)
    args = argparse.Namespace(
        lr=lr, seq_len=32, seed=0, probe_batch=4, probe_bytes=4000, device="cpu"
    )
    return before, llama, list(init.train_briefly(llama, shards, steps, args))


def test_step_0_is_the_model_as_it_came(folder):
    before, llama, found = tune(folder, [0])
    score = data.bits_per_byte(before, data.Shards(folder / "shards"), 32, 4000, 4, "cpu")
    assert found == [score["bits_per_byte"]]
    for a, b in zip(before.parameters(), llama.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_learns(folder):
    start, ten, forty = tune(folder, [0, 10, 40])[2]
    assert start > ten > forty and forty < 0.8 * start and math.isfinite(start)


def test_only_what_asks_for_a_gradient_moves(folder):
    before, llama, _ = tune(folder, [0, 5], trained=lambda name: name in init.TABLES)
    now = dict(llama.named_parameters())
    moved = {name for name, p in before.named_parameters() if not torch.equal(p, now[name])}
    assert moved == set(init.TABLES)


def test_rows_of_pieces_that_never_come_stay_where_they_were(folder):
    before, llama, _ = tune(folder, [0, 20])
    pieces = tokenizer.read(folder / "model").pieces
    hangul = [i for i, piece in enumerate(pieces) if piece.text in "대한국"]
    assert len(hangul) == 3  # and the text is English
    old = before.model.embed_tokens.weight
    new = llama.model.embed_tokens.weight
    assert torch.equal(old[hangul], new[hangul])
