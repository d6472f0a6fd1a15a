# Sourced by speedrun.sh and test.sh: sets PYTHON. Makes .venv, and installs requirements.txt into it
# whenever that file has changed. With PYTHON=python3 in the environment that interpreter is used, and
# nothing is installed (for a server that has its own PyTorch).
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
