#!/usr/bin/env bash
# The whole recipe, from raw documents to a KoBEST table, on the built-in toy world: ten to fifteen
# minutes on two CPU cores.
#
#   bash speedrun.sh              everything; ends with out/report.md and out/report.json
#   bash speedrun.sh --prepare    up to the grown model and its token shards, ready for train.py
#   bash speedrun.sh --fresh      everything, from the beginning; the old out/ is kept in out.old/
#
# Ctrl-C stops it, and the same command resumes it. Every line that begins with `run` is a command
# that you can run on your own data; --help of each program explains its flags.
set -euo pipefail
cd "$(dirname "$0")"

prepare=no
fresh=no
for argument in "$@"; do
    case $argument in
        --prepare) prepare=yes ;;
        --fresh) fresh=yes ;;
        *)
            echo "speedrun.sh: unknown argument $argument; there are --prepare and --fresh" >&2
            exit 2
            ;;
    esac
done
source ./setup.sh

# ---- How it stops and resumes: each command has a file in out/speedrun/ that says `begun` or
# ---- `finished`.

# A finished command counts only as long as the code stays the same: after a change to any of these
# files every command runs again.
code=$(cat speedrun.sh requirements.txt ./*.py common/*.py kernels/*.py cleaning/*.py toy/*.py \
    toy/world.txt studies/*.py | cksum)
old_code=$(cat out/speedrun/code 2>/dev/null || true)
if [ -e out ] && { [ $fresh = yes ] || [ "$old_code" != "$code" ]; }; then
    # out/ may hold runs of the user's, so it is moved, never deleted; out/exercises stays in place.
    old=out.old/$(date +%Y-%m-%d_%H-%M-%S)
    mkdir -p out.old
    mv out "$old"
    echo "out/ was made by another version of the code, or --fresh was given: moved it to $old/"
    if [ -e "$old/exercises" ]; then
        mkdir out
        mv "$old/exercises" out/
    fi
fi
mkdir -p out/speedrun out/log
echo "$code" > out/speedrun/code

# The seconds spent before an interruption count too.
SECONDS=$(cat out/speedrun/seconds 2>/dev/null || echo 0)
trap 'echo $SECONDS > out/speedrun/seconds' EXIT

# Programs run in the background, where Ctrl-C does not reach them: one that is still importing
# PyTorch would end in a traceback. They get a SIGTERM instead. train.py then saves a checkpoint,
# and the other programs leave nothing half written.
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

# say SECONDS TITLE LINE...: the heading of a step, with the time so far and the time that it takes,
# and below it what the step does and why.
say() {
    echo
    echo "== $(printf '%3d' $SECONDS)s  $2 (about $1 s)"
    shift 2
    printf '   %s\n' "$@"
    echo
}

# The screen, also for a `run` whose output is redirected to a file.
exec 3>&1

# Print a command so that it can be copied.
print_command() {
    local line="\$ python" word
    for word in "$@"; do
        case $word in
            *" "*) line="$line \"$word\"" ;;
            *) line="$line $word" ;;
        esac
    done
    echo "$line" >&3
}

# run PROGRAM FLAG...: one command of the recipe. It is skipped if it has finished, and a training
# run that was stopped is resumed.
run() {
    local mark state output
    mark=out/speedrun/$(echo "$@" | cksum | tr ' ' '-')
    state=$(cat "$mark" 2>/dev/null || echo new)
    output=$(echo "$@" | sed 's/.*--out \([^ ]*\).*/\1/')
    if [ "$state" = finished ] && [ -e "$output" ]; then
        echo "   finished before: $output" >&3
        return
    fi
    if [ "$state" = new ] && [ -e "$output" ]; then
        echo "speedrun.sh: $output was not made by the speedrun and will not be overwritten;" \
            "move it, or use --fresh" >&2
        exit 2
    fi
    echo begun > "$mark"
    if [ "$1" = train.py ] && [ -e "$output/config.json" ]; then
        set -- train.py --resume "$output"
    fi
    print_command "$@"
    # Progress bars are for a terminal. Elsewhere (CI, a pipe) they go to a file, whose end is shown
    # after an error.
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

# ---- The recipe. The times are those of two cores that train the base at 9,000 tokens per second.

echo "This takes ten to fifteen minutes on two cores."
echo "Ctrl-C stops it, and the same command resumes it."

say 15 "The toy world" \
    "A small corpus in Korean and English, and a toy KoBEST, all generated. Dirt is planted in" \
    "the corpus on purpose, so that cleaning can be scored: copies and near copies, menus, text" \
    "in the wrong encoding or language, items of the benchmark, and made-up personal data."
run -m toy --out out/world

say 45 "1. Clean the corpus" \
    "Normalise, mask personal data, filter, and remove duplicates and documents that contain" \
    "items of the benchmark: a model would learn copies and leaked answers by heart. Nearly all" \
    "that is removed here is planted dirt; out/report.md counts how much of it was found."
# Cleaning also prints three examples of everything that it removed, too many for a first screen:
# here are only the tables, and a few examples that need no Korean.
run data.py clean --input out/world/ko --out out/clean/ko --lang ko --profile formal \
    --workers 2 --decontaminate out/world/kobest > out/log/clean_ko.txt
sed -n '/^step /,/^$/p' out/log/clean_ko.txt
run data.py clean --input out/world/en --out out/clean/en --lang en --profile formal \
    --workers 2 > out/log/clean_en.txt
sed -n '/^step /,/^$/p; /^rules: /{p;n;p}' out/log/clean_en.txt
echo "To see more of what was removed: python data.py show out/clean/ko --html decisions.html"

say 125 "An English base, to have something to adapt" \
    "Its tokenizer has seen 5 % Korean and splits it into syllables; its model has seen none."
head -q -n 250 out/clean/ko/[0-9]*.jsonl > out/five_percent.jsonl
run tokenizer.py train --text all --vocab_size 1536 --input out/clean/en out/five_percent.jsonl \
    --out out/base.model
cat > out/base_config.json <<'JSON'
{"architectures": ["LlamaForCausalLM"], "vocab_size": 1536, "hidden_size": 128,
 "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
 "num_key_value_heads": 2, "max_position_embeddings": 128}
JSON
run data.py pack --input out/clean/en --tokenizer out/base.model --out out/shards_base/en
run data.py pack --input out/clean/ko --tokenizer out/base.model --out out/shards_base/ko
run train.py --config out/base_config.json --tokenizer out/base.model --data out/shards_base/en \
    --stages full:1M:4e-3 --out out/base_run
base=out/base_run/model

say 45 "2. Korean pieces for the tokenizer" \
    "Pieces learned from Korean are merged into the base's tokenizer. Korean then takes fewer" \
    "tokens, and English is segmented exactly as before."
run tokenizer.py train --vocab_size 1500 --input out/clean/ko --out out/korean.model
run tokenizer.py merge --base $base/tokenizer.model --korean out/korean.model --out out/merged.model
run tokenizer.py report --tokenizers $base/tokenizer.model out/merged.model \
    --input out/clean/ko out/clean/en --out out/tokens.json
run data.py pack --input out/clean/ko --tokenizer out/merged.model --out out/shards/ko
run data.py pack --input out/clean/en --tokenizer out/merged.model --out out/shards/en

say 5 "3. Rows for the new pieces" \
    "A new row of the embedding and of the head is the mean of the rows of the tokens that" \
    "spelled the piece before. So training does not have to start from noise."
run init.py --model $base --tokenizer out/merged.model --out out/grown --method subtoken_both
if [ $prepare = yes ]; then
    echo
    echo "Prepared: the grown model is in out/grown, its token shards are in out/shards."
    echo "Next: torchrun train.py   (or: $PYTHON train.py)"
    exit
fi
say 55 "   A probe of the initialisations" \
    "Six ways to make those rows, each trained for 30 steps: the loss before training misleads."
run init.py --model $base --tokenizer out/merged.model --probe out/shards/ko --out out/probe.json \
    --seq_len 128 --probe_batch 4 --probe_steps 30 --lr 3e-3

say 120 "4. Training in stages" \
    "Embedding and head, odd layers, even layers, then LoRA: what is frozen needs no gradients" \
    "and no moments, so a part at a time takes less memory than everything at once."
run train.py --out out/run

say 250 "   Two other arms, to compare with" \
    "full: the same grown model, everything trained at once. plain: the base with its own" \
    "tokenizer, trained for as long as the stages took."
run train.py --stages full:0.9M:4e-3 --out out/run_full
run -m studies.plain --equal time --run out/run --base_run out/base_run --model $base \
    --data out/shards_base --out out/run_plain

say 75 "KoBEST, toy version" \
    "Every arm answers the five tasks. The control scores the answers without their questions."
score() {
    run eval_kobest.py --model "$2" --data out/world/kobest --out "out/kobest/$1.json"
    run eval_kobest.py --model "$2" --data out/world/kobest --answer_only \
        --out "out/kobest/$1.answer_only.json" > out/log/answer_only.txt
}
score base $base
score plain out/run_plain/model
score full out/run_full/model
score nanowhale out/run/model

say 75 "What each arm answers" \
    "The prompts say: on Wednesday Minjun dropped the teacup (or the plate, or the bottle) on" \
    "the floor. So the teacup ... The corpus tells of teacups that were dropped and broke to" \
    "pieces, and never of a plate or a bottle that was dropped."
answer() {
    while read -r name prompt; do
        run sample.py --model "$2" --prompt "$prompt" --temperature 0 --max_new_tokens 16 \
            --out "out/samples/$1.$name.txt" < /dev/null
    done <<'PROMPTS'
teacup 수요일에 민준이 찻잔을 바닥에 떨어뜨렸다. 그래서 찻잔이
plate 수요일에 민준이 접시를 바닥에 떨어뜨렸다. 그래서 접시가
bottle 수요일에 민준이 유리병을 바닥에 떨어뜨렸다. 그래서 유리병이
PROMPTS
}
answer base $base
answer plain out/run_plain/model
answer full out/run_full/model
answer nanowhale out/run/model

say 2 "The report" \
    "What follows is out/report.md."
$PYTHON -m studies.report --out out --seconds $SECONDS

echo "For figures (needs matplotlib): $PYTHON -m bench.figures --speedrun out"
