"""Recipes: from YAML text to a validated, frozen `Recipe`, and every tensor's parameters. Opens no checkpoint."""
