# Sourced by speedrun.sh and test.sh: sets PYTHON. Makes .venv, and installs requirements.txt into it
# whenever that file has changed. With PYTHON=python3 in the environment that interpreter is used, and
# nothing is installed (for a server that has its own PyTorch).

# Threads that wait for each other spin first and sleep later. GNU OpenMP spins for milliseconds, which
# on a machine that has other work as well keeps the very thread that is waited for from running. The
# speedrun's base with two threads on two Intel cores, tokens per second, idle and very busy: 18,300 to
# 21,800 and 90 to 280 by default; 18,000 to 18,600 and 1,900 to 2,900 with a count of 10,000; 13,000
# to 13,500 and 2,700 to 5,900 with 1,000; 11,700 to 12,100 and 3,100 to 6,000 with
# OMP_WAIT_POLICY=passive. A setting of your own goes first.
if [ -z "${OMP_WAIT_POLICY:-}${GOMP_SPINCOUNT:-}" ]; then
    export GOMP_SPINCOUNT=10000
fi

if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    if ! cmp -s requirements.txt .venv/installed.txt; then
        echo "setting up .venv (once, about a minute)"
        python3 -m venv .venv
        $PYTHON -m pip install --quiet --disable-pip-version-check -r requirements.txt
        cp requirements.txt .venv/installed.txt
    fi
fi
$PYTHON -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanowhale needs Python 3.11 or newer")'
