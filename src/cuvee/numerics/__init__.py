"""Pure functions on arrays: blocks and scans, exact selection, geometry, counter-based randomness. Knows no names or files."""
