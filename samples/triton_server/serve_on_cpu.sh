#!/bin/sh
# Starts the Triton server that the wheel nvidia-pytriton holds; it needs no GPU and no container (docs/serve.md).
#
#   samples/triton_server/serve_on_cpu.sh ENVIRONMENT REPOSITORY [tritonserver's options]
#
# ENVIRONMENT: a virtual environment of Python 3.11 or 3.12 with nvidia-pytriton, blockstep[cpu] and numpy below 2, into
# which a link to the stub for that Python is put.
# REPOSITORY: what `blockstep export triton` wrote. Listens on 127.0.0.1 alone, unless an option says otherwise.
set -eu
fail() { echo "error: $1" >&2; exit 2; }

[ $# -ge 2 ] || fail "got $# arguments; expected ENVIRONMENT REPOSITORY [tritonserver's options]"
[ -x "$1/bin/python" ] || fail "no virtual environment at $1; make one with python3 -m venv $1"
environment=$(cd "$1" && pwd) repository=$2
shift 2
ask() { "$environment/bin/python" -c "import sys, sysconfig as s; print($1)"; }

triton=$(ask "s.get_path('platlib')")/pytriton/tritonserver version=$(ask "s.get_python_version()")
[ -x "$triton/bin/tritonserver" ] || fail "no Triton in $environment; pip install --no-deps nvidia-pytriton==0.7.0"
stub=$triton/python_backend_stubs/$version/triton_python_backend_stub
[ -x "$stub" ] || fail "the wheel has no stub for Python $version; make $environment with Python 3.11 or 3.12"
"$environment/bin/python" -c 'import numpy, sys; sys.exit(numpy.__version__ >= "2")' 2> /dev/null ||
  fail "no numpy below 2 in $environment, and the stub of Triton 24.10 misreads newer ones; pip install 'numpy<2'"
# The stub embeds Python: it is linked against its library, and takes packages from the first python3 in PATH.
library=$(ask "s.get_config_var('LIBDIR')")
export LD_LIBRARY_PATH="$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH="$environment/bin:$PATH"
missing=$(ldd "$stub" | sed -n 's/ => not found//p' | tr '\t\n' '  ')
[ -z "$missing" ] || fail "the stub needs$missing; on Debian: apt install libpython$version"

ln -sf "$stub" "$triton/backends/python/"
exec "$triton/bin/tritonserver" --model-repository="$repository" --backend-directory="$triton/backends" \
  --http-address=127.0.0.1 --grpc-address=127.0.0.1 --allow-metrics=false "$@"
