"""--limits: what it changes, what it refuses, and that a run can be given another run's limits."""
import itertools
import json
import random
from pathlib import Path

import pytest
from sentences import NOUNS, korean

import data
from cleaning.limits import LIMITS, Limits, choose_limits
from common.cli import UserError

WEB = LIMITS["ko"]["web"]
# 'The sea at the tree': no full stop.
MENU = "\n".join(f"{a}이 {b}에서" for a, b in itertools.pairwise(NOUNS))


@pytest.mark.parametrize("change, name, value", [
    ("symbols=0.6", "symbols", 0.6),
    ("symbols=1", "symbols", 1),
    ("line_ends=null", "line_ends", None),
    ("characters=20", "characters", 20),
    ("own_letters=null", "own_letters", None),
    ("word_length=[1.5, 30]", "word_length", (1.5, 30)),
    ("word_length=[null, 30]", "word_length", (None, 30)),
    ("word_length=null", "word_length", (None, None)),
    ('repeated_ngrams={"10": 0.3}', "repeated_ngrams", {10: 0.3}),
    ('repeated_ngrams={"10": 0.3, "5": 0.4}', "repeated_ngrams", {5: 0.4, 10: 0.3}),
    ("frequent_ngrams=null", "frequent_ngrams", {}),
    ("repeated_ngrams={}", "repeated_ngrams", {}),
])
def test_one_limit_changes_and_the_others_stay(change, name, value):
    limits = choose_limits("ko", "web", [change])
    assert limits == WEB._replace(**{name: value})
    assert list(limits.repeated_ngrams) == sorted(limits.repeated_ngrams)


def test_the_later_of_two_limits_counts(tmp_path):
    file = tmp_path / "my.json"
    file.write_text('{"symbols": 0.5, "characters": 9}')
    assert choose_limits("ko", "web", []) == WEB
    assert choose_limits("ko", "web", [str(file)]) == WEB._replace(symbols=0.5, characters=9)
    both = choose_limits("ko", "web", [str(file), "symbols=0.7", "symbols=0.6"])
    assert both == WEB._replace(symbols=0.6, characters=9)


@pytest.mark.parametrize("lang", LIMITS)
@pytest.mark.parametrize("profile", ["web", "formal", "short"])
def test_limits_written_as_json_are_the_same_limits(tmp_path, lang, profile):
    limits = LIMITS[lang][profile]
    file = tmp_path / "limits.json"
    file.write_text(json.dumps(limits._asdict()))
    for other in ("web", "formal", "short"):
        assert choose_limits(lang, other, [str(file)]) == limits


@pytest.mark.parametrize("change, message", [
    ("symbol=0.6", "no limit is called symbol; did you mean symbols"),
    ("x=0.6", "no limit is called x; there are characters own_letters"),
    ("symbols=.6", "not JSON"),
    ("symbols=", "not JSON"),
    ("symbols=60%", "not JSON"),
    ("symbols=60", "symbols is 60, not a share from 0 to 1"),
    ("symbols=-0.1", "not a share"),
    ("symbols=NaN", "not a share"),
    ("symbols=true", "not a share"),
    ('symbols="0.6"', 'symbols is "0.6", not a share'),
    ("symbols=[0.6]", "not a share"),
    ("characters=0", "not a whole number from 1"),
    ("characters=2.5", "not a whole number"),
    ("characters=null", "not a whole number"),
    ("characters=true", "not a whole number"),
    ("word_length=12", r"word_length is 12, not \[from, to\]"),
    ("word_length=[12, 3]", r"not \[from, to\]"),
    ("word_length=[1, 2, 3]", r"not \[from, to\]"),
    ("word_length=[1, Infinity]", r"not \[from, to\]"),
    ('word_length=[1, "2"]', r"not \[from, to\]"),
    ("repeated_ngrams=0.3", 'repeated_ngrams is 0.3, not {"n": share, ...}'),
    ('repeated_ngrams={"ten": 0.3}', 'not {"n": share'),
    ('repeated_ngrams={"0": 0.3}', 'not {"n": share'),
    ('repeated_ngrams={"1000000000": 0.3}', "with n from 1 to 100"),
    ('repeated_ngrams={"10": 3}', 'not {"n": share'),
    ('repeated_ngrams={"10": null}', 'not {"n": share'),
    ("absent.json", "cannot read absent.json"),
    ("symbols", "a value is missing; write symbols=VALUE"),
    ("folder", "cannot read folder"),
    ("broken.json", "broken.json is not valid JSON"),
    ("cp949.json", "cp949.json is not valid JSON"),
    ("list.json", "list.json: the file does not hold"),
    ("typo.json", "--limits typo.json: no limit is called line_end; did you mean line_ends"),
    ("range.json", "--limits range.json: symbols is 5, not a share"),
])
def test_what_a_person_can_get_wrong_is_one_line(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("broken.json").write_text('{"symbols": 0.6')
    Path("cp949.json").write_bytes('{"기호": 1}'.encode("cp949"))
    Path("list.json").write_text("[0.6]")
    Path("typo.json").write_text('{"line_end": null}')
    Path("range.json").write_text('{"symbols": 5}')
    with pytest.raises(UserError, match=message) as caught:
        choose_limits("ko", "web", [change])
    assert "\n" not in str(caught.value)


# ---- In a run -----------------------------------------------------------------------------------


def clean(folder: Path, out: str, *flags: str) -> dict:
    data.main(["clean", "--input", str(folder / "a.jsonl"), "--out", str(folder / out), *flags])
    return json.loads((folder / out / "report.json").read_text())


@pytest.fixture
def corpus(tmp_path):
    texts = [korean(random.Random(seed), 12) for seed in range(3)] + [MENU, "짧다"]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_a_run_obeys_and_reports_its_limits(corpus):
    steps = ("--steps", "rules")
    report = clean(corpus, "web", *steps)
    assert report["steps"][0]["reasons"] == {"line_ends": 1, "too_short": 1}
    report = clean(corpus, "loose", *steps, "--limits", "line_ends=null", "characters=2")
    assert report["steps"][0]["reasons"] == {}
    assert report["limits"]["line_ends"] is None and report["limits"]["characters"] == 2
    assert list(report["limits"]) == list(Limits._fields)

    # Another run can be given what the report says.
    (corpus / "my.json").write_text(json.dumps(report["limits"]))
    again = clean(corpus, "again", *steps, "--limits", str(corpus / "my.json"))
    assert again["limits"] == report["limits"] and again["output"] == report["output"]


def test_records_hold_what_was_measured(corpus):
    clean(corpus, "out", "--steps", "rules")
    records = [
        json.loads(line) for line in open(corpus / "out" / "removed.jsonl", encoding="utf-8")
    ]
    found = [(record["reason"], record["measured"]) for record in records]
    assert found == [("line_ends", "0 of the lines < 0.062"), ("too_short", "2 characters < 50")]


def test_a_run_with_other_limits_does_not_resume(corpus, monkeypatch, capsys):
    """Not even if they are in a file of the same name."""
    file = corpus / "my.json"
    flags = ("--steps", "rules", "--limits", str(file))
    file.write_text('{"line_ends": null}')
    monkeypatch.setattr("cleaning.pipeline.last_pass", None)
    with pytest.raises(TypeError):
        clean(corpus, "out", *flags)
    monkeypatch.undo()
    file.write_text('{"line_ends": 0.5}')
    report = clean(corpus, "out", *flags)
    assert "resuming" not in capsys.readouterr().out
    assert report["steps"][0]["reasons"] == {"line_ends": 1, "too_short": 1}


def test_limits_need_the_rules(corpus):
    with pytest.raises(UserError, match="--limits is for the step rules"):
        clean(corpus, "out", "--steps", "exact", "--limits", "symbols=0.6")
    assert not (corpus / "out").exists()


def test_limits_of_a_report_and_a_name_without_a_value(tmp_path):
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"input": {}, "limits": {"symbols": 0.6}}))
    assert choose_limits("ko", "web", [str(report)]).symbols == 0.6
    with pytest.raises(UserError, match="symbols: a value is missing; write symbols=VALUE"):
        choose_limits("ko", "web", ["symbols"])
    with pytest.raises(UserError, match="the value is not JSON"):
        choose_limits("ko", "web", ["symbols=" + "[" * 100_000])
