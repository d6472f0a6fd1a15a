#!/usr/bin/env bash
# Set up if need be, then run the tests. Arguments go to pytest:  bash test.sh -k merge      bash test.sh -m gpu
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh
exec $PYTHON -m pytest "$@"
