"""Runs a plan: streams blocks through methods on some device and writes them where the plan says. Knows no recipes."""
