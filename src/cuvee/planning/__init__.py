"""Recipe and headers in, a flat tuple of ops out: everything about a merge that is known before a weight is read."""
