"""Kernels of the corpus, written anew in plain torch: one file a kind; `formula` holds the steps that they share."""
