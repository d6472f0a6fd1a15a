"""Cleaning a corpus: one step per file, and pipeline.py, which runs them."""
