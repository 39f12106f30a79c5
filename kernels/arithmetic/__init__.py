"""The arithmetic that all engines share, and the numbers in it."""
