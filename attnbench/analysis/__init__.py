"""What follows from results: statistics, metrics, rows, comparisons."""
