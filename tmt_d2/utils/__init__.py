"""Files, random numbers, locks, signals and logs, for every other folder."""
