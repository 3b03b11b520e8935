#!/usr/bin/env bash
# The speed of training steps beside PyTorch's, eager and compiled: in each round every program runs once, so that all of
# them meet the same hours of the machine. Prints the median of each program over the rounds, in tokens a second.
#
#   tests/reference/compare.sh PYTHON [ROUNDS] [CASE...]
#
# PYTHON  the interpreter of a virtual environment with PyTorch (README.md)
# ROUNDS  default 5
# CASE    model:precision:threads, default: small:f32:1 small:bf16:1 gpt2:f32:1 gpt2:bf16:1
#
# CHOIR is the program, default build/release/choir. On AMD processors PyTorch's products get MKL's kernels for Intel.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { printf 'tests/reference/compare.sh: %s\n' "$@" >&2; exit 2; }

(($# >= 1)) || fail "no PYTHON is named" "fix: tests/reference/compare.sh ~/venv-torch/bin/python"
python=$1 rounds=${2:-5} choir=${CHOIR:-build/release/choir}
shift $(($# < 2 ? $# : 2))
cases=("$@")
((${#cases[@]} > 0)) || cases=(small:f32:1 small:bf16:1 gpt2:f32:1 gpt2:bf16:1)
[[ $rounds =~ ^[1-9][0-9]*$ ]] || fail "ROUNDS is '$rounds', which is not a number of rounds"
[[ -x $choir ]] || fail "$choir does not exist" "fix: launch/train builds it; or name the program in CHOIR"
"$python" -c 'import torch' || fail "$python has no PyTorch" "fix: $python -m pip install torch"
for case in "${cases[@]}"; do
  [[ $case =~ ^(small|gpt2):(f32|bf16):[1-9][0-9]*$ ]] || fail "CASE '$case' is not model:precision:threads"
done

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
# PyTorch's compiled kernels: a run that is ended can leave half of one, so that every run has a folder of its own.
export TORCHINDUCTOR_CACHE_DIR=$results/compiled
preload=''
if grep -q AuthenticAMD /proc/cpuinfo; then
  preload=$results/mkl_intel.so
  echo 'int mkl_serv_intel_cpu(void) { return 1; } int mkl_serv_intel_cpu_true(void) { return 1; }' |
    gcc -shared -fPIC -x c - -o "$preload"
fi

# run_choir MODEL PRECISION THREADS, run_pytorch MODEL PRECISION THREADS [--compile]: one line of JSON
run_choir() {
  OMP_NUM_THREADS=$3 "$choir" bench train "configs/bench-$1.yaml" --json --steps "$steps" --warm-up 1 \
    "train.precision=$2" "train.threads=$3" train.emulate_bf16=true
}
run_pytorch() {
  LD_PRELOAD=$preload "$python" tests/reference/bench_pytorch.py --model "$1" --precision "$2" --threads "$3" \
    --steps "$steps" --warmup 2 "${@:4}"
}

for ((round = 1; round <= rounds; ++round)); do
  for case in "${cases[@]}"; do
    IFS=: read -r model precision threads <<<"$case"
    steps=$([[ $model == gpt2 ]] && echo 3 || echo 6)
    echo "round $round of $rounds: $case" >&2
    run_choir "$model" "$precision" "$threads" >>"$results/$case.choir"
    run_pytorch "$model" "$precision" "$threads" >>"$results/$case.eager"
    run_pytorch "$model" "$precision" "$threads" --compile >>"$results/$case.compiled"
  done
done

"$python" - "$results" "${cases[@]}" <<'PYTHON'
import json, platform, statistics, sys

def processor():
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())

def read(case, program):
    with open(f"{sys.argv[1]}/{case}.{program}") as lines:
        return [json.loads(line) for line in lines if line.startswith("{")]

print(f"{processor()}; tokens/s, medians of {len(read(sys.argv[2], 'choir'))} rounds")
print("| model:precision:threads | Choir | share of the limit | PyTorch eager | compiled | Choir / the better |")
print("|---|---|---|---|---|---|")
for case in sys.argv[2:]:
    speed = {program: [run["tokens_per_second"] for run in read(case, program)]
             for program in ("choir", "eager", "compiled")}
    share = statistics.median(run["share_of_limit"] for run in read(case, "choir"))
    ratio = statistics.median(c / max(e, k) for c, e, k in zip(speed["choir"], speed["eager"], speed["compiled"]))
    middle = {program: statistics.median(values) for program, values in speed.items()}
    print(f"| {case} | {middle['choir']:.0f} | {share:.3f} | {middle['eager']:.0f} | {middle['compiled']:.0f} "
          f"| {ratio:.2f} |")
PYTHON
