"""The sections of a measurement's page."""
