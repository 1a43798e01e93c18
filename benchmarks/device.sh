#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: build, CUDA tests, compute-sanitizer, benchmarks.
#
#   benchmarks/device.sh [FOLDER]      FOLDER: where results go, default benchmarks/results/<GPU's name>
#
# PYTHON: an interpreter with torch >= 2.10 (default python3); missing tools are reported and their step is skipped.
# A step that fails does not stop the next ones; the last lines say what passed, and the exit code is 1 if any failed.
set -uo pipefail

cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
if [[ -z $gpu ]]; then
  echo "no NVIDIA GPU is visible here; nothing was run" >&2
  exit 1
fi
slug=$(tr '[:upper:] ' '[:lower:]-' <<<"$gpu" | sed 's/^nvidia-//')
out=${1:-benchmarks/results/$slug}
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"
failed=0
begin=$SECONDS

# step NAME SECONDS COMMAND...: runs with a time limit, keeps the output in NAME.txt, notes the outcome.
step() {
  local name=$1 limit=$2 code
  shift 2
  local since=$SECONDS
  echo "== $name"
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>&1
  code=$?
  tail -n 5 "$out/$name.txt"
  if ((code == 0)); then
    echo "passed   $name, $((SECONDS - since)) s" >>"$summary"
  else
    echo "FAILED   $name, exit code $code, $((SECONDS - since)) s, see $name.txt" >>"$summary"
    failed=1
  fi
  return "$code"
}
skip() { echo "skipped  $1: $2" | tee -a "$summary"; }

{
  date -u +%Y-%m-%dT%H:%M:%SZ
  git rev-parse HEAD 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
  "$python" -c 'import platform, torch; print("python", platform.python_version(), "torch", torch.__version__)'
  nvcc --version
} >"$out/machine.txt" 2>&1

architecture=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=4

if PUMA_CUDA=1 TORCH_CUDA_ARCH_LIST=$architecture step build 200 "$python" setup.py build_ext --inplace; then
  step info 30 "$python" -m puma_plugin.cli.main info
  step tests 200 "$python" -m pytest tests/ops tests/cuda_host/test_device.py tests/evaluation/test_gpu_search.py -q -x -m "not slow" -p no:cacheprovider

  if command -v compute-sanitizer >/dev/null; then
    # Without torch's caching allocator every tensor is its own allocation, so that its bounds are seen.
    for tool in memcheck racecheck initcheck; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 90 \
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" tests/cuda_host/sanitizer_driver.py
    done
  else
    skip compute-sanitizer "not on the PATH"
  fi

  remaining=$((590 - (SECONDS - begin)))
  if ((remaining < 30)); then
    skip benchmarks "only $remaining s left"
  else
    step benchmarks "$remaining" "$python" -m benchmarks.run --quick --device cuda --out "$out" \
      --suites ceilings adapter prompts
  fi
fi

echo
cat "$summary"
echo "results: $out, $((SECONDS - begin)) s"
exit "$failed"
