#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under five minutes: build, CUDA tests, compute-sanitizer, benchmarks.
#
#   benchmarks/device.sh [FOLDER [SECONDS]]     FOLDER: where results go, default benchmarks/results/<GPU's name>
#                                               SECONDS: the whole call's, default 270; from about 480 on the adapter's
#                                               and prompts' remaining cases are measured, too
#
# PYTHON: an interpreter with torch >= 2.10 (default python3); missing tools are reported and their step is skipped.
# A step that fails does not stop the next ones; the last lines say what passed, and the exit code is 1 if any failed.
# What is timed runs alone; tests and sanitizers share the GPU.
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
seconds=${2:-270}
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"
begin=$SECONDS
left() { echo $((seconds - (SECONDS - begin))); }

# step NAME SECONDS COMMAND...: runs with a time limit, keeps the output in NAME.txt, notes the outcome.
step() {
  local name=$1 limit=$2 code since=$SECONDS
  shift 2
  if (($(left) < limit)); then limit=$(left); fi
  if ((limit < 10)); then
    echo "skipped  $name: no time left" | tee -a "$summary"
    return 0
  fi
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.txt" 2>&1
  code=$?
  if ((code == 0)); then
    echo "passed   $name, $((SECONDS - since)) s" | tee -a "$summary"
  else
    echo "FAILED   $name, exit code $code, $((SECONDS - since)) s, see $name.txt" | tee -a "$summary"
    tail -n 15 "$out/$name.txt"
  fi
  return "$code"
}

{
  date -u +%Y-%m-%dT%H:%M:%SZ
  git rev-parse HEAD 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
  "$python" -c 'import platform, torch; print("python", platform.python_version(), "torch", torch.__version__)'
  nvcc --version
} >"$out/machine.txt" 2>&1

architecture=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
if [[ $architecture == 9.0 ]]; then architecture=9.0a; fi # with Hopper's own instructions, as the default build
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=4 PYTHONUNBUFFERED=1
export PUMA_STRICT=1 # the compiled operators or an error, never plain PyTorch in their place

if PUMA_CUDA=1 TORCH_CUDA_ARCH_LIST=$architecture step build 90 "$python" setup.py build_ext --inplace; then
  step info 30 "$python" -m puma_plugin.cli.main info

  step benchmarks $(($(left) - 60)) "$python" -m benchmarks.run --quick --device cuda --out "$out" \
    --suites ceilings adapter prompts training_step

  workers=$("$python" -c 'import importlib.util, os
print(f"-n {min(8, os.cpu_count())}" if importlib.util.find_spec("xdist") else "")')
  # shellcheck disable=SC2086  # no worker option at all without xdist
  step tests 60 "$python" -m pytest tests/ops tests/cuda_host/test_device.py tests/models/test_cuda.py \
    tests/evaluation/test_gpu_search.py tests/benchmarks/test_kernels.py -k "cuda or device or gpu" \
    -q -m "not slow" -p no:cacheprovider $workers &
  if command -v compute-sanitizer >/dev/null; then
    # Without torch's caching allocator every tensor is its own allocation, so that its bounds are seen.
    for tool in memcheck racecheck initcheck; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 60 \
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" tests/cuda_host/sanitizer_driver.py &
    done
  else
    echo "skipped  compute-sanitizer: not on the PATH" | tee -a "$summary"
  fi
  wait
  step kernels 60 "$python" -m benchmarks.kernels
  if (($(left) >= 240)); then # a result file is written at the end only
    step all_cases "$(left)" "$python" -m benchmarks.run --effort full --no-compiled --device cuda --out "$out/all_cases" \
      --suites ceilings adapter prompts
  fi
fi

echo
cat "$summary"
echo "results: $out, $((SECONDS - begin)) s"
! grep -q '^FAILED' "$summary"
