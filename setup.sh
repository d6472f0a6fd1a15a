# Sourced by speedrun.sh and test.sh: sets PYTHON. It creates .venv, and installs requirements.txt
# into it whenever that file has changed. If PYTHON is set (PYTHON=python3 bash speedrun.sh), that
# interpreter is used and nothing is installed; this is for a server that has its own PyTorch.

# A thread that waits for another one spins before it sleeps. GNU OpenMP spins for milliseconds, and
# on a busy machine this keeps the other thread from running. Tokens per second of the speedrun's
# base, two threads on two Intel cores:
#
#                                   idle machine       very busy machine
#     default                       18,300 to 21,800   90 to 280
#     GOMP_SPINCOUNT=10000          18,000 to 18,600   1,900 to 2,900
#     GOMP_SPINCOUNT=1000           13,000 to 13,500   2,700 to 5,900
#     OMP_WAIT_POLICY=passive       11,700 to 12,100   3,100 to 6,000
#
# If either variable is set already, it is left as it is.
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
$PYTHON -c 'import sys
sys.exit(sys.version_info < (3, 11) and "nanowhale needs Python 3.11 or newer")'
