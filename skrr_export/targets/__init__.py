"""Formats a bundle is exported to, a package each."""
