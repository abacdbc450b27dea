"""Files, random numbers, locks, signals and logs."""
