#!/usr/bin/env bash
# Builds the environment of `make venv`: build_venv.sh PYTHON DIRECTORY pinned|system
# The stamp DIRECTORY/installed-* is written last, so that a half-finished install is never taken for a whole one.
set -euo pipefail
python=$1 venv=$2 torch=$3

die() { echo "make venv: $*" >&2; exit 2; }

purelib() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "PYTHON=$python does not run or is older than Python 3.11; name another one: make venv PYTHON=python3.12"

rm -f "$venv"/installed-*
constraints=$PWD/constraints.txt

case $torch in
  pinned)
    extras=triton,dev
    # An environment that sees the system's packages would take its torch from there.
    fresh=$(grep -qs 'include-system-site-packages = true' "$venv/pyvenv.cfg" && echo --clear || true)
    "$python" -m venv $fresh "$venv"
    ;;
  system)
    extras=dev
    own=$("$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null) ||
      die "TORCH=system, but $python has no torch; install it there, or leave TORCH away"
    "$python" -m venv --clear --system-site-packages "$venv"
    # Where PYTHON lies in a virtual environment of its own, "system" does not mean its packages.
    purelib "$python" >"$(purelib "$venv/bin/python")/own-torch.pth"
    # torch==OWN makes pip stop, not fetch another one, where OWN is outside the range of pyproject.toml.
    constraints=$(cd "$venv" && pwd)/constraints.txt
    { grep -vE '^(torch|triton|numpy)==' constraints.txt; echo "torch==$own"; } >"$constraints"
    ;;
  *) die "TORCH=$torch: pinned or system" ;;
esac

# By the environment and not by -c, so that it holds for the build requirements too.
PIP_CONSTRAINT=$constraints "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile -e ".[$extras]"
# On all cores, which pip does not do. A file that cannot be compiled is one of another version of Python.
"$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python*/site-packages >/dev/null || true
touch "$venv/installed-$torch"
