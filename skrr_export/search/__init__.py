"""Finding a plan: which units to drop, and what to re-use in their place."""
