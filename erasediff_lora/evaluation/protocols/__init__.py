"""Protocols: the settings of well-known benchmarks. A new one is a file here and a line in the registry."""
