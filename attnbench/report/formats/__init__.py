"""Runs, comparisons and verdicts as files and messages: one file a format."""

FORMATS = ("table", "md", "csv", "jsonl")  # of results and comparisons on stdout
