"""The demo's report, a part of it a module."""
