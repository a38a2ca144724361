"""The silent-bug corpus: wrong kernels from public reports, and right ones that look suspicious (docs/numerics.md)."""
