"""Train an erasure adapter under accelerate: `accelerate launch scripts/train_erase_lora.py RECIPE [flags]`.

The same program as `erasediff-lora train RECIPE [flags]`.
"""

import sys

from erasediff_lora.cli import program

if __name__ == "__main__":
    program(["train", *sys.argv[1:]])
