#!/bin/sh
# Build the C library and four hosts, and answer from C and from C++: sh samples/3_embed.sh [FOLDER]
# Needs: pip install '.[cpu,capi]', a C and a C++ compiler, make, Python's headers and shared library.
set -eu
cd "$(dirname "$0")/.."
built=${1:-build/c}
mkdir -p "$built"
built=$(cd "$built" && pwd)
make --silent -C samples/c PYTHON="$(command -v "${PYTHON:-python3}")" BUILD="$built"
prompt=$(cat samples/prompt_math.txt)
"$built/host" samples/student.bundle "$prompt"
"$built/hostpp" samples/student.bundle "$prompt"
