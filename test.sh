#!/usr/bin/env bash
# Set up if need be, then run the tests: all of them, in two processes, or those that pytest's
# arguments choose.
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

echo "All tests, in two processes: about eleven minutes on two cores."
export OMP_NUM_THREADS=1

# Files whose tests start many programs take half of the time. Every other file, a new one too, is in
# the other half.
programs="tests/test_gpu.py tests/test_parallel.py tests/test_exercises.py tests/test_speedrun.py
    tests/test_signals.py tests/test_export.py tests/test_document_mask.py tests/test_eval_bits.py
    tests/test_llama3.py"
ignored=$(for file in $programs; do echo "--ignore=$file"; done)

# With -m a job in the background has a process group of its own, and is not deaf to SIGINT, which its
# tests send to programs.
set -m
output=$(mktemp)
$PYTHON -m pytest $programs > "$output" 2>&1 &
other=$!
trap 'kill -INT -- -$other 2>/dev/null || true; rm -f "$output"' EXIT

status=0
$PYTHON -m pytest $ignored || status=$?
if [ $status = 2 ]; then
    exit 130  # Ctrl-C: the other process ends with this one
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
