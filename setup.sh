# Sourced by speedrun.sh and test.sh: sets PYTHON. Makes .venv, and installs requirements.txt into it
# whenever that file has changed. With PYTHON=python3 in the environment that interpreter is used, and
# nothing is installed (for a server that has its own PyTorch).

# Threads that wait for each other spin first and sleep later. GNU OpenMP spins for milliseconds, which
# on a machine that has other work as well keeps the very thread that is waited for from running: two
# threads on two busy cores trained 90 to 280 tokens per second that way, and 2,700 to 5,900 with a
# short spin. A setting of your own goes first.
if [ -z "${OMP_WAIT_POLICY:-}${GOMP_SPINCOUNT:-}" ]; then
    export GOMP_SPINCOUNT=1000
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
