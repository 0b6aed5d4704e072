#!/usr/bin/env bash
# Prints the Python to use, or says in one line what is missing.
# Usage: preflight.sh [PYTHON]
set -u

fail() {
    echo "megatron-vr: $1" >&2
    exit 1
}

suits() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

wanted="${1:-}"
found=""
for candidate in ${wanted:-python3 python3.12 python3.11 python3.13 python3.10}; do
    if suits "$candidate"; then
        found="$candidate"
        break
    fi
done
if [ -z "$found" ]; then
    have=$(${wanted:-python3} --version 2>&1 | head -n 1)
    fail "Python 3.10 to 3.13 is needed; ${wanted:-python3} is: ${have:-not found}. Set PYTHON=…"
fi
"$found" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "the venv module of $found is missing (on Debian: apt install python3-venv)"
command -v "${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 ||
    fail "a C++ compiler is missing (on Debian: apt install g++)"
echo "$found"
