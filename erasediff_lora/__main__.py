"""`python -m erasediff_lora`."""

import sys

from erasediff_lora.cli import main

sys.exit(main())
