"""`python -m skrr_export`."""

from skrr_export.cli import main

main()
