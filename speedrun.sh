#!/usr/bin/env bash
# The whole recipe, from nothing to a KoBEST table, on the built-in world: ten minutes on two CPU cores.
#
#   bash speedrun.sh              everything; ends with out/report.md and out/report.json
#   bash speedrun.sh --prepare    up to the grown model and its shards; then train.py trains the recipe
#   bash speedrun.sh --fresh      everything, from the beginning; what is in out/ is kept in out.old/
#
# Ctrl-C stops it, and the same command resumes it. Every line that begins with `run` is a command
# that you can run on your own data; the programs' --help say what each flag means.
set -euo pipefail
cd "$(dirname "$0")"

prepare=no
fresh=no
for argument in "$@"; do
    case $argument in
        --prepare) prepare=yes ;;
        --fresh) fresh=yes ;;
        *) echo "speedrun.sh: unknown argument $argument; there are --prepare and --fresh" >&2; exit 2 ;;
    esac
done
source ./setup.sh

# ---- How it stops and resumes: every command leaves a mark in out/speedrun/ when it begins, and
# ---- another when it is finished.

# A finished command counts only for the code that it ran: after a change of these files all of them
# run again.
code=$(cat speedrun.sh requirements.txt ./*.py common/*.py kernels/*.py cleaning/*.py toy/*.py toy/world.txt \
    studies/*.py | cksum)
if [ -e out ] && { [ $fresh = yes ] || [ "$(cat out/speedrun/code 2>/dev/null)" != "$code" ]; }; then
    # It may hold runs of yours, so it is never deleted; and your exercises stay where they are.
    old=out.old/$(date +%Y-%m-%d_%H-%M-%S)
    mkdir -p out.old
    mv out "$old"
    echo "out/ was not made by this version of the code (or --fresh was given): it is now $old/"
    if [ -e "$old/exercises" ]; then
        mkdir out
        mv "$old/exercises" out/
    fi
fi
mkdir -p out/speedrun out/log
echo "$code" > out/speedrun/code

# The seconds that were spent before an interruption count too.
SECONDS=$(cat out/speedrun/seconds 2>/dev/null || echo 0)
trap 'echo $SECONDS > out/speedrun/seconds' EXIT

# A program that Ctrl-C reached itself would end in a traceback, if only because it was still loading
# PyTorch. It runs in the background, where Ctrl-C does not reach it, and gets a SIGTERM: train.py
# saves a checkpoint then, the others leave nothing that is half written.
program=
stopped() {
    if [ -n "$program" ]; then
        kill -TERM "$program" 2>/dev/null || true
        wait "$program" || true
    fi
    again="bash speedrun.sh"
    if [ $prepare = yes ]; then
        again="$again --prepare"
    fi
    printf '\nstopped after %d s; to resume: %s\n' $SECONDS "$again" >&2
    exit 130
}
trap stopped INT TERM

# The heading of a step: seconds so far, what is done, and how long it takes.
say() {
    echo
    echo "== $(printf '%3d' $SECONDS)s  $2 (about $1 s)"
}

# One command of the recipe: skipped if it is finished, resumed if it is a training run that was
# stopped.
run() {
    local mark state output
    mark=out/speedrun/$(echo "$@" | cksum | tr ' ' '-')
    state=$(cat "$mark" 2>/dev/null || echo new)
    output=$(echo "$@" | sed 's/.*--out \([^ ]*\).*/\1/')
    if [ "$state" = finished ] && [ -e "$output" ]; then
        echo "   finished before: $output"
        return
    fi
    if [ "$state" = new ] && [ -e "$output" ]; then
        echo "speedrun.sh: $output is not of its making, and will not be overwritten; move it, or use --fresh" >&2
        exit 2
    fi
    echo begun > "$mark"
    if [ "$1" = train.py ] && [ -e "$output/config.json" ]; then
        set -- train.py --resume "$output"
    fi
    # Progress bars are for a terminal; elsewhere (CI, a pipe) they go into a file, of which an error
    # shows the end.
    if [ -t 2 ]; then
        $PYTHON "$@" &
        program=$!
        wait $program
    else
        $PYTHON "$@" 2>> out/log/progress.txt &
        program=$!
        wait $program || { tail -n 3 out/log/progress.txt >&2; exit 1; }
    fi
    program=
    echo finished > "$mark"
}

# ---- The recipe. Times are of two cores that train the base at 9,000 tokens per second.

echo "The speedrun takes about ten minutes on two cores, less on fast ones."
echo "Ctrl-C stops it, and the same command resumes it."

say 10 "the built-in world: documents with dirt planted in them, so that cleaning can be scored, and a toy KoBEST"
run -m toy --out out/world

say 35 "1. corpus: normalise, mask, filter, deduplicate, decontaminate: a model learns copies and leaks by heart"
echo "   The dirt that you will see was planted on purpose, to score the cleaning: copies and near copies, menus,"
echo "   wrong encodings, items of the benchmark, and personal data (made up). out/report.md counts what was found."
run data.py clean --input out/world/ko --out out/clean/ko --lang ko --profile formal --workers 2 \
    --decontaminate out/world/kobest
run data.py clean --input out/world/en --out out/clean/en --lang en --profile formal --workers 2

say 125 "   an English base, to have something to adapt: a tokenizer that has seen 5 % Korean, a model that has seen none"
head -q -n 250 out/clean/ko/[0-9]*.jsonl > out/five_percent.jsonl
run tokenizer.py train --text all --vocab_size 1536 --input out/clean/en out/five_percent.jsonl --out out/base.model
cat > out/base_config.json <<'JSON'
{"architectures": ["LlamaForCausalLM"], "vocab_size": 1536, "hidden_size": 128, "intermediate_size": 352,
 "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
JSON
run data.py pack --input out/clean/en --tokenizer out/base.model --out out/shards_base/en
run data.py pack --input out/clean/ko --tokenizer out/base.model --out out/shards_base/ko
run train.py --config out/base_config.json --tokenizer out/base.model --data out/shards_base/en \
    --stages full:1M:4e-3 --out out/base_run
base=out/base_run/model

say 20 "2. tokenizer: Korean pieces, merged into the base's, so that Korean takes fewer tokens and English stays as it is"
run tokenizer.py train --vocab_size 1500 --input out/clean/ko --out out/korean.model
run tokenizer.py merge --base $base/tokenizer.model --korean out/korean.model --out out/merged.model
run tokenizer.py report --tokenizers $base/tokenizer.model out/merged.model --input out/clean/ko out/clean/en \
    --out out/tokens.json
run data.py pack --input out/clean/ko --tokenizer out/merged.model --out out/shards/ko
run data.py pack --input out/clean/en --tokenizer out/merged.model --out out/shards/en

say 5 "3. initialisation: rows for the new pieces from those that spelt them, so that training need not start from noise"
run init.py --model $base --tokenizer out/merged.model --out out/grown --method subtoken_both
if [ $prepare = yes ]; then
    echo "prepared. Now: torchrun train.py   (or: $PYTHON train.py)"
    exit
fi
say 40 "   a probe: six ways to make those rows, each trained a little, because their losses at the start mislead"
run init.py --model $base --tokenizer out/merged.model --probe out/shards/ko --out out/probe.json \
    --seq_len 128 --probe_batch 4 --probe_steps 30 --lr 3e-3

say 100 "4. stages: embedding and head, odd layers, even layers, LoRA: a part at a time takes less memory than all at once"
run train.py --out out/run

say 205 "   rivals, to compare with: one full stage; and the base's own tokenizer, at equal time"
run train.py --stages full:0.9M:4e-3 --out out/run_full
run -m studies.plain --equal time --run out/run --base_run out/base_run --model $base --data out/shards_base \
    --out out/run_plain

say 50 "KoBEST: every arm, and the control: what the answers give away without their context"
score() {
    run eval_kobest.py --model "$2" --data out/world/kobest --out "out/kobest/$1.json"
    run eval_kobest.py --model "$2" --data out/world/kobest --answer_only --out "out/kobest/$1.answer_only.json" \
        > /dev/null
}
score base $base
score plain out/run_plain/model
score full out/run_full/model
score nanowhale out/run/model

say 10 "what each arm answers: what happens to a teacup that was dropped?"
prompt="수요일에 은호가 찻잔을 바닥에 떨어뜨렸다. 그래서 찻잔이"
answer() {
    run sample.py --model "$2" --prompt "$prompt" --temperature 0 --max_new_tokens 16 --out "out/samples/$1.txt"
}
answer base $base
answer plain out/run_plain/model
answer full out/run_full/model
answer nanowhale out/run/model

say 2 "report"
$PYTHON -m studies.report --out out --seconds $SECONDS

echo "With matplotlib installed, $PYTHON -m bench.figures --speedrun out draws all of this"
