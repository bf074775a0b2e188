#!/usr/bin/env bash
# Memory and speed on this machine's GPU, with random weights, in under ten minutes:
#   bash scripts/bench_gpu.sh [FOLDER]
# Prints both tables and writes FOLDER/gpu.json, which names the card.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-build/gpu}
python=${PYTHON:-python}

$python scripts/bench_memory.py --work "$work" --only \
  sd15-512 sd15-512-checkpointing sd15-512-checkpointing-8bit sd15-512-nf4-checkpointing-8bit \
  sdxl-1024-checkpointing sdxl-1024-checkpointing-8bit sdxl-1024-nf4-checkpointing-8bit
$python scripts/bench_step.py --work "$work" --rounds 10 --objectives "grad_norm, detached" \
  --only sd15-512 sdxl-1024-checkpointing sdxl-1024-nf4-checkpointing-8bit --variants plain channels_last
$python - "$work" << 'PYTHON'
import json, sys
from pathlib import Path

work = Path(sys.argv[1])
parts = {name: json.loads((work / f"{name}.json").read_text()) for name in ("memory", "step")}
(work / "gpu.json").write_text(json.dumps(parts, indent=2) + "\n")
print(parts["step"]["environment"]["device"], "->", work / "gpu.json")
PYTHON
