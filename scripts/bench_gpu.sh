#!/usr/bin/env bash
# Memory and speed on this machine's GPU, with random weights, and the whole job on the embedded model, in two parts of
# seven minutes at most, and a third that takes longer:
#   bash scripts/bench_gpu.sh a [FOLDER]        samples a second by batch size, in eager mode and compiled
#   bash scripts/bench_gpu.sh b [FOLDER]        the embedded job: sets, steps, evaluation, plain and robust
#   bash scripts/bench_gpu.sh memory [FOLDER]   what training takes, against the plan
# Each prints its table and leaves FOLDER/gpu-PART.json, which names the card.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:?a, b or memory}
work=${2:-build/gpu}
python=${PYTHON:-python}
ends=$((SECONDS + 410))
mkdir -p "$work"

within() {  # what is left of the seven minutes
  local left=$((ends - SECONDS))
  ((left > 5)) || { echo "no time left for: $*"; return 0; }
  timeout "$left" "$@" || echo "stopped: $*"
}
step() {
  local name=$1
  shift
  within $python scripts/benchmarks/bench_step.py --work "$work" --objectives "grad_norm, detached" --warm_up 2 "$@"
  if [ -f "$work/step.json" ]; then mv "$work/step.json" "$work/step-$name.json"; fi
}
job() {
  local name=$1 began=$EPOCHREALTIME
  shift
  within $python -m erasediff_lora demo --model.device cuda --output "$work/$name" --cache "$work/cache-$name" \
    --overwrite "$@"
  echo "{\"job\": \"$name\", \"seconds\": $(echo "$EPOCHREALTIME - $began" | bc)}" > "$work/job-$name.json"
}

case $part in
a)
  step sd15 --only sd15-512 --rounds 5 --batch_sizes 1 2 4 8 16 --variants plain one_pass
  step sd15-compiled --only sd15-512 --rounds 5 --batch_sizes 1 8 --variants compile
  step sdxl --only sdxl-1024-checkpointing --rounds 3 --batch_sizes 1 2 4 8 16 --variants plain
  ;;
b)
  job plain
  job one_pass --training.one_pass true
  job robust --preset robust --training.steps 100
  ;;
memory)
  $python scripts/benchmarks/bench_memory.py --work "$work" --only \
    sd15-512 sd15-512-checkpointing sd15-512-checkpointing-8bit sd15-512-nf4-checkpointing-8bit \
    sdxl-1024-checkpointing sdxl-1024-checkpointing-8bit sdxl-1024-nf4-checkpointing-8bit
  mv "$work/memory.json" "$work/step-memory.json"
  ;;
*)
  echo "unknown part: $part" && exit 2
  ;;
esac
$python - "$work" "$part" << 'PYTHON'
import json, sys
from pathlib import Path

import torch

work, part = Path(sys.argv[1]), sys.argv[2]
pattern = "job-*.json" if part == "b" else "step-*.json"
found = {file.stem: json.loads(file.read_text()) for file in sorted(work.glob(pattern))}
for name, one in found.items():
    if part == "b" and (evaluation := work / one["job"] / "evaluation.json").is_file():
        report = json.loads(evaluation.read_text())
        one |= {"evaluation_seconds": report["seconds"], "verdict": report["verdict"]}
card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
(work / f"gpu-{part}.json").write_text(json.dumps({"card": card} | found, indent=2) + "\n")
print(card, "->", work / f"gpu-{part}.json")
PYTHON
