#!/bin/sh
# Builds the project on an offline machine with a GPU, tests and measures it there. Fetches nothing.
#
#   bench/gpu.sh [--quick] [FOLDER [STEP...]]
#
# FOLDER: where logs and figures go (default: $OUT). STEPs: build doctor tests ops peers (default:
# all of them, in this order; the others need an earlier build). --quick: few tests and tiny sizes;
# a CPU that acts as a GPU, such as lavapipe, is enough.
#
# Environment:
#   PYTHON              Python 3.11 to 3.13 with torch (default: python3)
#   WHEELS              folder of wheels, to install modules that PYTHON lacks
#   EBMVK_PREFIX        folder with what the system lacks (include, lib, bin), for example the `usr`
#                       of unpacked packages
#   KOMPUTE_SOURCE_DIR  unpacked sources of Kompute 0.9.0 (sdist kp); default: kp-0.9.0 or
#                       kp-0.9.0.tar.gz in the tree or beside it
#   EBMVK_TEST_DEVICE   vulkan:<i> (default: the first Vulkan device that isn't a CPU)
#   EBMVK_COMMIT        the commit, if the tree has no history
#
# Exit status: 0 if all is well; 1 if a step failed (the others still ran); 2 if something is missing.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=$root/build/gpu
python=$build/venv/bin/python
kompute=kp-0.9.0

say() { printf '%s\n' "gpu.sh: $*" >&2; }
fail() {
    say "error: $1"
    shift
    for line in "$@"; do say "  $line"; done
    exit 2
}
have() { command -v "$1" >/dev/null 2>&1; }

# ------------------------------------------------------------------------------------------------ arguments
command="$0 $*"
quick=''
if [ "${1:-}" = --quick ]; then
    quick=--quick
    shift
fi
out=${1:-${OUT:-}}
[ -n "$out" ] || fail "no folder for the results" "try: $0 FOLDER"
[ $# = 0 ] || shift
steps=${*:-build doctor tests ops peers}
for step in $steps; do
    case $step in
    build | doctor | tests | ops | peers) ;;
    *) fail "no such step: $step" "steps are: build doctor tests ops peers" ;;
    esac
done
chosen() { case " $steps " in *" $1 "*) ;; *) return 1 ;; esac }
mkdir -p "$out" "$build"
out=$(CDPATH='' cd -- "$out" && pwd)
cd "$root"

if [ -n "${EBMVK_PREFIX:-}" ]; then
    [ -d "$EBMVK_PREFIX" ] || fail "EBMVK_PREFIX=$EBMVK_PREFIX isn't a folder"
    libraries=$EBMVK_PREFIX/lib
    for folder in "$EBMVK_PREFIX"/lib/*-linux-gnu; do libraries=$libraries:$folder; done
    export PATH="$EBMVK_PREFIX/bin:$PATH" CPATH="$EBMVK_PREFIX/include${CPATH:+:$CPATH}"
    export CMAKE_PREFIX_PATH="$EBMVK_PREFIX${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"
    export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

# ------------------------------------------------------------------------------------------------ what there is
# Use a new venv, so that nothing is installed elsewhere. If PYTHON belongs to a venv itself,
# --system-site-packages would not find its packages, so a .pth file adds them and their .pth files.
make_venv() {
    base=${PYTHON:-python3}
    have "$base" || fail "there is no $base" "try: PYTHON=/path/to/python3 $0"
    "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
        fail "$base is $("$base" --version 2>&1), not Python 3.11 to 3.13" "try: PYTHON=/path/to/python3.12 $0"
    "$base" -m venv --without-pip --system-site-packages --clear "$build/venv" >"$out/build.log" 2>&1 ||
        fail "no virtual environment could be made in $build/venv" "see $out/build.log"
    "$base" -c '
import site
print(*(f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()), sep="\n")
' >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gpu.pth"
}

lacking() { "$python" - "$@" <<'END'
import importlib.util
import sys

print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
END
}

modules() {
    needed='numpy torch pybind11'
    if chosen doctor; then needed="$needed tyro rich scipy"; fi
    if chosen tests; then
        needed="$needed scipy safetensors tokenizers tyro rich matplotlib jinja2 pytest pytest_timeout hypothesis mpmath"
    fi
    wanted=''
    if chosen peers; then wanted='faiss torchebm'; fi
    # shellcheck disable=SC2086  # lists of words
    missing=$(lacking $needed $wanted)
    if [ -n "$missing" ] && [ -n "${WHEELS:-}" ]; then
        say "installing from $WHEELS what Python lacks: $missing"
        "$python" -m pip --version >/dev/null 2>&1 || fail "Python has no pip to install wheels with"
        # One by one, so that a missing wheel doesn't prevent the others.
        for wheel in "$WHEELS"/*.whl; do
            "$python" -m pip install --disable-pip-version-check --quiet --no-index --no-deps "$wheel" \
                >>"$out/build.log" 2>&1 || say "not installed: $wheel (see $out/build.log)"
        done
    fi
    # shellcheck disable=SC2086
    missing=$(lacking $needed)
    [ -z "$missing" ] || fail "Python lacks these modules: $missing" \
        "try: WHEELS=/folder/of/wheels $0, with wheels for $("$python" --version) and this machine in it"
    # shellcheck disable=SC2086
    missing=$(lacking $wanted)
    [ -z "$missing" ] || say "bench.peers will leave out what is not installed: $missing"
}

compiler() {
    for compiler in "${CXX:-}" c++ g++ clang++; do
        if [ -n "$compiler" ] && have "$compiler"; then
            printf '%s' "$compiler"
            return
        fi
    done
    return 1
}
header() { echo "#include <$1>" | "$(compiler)" -E -x c++ - >/dev/null 2>&1; }

find_kompute() {
    if [ -n "${KOMPUTE_SOURCE_DIR:-}" ]; then return; fi
    for folder in "$root" "$root/.." "$root"/build/*/kompute; do
        if [ -e "$folder/$kompute/src/Sequence.cpp" ]; then
            KOMPUTE_SOURCE_DIR=$folder/$kompute
            return
        elif [ -e "$folder/$kompute.tar.gz" ]; then
            tar -xzf "$folder/$kompute.tar.gz" -C "$build"
            KOMPUTE_SOURCE_DIR=$build/$kompute
            return
        fi
    done
}

tools() {
    missing=''
    lack() { missing="$missing
$1"; }
    if compiler >/dev/null; then
        header vulkan/vulkan.hpp || lack "the header vulkan/vulkan.hpp (package libvulkan-dev)"
        header fmt/format.h || lack "the header fmt/format.h (package libfmt-dev)"
        header hwy/highway.h || say "without hwy/highway.h (package libhwy-dev) the CPU kernels are plain loops"
    else
        lack "a C++17 compiler (package g++)"
    fi
    have cmake || lack "cmake, 3.24 or newer"
    have glslc || lack "the shader compiler glslc (package glslc)"
    find_kompute
    [ -e "${KOMPUTE_SOURCE_DIR:-}/src/Sequence.cpp" ] ||
        lack "Kompute's sources: $kompute or $kompute.tar.gz in $root or beside it, or KOMPUTE_SOURCE_DIR"
    [ -z "$missing" ] || fail "these are missing:$missing" "try: EBMVK_PREFIX=/folder/usr $0, with unpacked packages there"
}

# ------------------------------------------------------------------------------------------------ steps
failed=''
step() { # step NAME LOG COMMAND...: its output goes to the log and to ours
    name=$1 log=$out/$2
    shift 2
    say "$name: $*"
    start=$(date +%s)
    status=0
    { "$@" 2>&1 || echo $? >"$build/status"; } | tee "$log"
    if [ -e "$build/status" ]; then
        status=$(cat "$build/status")
        rm "$build/status"
        failed="$failed $name"
    fi
    say "$name: exit status $status after $(($(date +%s) - start)) s"
    echo "$name: exit status $status after $(($(date +%s) - start)) s: $*" >>"$out/run.txt"
}

build() {
    tools
    say "building with $(compiler), $(cmake --version | head -n 1), Kompute from $KOMPUTE_SOURCE_DIR"
    generator=''
    if have ninja; then generator='-GNinja'; fi
    # shellcheck disable=SC2086
    if ! { cmake -S "$root" -B "$build/cmake" $generator -DPython_EXECUTABLE="$python" -DEBMVK_VULKAN=ON \
        -DKOMPUTE_SOURCE_DIR="$KOMPUTE_SOURCE_DIR" && cmake --build "$build/cmake" --parallel; } \
        >>"$out/build.log" 2>&1; then
        tail -n 40 "$out/build.log" >&2
        fail "the build failed; above are the last lines of $out/build.log"
    fi
    cp "$build"/cmake/_cpu*.so "$build"/cmake/_vulkan*.so "$root/ebmvk/" # where Python takes them from, in this tree
}

choose_device() {
    EBMVK_TEST_DEVICE=${EBMVK_TEST_DEVICE:-$("$python" - "$quick" <<'END'
import sys

from ebmvk.engine.vulkan import devices
from ebmvk.errors import DeviceError

try:
    found = devices()
except DeviceError as error:
    sys.exit(str(error))
usable = [device for device in found if device.type != "cpu"] or (found if sys.argv[1] else [])
if not usable:
    names = ", ".join(f"{device.name} ({device.type})" for device in found) or "none"
    sys.exit(f"Vulkan devices here: {names}")
print(f"vulkan:{usable[0].index}")
END
    )} || fail "there is no GPU that Vulkan can use" \
        "is its driver's JSON file found? Name it in VK_DRIVER_FILES; EBMVK_PREFIX may bring the loader (libvulkan1)" \
        "to try this script on a CPU in disguise: $0 --quick"
    export EBMVK_TEST_DEVICE
}

doctor() {
    seconds=120
    if [ -n "$quick" ]; then seconds=5; fi
    step doctor doctor.log "$python" -m ebmvk doctor --device "$EBMVK_TEST_DEVICE" \
        --report "$out/doctor.json" --seconds "$seconds"
}

tests() {
    if [ -n "$quick" ]; then
        set -- tests/ops/test_topk.py tests/ops/test_sphere_ops.py tests/ops/test_vulkan_ceilings.py -k vulkan
    fi
    step tests tests.log "$python" -m pytest -q -ra "$@"
}

measure() { # measure ops|peers
    for device in "$EBMVK_TEST_DEVICE" cpu; do
        name=$1-${device%%:*}
        # shellcheck disable=SC2086  # nothing or one word
        step "$name" "$name.log" "$python" -m "bench.$1" --device "$device" --json "$out/$name.json" $quick
    done
}

if chosen build; then
    make_venv
elif [ ! -e "$python" ]; then
    fail "nothing is built yet" "try: $0 $out"
fi
modules
if chosen build; then build; fi
choose_device
{
    echo "command: $command"
    echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "commit: ${EBMVK_COMMIT:-$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)}"
    echo "system: $(uname -a)"
    echo "python: $("$python" -c 'import sys, torch; print(sys.version.split()[0], "torch", torch.__version__)')"
    echo "device: $EBMVK_TEST_DEVICE: $("$python" -c '
import sys
from ebmvk.engine.vulkan import devices
print(*(f"{d.name} ({d.type}), driver {d.driver}, {d.memory_bytes} bytes" for d in devices() if d.index == int(sys.argv[1])))
' "${EBMVK_TEST_DEVICE#vulkan:}")"
    if have nvidia-smi; then echo "nvidia-smi: $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader)"; fi
} | tee -a "$out/run.txt"
if chosen doctor; then doctor; fi
if chosen tests; then tests; fi
if chosen ops; then measure ops; fi
if chosen peers; then measure peers; fi
[ -z "$failed" ] || {
    say "these steps failed:$failed (logs in $out)"
    exit 1
}
say "all well: figures and logs in $out"
