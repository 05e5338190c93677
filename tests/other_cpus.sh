#!/bin/sh
# Runs the sample's engines under emulated CPUs; see --help.
set -eu

usage() {
  cat <<'TEXT'
Usage: tests/other_cpus.sh [--sample DIR] [--suite] [CPU ...]
       tests/other_cpus.sh --matrix [--first-loads] [--sample DIR] [CPU ...]

Runs the sample student in fp32, fp16, int8 and int4 under emulated CPUs and compares its keys and values with PyTorch's.

  haswell   x86-64 with AVX2 and no VNNI, where ONNX Runtime's fast int8 products saturate
  nehalem   x86-64 without AVX, where they are exact
  aarch64   Cortex-A76, as in a Raspberry Pi 5: numpy, tokenizers, onnxruntime and runtime/ alone
  (default: all three)

With --matrix it replays the recorded references of three models in every precision, with one and two threads, with the
installed packages and the oldest that pyproject.toml allows, and reports each load's worst figure as a share of its
bound and what was farthest off. CPUs are these three (default: all five), and

  native    this machine; it replays the whole references and the answers
  a72       aarch64 on a Cortex-A72, as in a Raspberry Pi 4, without the int8 dot products of the A76

  --matrix      replay references; no load may be refused, unless int8 products are made to saturate
  --first-loads with --matrix: replay what a first load does and no more, as whole references take an emulator minutes
  --sample DIR  sample that tests/support/forced_steps.py (with --matrix: honest_bundles.py) wrote to DIR (default: write
                it anew)
  --suite       also run the suite's quantized tests on the x86-64 CPUs (half an hour each)

Environment:
  PYTHON        Python that has blockstep with its extras cpu, train, export and test (default: .venv/bin/python)
  OTHER_CPUS    folder of what is downloaded and made for the emulators (default: .other_cpus, 250 MB)

Needs qemu-x86_64-static and qemu-aarch64-static (Debian: apt install qemu-user-static); aarch64 also needs apt-get and
dpkg, a package source with arm64, and a package index for pip at its first run. No rights are needed.
Exit code: 0 all right, 1 a check failed, 2 wrong use, 77 something needed is missing.
TEXT
}

main() {
  sample='' suite='' matrix='' part='' cpus=''
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --sample) [ $# -gt 1 ] || refuse "--sample needs a folder"; sample=$(realpath "$2"); shift ;;
      --suite) suite=yes ;;
      --matrix) matrix=yes ;;
      --first-loads) part=--first-loads ;;
      haswell | nehalem | aarch64 | native | a72) cpus="$cpus $1" ;;
      *) refuse "$1 is neither an option nor a CPU; expected haswell, nehalem or aarch64" ;;
    esac
    shift
  done
  case "$matrix$cpus" in native | ' native'* | *' a72'*) [ "$matrix" ] || refuse "native and a72 need --matrix" ;; esac
  [ "$matrix" ] || [ ! "$part" ] || refuse "--first-loads needs --matrix"
  cd "$(dirname "$0")/.."
  PYTHON=${PYTHON:-$PWD/.venv/bin/python} folder=$(realpath -m "${OTHER_CPUS:-.other_cpus}")
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PWD" XDG_CACHE_HOME="$work/cache"
  if [ "$matrix" ]; then run_matrix ${cpus:-native nehalem haswell aarch64 a72}; fi
  if [ -z "$sample" ]; then
    sample=$work/sample
    "$PYTHON" tests/support/forced_steps.py "$sample"
  fi
  failed=0
  for cpu in ${cpus:-haswell nehalem aarch64}; do
    "install_$cpu"
    "$folder/$cpu/bin/python" tests/support/emulated.py "$cpu" "$sample" || failed=1
    if [ "$suite" ] && [ "$cpu" != aarch64 ]; then run_suite "$cpu" || failed=1; fi
  done
  exit $failed
}

# Replays references on each CPU with the newest and the oldest packages, and exits.
run_matrix() {
  if [ -z "$sample" ]; then
    sample=$work/sample
    mkdir "$sample"
    "$PYTHON" tests/support/honest_bundles.py "$sample" "$OPERATIONS"
  fi
  failed=0
  for cpu in "$@"; do
    python=$folder/$cpu/bin/python machine=x86_64 replayed=$part
    case $cpu in
      native) python=$PYTHON machine=$(uname -m) replayed=${part:---whole} ;;
      aarch64 | a72) machine=aarch64 && "install_$cpu" ;;
      *) "install_$cpu" ;;
    esac
    unpack_oldest
    for packages in '' ":$folder/oldest-$machine"; do
      PYTHONPATH="$PWD$packages" "$python" tests/support/honest_loads.py "$cpu" "$sample" $replayed || failed=1
    done
  done
  "$PYTHON" tests/support/honest_loads.py summary "$sample" || failed=1
  exit $failed
}

refuse() { echo "error: $1; see --help" >&2; exit 2; }

lack() { echo "missing: $1" >&2; exit 77; }

# The path of a program; qemu's are called so in Debian 12 and without "-static" in later ones.
find_program() { command -v "$1-static" || command -v "$1" || lack "$1 (Debian: apt install $2)"; }

# TCG lacks some features of a Haswell and warns of each in every process, so they are left out. QEMU 7.2 computes numpy's
# AVX2 argsort of 16 int64 wrong, by which the decode loop never ends, so numpy goes without its AVX2 kernels.
install_haswell() {
  install_x86_64 haswell Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm NPY_DISABLE_CPU_FEATURES=X86_V3
}

install_nehalem() { install_x86_64 nehalem Nehalem; }

# OpenBLAS does not ask whether there is AVX before it takes Haswell's kernels, so it is told the CPU.
install_x86_64() { # name, qemu's -cpu, a variable of the environment
  emulator=$(find_program qemu-x86_64 qemu-user-static)
  real=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.executable))')
  version=$("$PYTHON" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
  packages=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  write_environment "$folder/$1" "$version" "$real" "import site; site.addsitedir('$packages')" \
    "$emulator -cpu $2 -E OPENBLAS_CORETYPE=$1${3:+ -E $3}"
}

install_aarch64() {
  install_arm64 aarch64 cortex-a76 0xd0b "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm \
lrcpc dcpop asimddp"
}

install_a72() { install_arm64 a72 cortex-a72 0xd08 "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"; }

install_arm64() { # name, qemu's -cpu, part number and features in /proc/cpuinfo
  emulator=$(find_program qemu-aarch64 qemu-user-static)
  root=$folder/aarch64/root packages=$folder/aarch64/packages
  if ! cmp -s constraints.txt "$folder/aarch64/constraints.txt"; then
    rm -rf "$folder/aarch64"
    mkdir -p "$root" "$packages"
    unpack_root > "$work/log" 2>&1 || { cat "$work/log" >&2; lack "arm64 packages of Debian"; }
    version=$(find_version)
    unpack_wheels > "$work/log" 2>&1 || { cat "$work/log" >&2; lack "wheels for aarch64"; }
    cp constraints.txt "$folder/aarch64/constraints.txt"
  fi
  version=$(find_version)
  describe_processors "$3" "$4" > "$root/proc/cpuinfo"
  write_environment "$folder/$1" "$version" "$root/usr/bin/$version" "$packages" "$emulator -cpu $2 -L $root"
}

find_version() { basename "$(ls "$root"/usr/bin/python3.*[0-9])"; }

# A Python for arm64 of the same Debian as this one, with apt's state in a folder of its own.
unpack_root() (
  mkdir -p "$root/proc" "$work/lists/partial" "$work/debs"
  cd "$work/debs"
  options="-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists=$work/lists
    -o Dir::State::status=/dev/null -o Dir::Cache=$work/apt -o APT::Sandbox::User=root -o Acquire::Languages=none"
  apt-get $options -q update || return 1
  names=$(apt-cache $options depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances python3-minimal libpython3-stdlib libstdc++6 libgomp1 | grep -E '^(lib|python3|zlib1g)' | grep -v perl |
    sort -u)
  apt-get $options -q download $names || return 1
  for deb in *.deb; do dpkg -x "$deb" "$root" || return 1; done
)

unpack_wheels() { unpack_packages aarch64 "${version#python}" constraints.txt "$packages"; }

# The oldest packages that pyproject.toml allows, for sys.path before the newest, whose dependencies they take.
unpack_oldest() {
  "$PYTHON" tests/oldest.py cpu > "$work/oldest.txt"
  if ! cmp -s "$work/oldest.txt" "$folder/oldest-$machine/constraints.txt"; then
    rm -rf "$folder/oldest-$machine"
    mkdir -p "$folder/oldest-$machine"
    python_version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    unpack_packages "$machine" "$python_version" "$work/oldest.txt" "$folder/oldest-$machine" --no-deps \
      > "$work/log" 2>&1 || { cat "$work/log" >&2; lack "the oldest wheels for $machine"; }
    cp "$work/oldest.txt" "$folder/oldest-$machine/constraints.txt"
  fi
}

unpack_packages() { # machine, version of Python, constraints, folder, further options of pip
  platforms='' wheels=$(mktemp -d -p "$work")
  for glibc in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
    platforms="$platforms --platform ${glibc}_$1"
  done
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --only-binary=:all: $platforms --python-version "$2" \
    --implementation cp -c "$3" -d "$wheels" ${5:-} numpy tokenizers onnxruntime || return 1
  for wheel in "$wheels"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$4" || return 1; done
}

# onnxruntime asks /proc/cpuinfo for an Arm CPU's features and crashes at the host's x86 one, which emulators before QEMU
# 8.1 let through. They look for every file below their -L first.
describe_processors() { # part number, features
  for number in $(seq 0 $(($(nproc --all) - 1))); do
    printf 'processor\t: %s\nFeatures\t: %s\n' "$number" "$2"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: %s\n' "$1"
    printf 'CPU revision\t: 1\n\n'
  done
}

# A virtual environment whose python starts the emulator. It is sys.executable there, so child processes are emulated too:
# a child that was started by the real interpreter's path would run on the host's own CPU.
write_environment() { # folder, python's version, its real file, line of the .pth, emulator
  mkdir -p "$1/bin" "$1/lib/$2/site-packages"
  printf 'home = %s\ninclude-system-site-packages = false\n' "$(dirname "$3")" > "$1/pyvenv.cfg"
  echo "$4" > "$1/lib/$2/site-packages/installed.pth"
  printf '#!/bin/sh\nexec %s -0 "$0" "%s" "$@"\n' "$5" "$3" > "$1/bin/python"
  chmod +x "$1/bin/python"
}

run_suite() { # name of the CPU
  "$folder/$1/bin/python" -m pytest -p no:cacheprovider --durations=5 tests/test_ort_saturation.py \
    tests/test_quantization_ort_int4.py tests/test_quantization_trt.py tests/test_proof_quantized.py
}

OPERATIONS=1e9  # floating-point operations of a first load here, a twentieth of the export's: emulated CPUs are slow
main "$@"
