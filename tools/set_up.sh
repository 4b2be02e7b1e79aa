#!/usr/bin/env bash
# set_up.sh VENV REQUIREMENTS: makes the virtual environment VENV where there is none and installs the
# file's exact pins.
#
# PYTHON and CXX say which interpreter and compiler to use; without PYTHON the first of python3,
# python3.13 ... python3.10 that is new enough is taken.
set -euo pipefail

venv=$1
requirements=$2

fail() {
  printf 'torch_ext: %s\n' "$@" >&2
  exit 1
}

check_system() {
  [ "$(uname -s)" = Linux ] || fail "only Linux is supported, but this is $(uname -s)"
}

check_compiler() {
  local compiler=${CXX:-c++}
  command -v "${compiler%% *}" > /dev/null ||
    fail "no C++ compiler '$compiler' found" \
      "install g++ 11 or later (Debian, Ubuntu: build-essential) or set CXX"
  printf '#include <concepts>\n#include <omp.h>\nstatic_assert(__cplusplus >= 202002L);\n' |
    $compiler -std=c++20 -fopenmp -fsyntax-only -x c++ - ||
    fail "$compiler does not compile C++20 with OpenMP; install g++ 11 or later, or set CXX to one"
}

# Python 3.10 to 3.13, which torch and the pins have wheels for.
is_right_python() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null; }

# Whether the virtual environment can stay: a PYTHON that was named must have its version.
is_right_venv() {
  is_right_python "$venv/bin/python" &&
    { [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$(version_of "$venv/bin/python")" ]; }
}

find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if is_right_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "expected Python 3.10 to 3.13, but got $("${PYTHON:-python3}" --version 2>&1 || true)" \
    "install one of these, or name it: make ... PYTHON=/path/to/python3.12"
}

make_venv() {
  local python=$1 version
  version=$(version_of "$python")
  "$python" -c 'import venv, ensurepip' 2> /dev/null ||
    "$(dirname "$0")/system_package.sh" "python$version-venv" ||
    fail "$python cannot make virtual environments: its venv module is missing" \
      "install it (Debian, Ubuntu: python$version-venv)"
  echo "torch_ext: making $venv with Python $version"
  "$python" -m venv "$venv"
}

check_system
check_compiler
if ! is_right_venv; then
  python=$(find_python)
  rm -rf "$venv"
  make_venv "$python"
fi
"$venv/bin/python" -m pip install --disable-pip-version-check --requirement "$requirements"
