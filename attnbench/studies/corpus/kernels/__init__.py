"""Kernels of the corpus, rewritten in plain torch: one file for each kind; `formula` holds shared steps."""
