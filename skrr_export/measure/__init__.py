"""The proof: what an export is compared with, by which numbers, within which limits."""
