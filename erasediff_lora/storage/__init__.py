"""Files that survive: atomic and checksummed writes, locks, the folder of a run."""
