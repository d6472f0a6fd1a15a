#!/usr/bin/env bash
# Set up .venv if needed, then run the tests: all of them, in two processes, or those that the
# arguments for pytest select.
#
#   bash test.sh
#   bash test.sh -k merge
#   bash test.sh -m gpu
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh

if [ $# -gt 0 ]; then
    exec $PYTHON -m pytest "$@"
fi

echo "All tests, in two processes: ten to twenty-five minutes on two cores."
export OMP_NUM_THREADS=1

# These files start many programs and take half of the time. The other process runs all other files,
# including new ones.
programs="tests/test_gpu.py tests/test_parallel.py tests/test_exercises.py tests/test_speedrun.py
    tests/test_signals.py tests/test_export.py tests/test_document_mask.py tests/test_eval_bits.py
    tests/test_llama3.py"
ignored=$(for file in $programs; do echo "--ignore=$file"; done)

# With `set -m` a background job has its own process group and does not ignore SIGINT, which its
# tests send to programs.
set -m
output=$(mktemp)
$PYTHON -m pytest $programs > "$output" 2>&1 &
other=$!
trap 'kill -INT -- -$other 2>/dev/null || true; rm -f "$output"' EXIT

status=0
$PYTHON -m pytest $ignored || status=$?
if [ $status = 2 ]; then
    exit 130  # Ctrl-C: the trap stops the other process
fi
other_status=0
wait $other || other_status=$?
echo
echo "The tests that start programs:"
cat "$output"
if [ $status = 0 ]; then
    status=$other_status
fi
exit $status
