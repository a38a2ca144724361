#!/usr/bin/env bash
# What `make gpu` does: the tests marked gpu and the reference suites on cuda:0, with the packages of PYTHON as they are.
# `make hopper` (gpu_check.sh hopper): the kernels for Hopper instead, from tests to times, each step in a process of its
# own, since what was never run may hang. A step that fails does not end it; the exit code is the worst one. OUT gets
# summary.txt, gpu.log and runs.tar.gz. TOTAL_S=525 SUITES='kernels quick llama3-8b bert-base' has more suites.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-dist/gpu}
plan=${1:-reference}
case $plan in
  reference) suites=(${SUITES:-quick}) total_s=${TOTAL_S:-265} ;;
  # nine minutes, less what it takes to stop the last step and to pack
  hopper) suites=(${SUITES:-hopper}) total_s=${TOTAL_S:-525} ;;
  *) echo "gpu_check.sh $plan: reference or hopper"; exit 2 ;;
esac
tests_s=80
kernels_s=55  # most of it is compiling, by several processes
grace_s=12    # from the end of a suite's budget until its table is printed

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
out=$(cd "$out" && pwd)
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
log=$out/gpu.log summary=$out/summary.txt worst=0
: >"$log" >"$summary"

say() { echo "$*" | tee -a "$summary"; }

# step NAME SECONDS COMMAND...: runs it into the log. An interrupt first: a run then stores what it has.
step() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  echo "== $*" >>"$log"
  timeout --signal=INT --kill-after=10 "$limit" "$@" </dev/null >"$runs/.output" 2>>"$log"
  code=$?
  cat "$runs/.output" >>"$log"
  say "$name: exit code $code after $((SECONDS - began)) s"
  tail -n "${SHOWN:-40}" "$runs/.output" | tee -a "$summary"
  ((code > worst)) && worst=$code
}

# parts NAME SECONDS COMMAND... -- FILTER...: the command once for each filter of tests, all at the same time.
parts() {
  local name=$1 limit=$2 began=$SECONDS code=0 number pids=() command=()
  shift 2
  while [ "$1" != -- ]; do command+=("$1"); shift; done
  shift
  set -m  # or what runs in the background would ignore an interrupt
  for filter in "$@"; do
    echo "== ${command[*]} -k '$filter'" >>"$log"
    timeout --signal=INT --kill-after=10 "$limit" "${command[@]}" -k "$filter" </dev/null \
      >"$runs/.part${#pids[@]}" 2>&1 &
    pids+=($!)
  done
  set +m
  for number in "${!pids[@]}"; do
    wait "${pids[$number]}" || { local ended=$?; ((ended > code)) && code=$ended; }
    cat "$runs/.part$number" >>"$log"
    tail -n 1 "$runs/.part$number" | tee -a "$summary"
  done
  rm -f "$runs"/.part*
  say "$name: exit code $code after $((SECONDS - began)) s"
  ((code > worst)) && worst=$code
}

missing=$("$python" - 2>>"$log" <<'PY'
from importlib.util import find_spec

wanted = "hypothesis msgspec numpy pandas platformdirs psutil pynvml pytest rich scipy typer".split()
print(*[name for name in wanted if find_spec(name) is None])
PY
)
[ -z "$missing" ] || say "not installed: $missing; put them on PYTHONPATH if a step below asks for them"
if ! device=$("$python" -c 'import torch; print(torch.cuda.get_device_name(0), "torch", torch.__version__)' 2>>"$log"); then
  say "no GPU: $python sees none through torch; $log says why"
  exit 1
fi
say "$device"

kernels=tests/gpu/test_kernels_on_gpu.py
hopper=tests/gpu/test_hopper_on_gpu.py
study() { step "$1" "$2" "$python" -m attnbench "${@:3}"; }
if [ "$plan" = reference ]; then
  SHOWN=1 step "pytest -m gpu" "$tests_s" "$python" -m pytest -m gpu tests/gpu --ignore "$kernels" --ignore "$hopper"
  parts "pytest -m gpu $kernels" "$kernels_s" "$python" -m pytest -m gpu "$kernels" -- \
    forward backward_kv backward_q "not forward and not backward"
  study calibrate 30 calibrate --device cuda:0 --budget 1s
  study verify 26 verify --seq 130 --dtype bf16,fp16 --mask none,causal --mode fwd_bwd --device cuda:0 \
    --inputs normal,outlier,large --probe noise,adversarial,determinism,batch --budget 14s --progress lines
  study energy 26 run --seq 4096 --heads 16 --mask causal --mode fwd --device cuda:0 -b sdpa:flash,triton \
    --budget 14s --metrics energy,timers,memory,roofline --timing all --no-save
  study profile 18 profile --seq 4096 --heads 16 --device cuda:0 -b sdpa:flash -o "$runs/profile"
else
  SHOWN=30 step "pytest -m gpu $hopper" 90 "$python" -m pytest -q -m gpu "$hopper"
  for tool in memcheck racecheck synccheck; do
    SHOWN=6 step "compute-sanitizer $tool" 25 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m tests.gpu.small hopper
  done
  study "verify --random" 75 verify --random 60s --dtype bf16,fp16,fp8_e4m3 --device cuda:0 -b triton:hopper \
    --probe determinism --timeout 20s --progress lines
  study tune 100 tune --kernel forward_hopper,backward_kv_hopper,backward_q_hopper --head-dim 128 --budget 80s
fi
for index in "${!suites[@]}"; do
  suite=${suites[$index]}
  share_s=$(((total_s - SECONDS) / (${#suites[@]} - index)))
  if ((share_s <= 2 * grace_s)); then
    say "suite $suite: no time left"
    worst=$((worst > 124 ? worst : 124))
    continue
  fi
  step "suite $suite" "$share_s" "$python" -m attnbench run --suite "$suite" --device cuda:0 \
    --budget "$((share_s - grace_s))s" --out "$runs/$suite"
done

rm -f "$runs/.output"
tar -czf "$out/runs.tar.gz" -C "$runs" .
say "runs: $out/runs.tar.gz   log: $log   summary: $summary"
exit "$worst"
