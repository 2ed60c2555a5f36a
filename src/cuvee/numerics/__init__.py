"""Pure functions on arrays: blocks, scans, exact selection, geometry, counter-based randomness. No names, no files."""
