"""What is stored: cases, arms, results, run directories."""
