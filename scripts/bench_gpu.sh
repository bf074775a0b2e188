#!/usr/bin/env bash
# Memory and speed on this machine's GPU, with random weights, in about twenty minutes, most of which goes into making
# the bases and starting processes:
#   bash scripts/bench_gpu.sh [FOLDER]
# Prints both tables and writes FOLDER/gpu.json, which names the card.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-build/gpu}
python=${PYTHON:-python}

$python scripts/benchmarks/bench_memory.py --work "$work" --only \
  sd15-512 sd15-512-checkpointing sd15-512-checkpointing-8bit sd15-512-nf4-checkpointing-8bit \
  sdxl-1024-checkpointing sdxl-1024-checkpointing-8bit sdxl-1024-nf4-checkpointing-8bit
step() {
  $python scripts/benchmarks/bench_step.py --work "$work" --objectives "grad_norm, detached" "$@"
  mv "$work/step.json" "$work/step-$2.json"
}
step --only sd15-512 --rounds 10 --variants plain channels_last compile
step --only sd15-512-checkpointing --rounds 10 --variants plain channels_last
step --only sdxl-1024-checkpointing --rounds 5
step --only sdxl-1024-nf4-checkpointing-8bit --rounds 5
$python - "$work" << 'PYTHON'
import json, sys
from pathlib import Path

work = Path(sys.argv[1])
memory = json.loads((work / "memory.json").read_text())
steps = [json.loads(file.read_text()) for file in sorted(work.glob("step-*.json"))]
rows = [row for found in steps for row in found["rows"]]
parts = {"memory": memory, "step": {"environment": steps[0]["environment"], "rows": rows}}
(work / "gpu.json").write_text(json.dumps(parts, indent=2) + "\n")
print(memory["device"], "->", work / "gpu.json")
PYTHON
