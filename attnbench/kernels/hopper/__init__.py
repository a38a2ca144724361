"""Kernels for Hopper, in Gluon: docs/hopper.md."""
