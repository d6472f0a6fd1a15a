#!/usr/bin/env bash
# The whole recipe, from nothing to a KoBEST table, on the built-in world: ten minutes on two CPU cores.
#
#   bash speedrun.sh              everything; ends with out/report.md and out/report.json
#   bash speedrun.sh --prepare    up to the grown model and its shards; then `torchrun train.py` trains the recipe
#
# Every line below is a command that you can run on your own data; the programs' --help say what each flag means.
set -euo pipefail
cd "$(dirname "$0")"
case "${1:-}" in "" | --prepare) ;; *) echo "speedrun.sh: unknown argument $1; there is --prepare" >&2; exit 2 ;; esac
source ./setup.sh
if [ -e out ]; then rm -rf out.old; mv out out.old; fi  # it may hold a run of yours
if [ -e out.old/exercises ]; then mkdir out; mv out.old/exercises out; fi  # and this holds your work
mkdir -p out/log
say() { echo; echo "== $(printf '%3d' $SECONDS)s  $2 (about $1 s)"; }  # seconds on two cores of an AMD EPYC
run() { $PYTHON "$@" 2>>out/log/progress.txt || { tail -n 3 out/log/progress.txt >&2; exit 1; }; }
SECONDS=0

say 5 "the built-in world: documents with dirt planted in them, so that cleaning can be scored, and a toy KoBEST"
run -m toy --out out/world

say 15 "1. corpus: normalise, mask, filter, deduplicate, decontaminate: a model learns copies and leaks by heart"
run data.py clean --input out/world/ko --out out/clean/ko --lang ko --profile formal --decontaminate out/world/kobest --workers 2
run data.py clean --input out/world/en --out out/clean/en --lang en --profile formal --workers 2

say 70 "   an English base, to have something to adapt: a tokenizer that has seen 5 % Korean, a model that has seen none"
head -q -n 250 out/clean/ko/[0-9]*.jsonl > out/five_percent.jsonl
run tokenizer.py train --text all --vocab_size 1536 --input out/clean/en out/five_percent.jsonl --out out/base.model
cat > out/base_config.json <<'JSON'
{"architectures": ["LlamaForCausalLM"], "vocab_size": 1536, "hidden_size": 128, "intermediate_size": 352,
 "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
JSON
run data.py pack --input out/clean/en --tokenizer out/base.model --out out/shards_base/en
run data.py pack --input out/clean/ko --tokenizer out/base.model --out out/shards_base/ko
run train.py --config out/base_config.json --tokenizer out/base.model --data out/shards_base/en --stages full:1.5M:4e-3 \
    --out out/base_run
BASE=out/base_run/model

say 15 "2. tokenizer: Korean pieces, merged into the base's, so that Korean takes fewer tokens and English stays as it is"
run tokenizer.py train --vocab_size 1500 --input out/clean/ko --out out/korean.model
run tokenizer.py merge --base $BASE/tokenizer.model --korean out/korean.model --out out/merged.model
run tokenizer.py report --tokenizers $BASE/tokenizer.model out/merged.model --input out/clean/ko out/clean/en --out out/tokens.json
for language in ko en; do
    run data.py pack --input out/clean/$language --tokenizer out/merged.model --out out/shards/$language
done

say 3 "3. initialisation: rows for the new pieces from those that spelt them, so that training need not start from noise"
run init.py --model $BASE --tokenizer out/merged.model --out out/grown --method subtoken_both
if [ "${1:-}" = --prepare ]; then
    echo "prepared. Now: torchrun train.py   (or: $PYTHON train.py)"
    exit
fi
say 40 "   a probe: six ways to make those rows, each trained a little, because their losses at the start mislead"
run init.py --model $BASE --tokenizer out/merged.model --probe out/shards/ko --out out/probe.json \
    --seq_len 128 --probe_batch 16 --probe_steps 30 --lr 3e-3

say 60 "4. stages: embedding and head, odd layers, even layers, LoRA: a part at a time takes less memory than all at once"
run train.py --out out/run

say 260 "   rivals, to compare with: one full stage; and the base's own tokenizer, at equal bytes and at equal time"
run train.py --stages full:1.5M:4e-3 --out out/run_full
run -m studies.plain --run out/run --model $BASE --data out/shards_base --out out/run_plain
say 45 "KoBEST: every arm, and the control: what the answers give away without their context"
for arm in base:$BASE plain:out/run_plain/model plain_equal_time:out/run_plain_equal_time/model full:out/run_full/model nanowhale:out/run/model; do
    run eval_kobest.py --model ${arm#*:} --data out/world/kobest --out out/kobest/${arm%%:*}.json
    run eval_kobest.py --model ${arm#*:} --data out/world/kobest --out out/kobest/${arm%%:*}.answer_only.json --answer_only >/dev/null
done

say 1 "report"
run -m studies.report --out out --seconds $SECONDS

echo "With matplotlib installed, $PYTHON -m bench.figures --speedrun out draws all of this"
