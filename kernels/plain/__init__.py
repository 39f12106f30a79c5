"""Engines of plain array operations: NumPy's, to read and to compare with, and torch's, for any device."""
