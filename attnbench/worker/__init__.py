"""Inside the measuring process: messages, prepared cases, expected values, correctness."""
