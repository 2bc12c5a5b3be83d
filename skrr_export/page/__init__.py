"""Plans as self-contained HTML pages."""
