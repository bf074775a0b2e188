"""How long a run takes: the passes of each stage, and what a pass takes here."""
