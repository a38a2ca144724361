"""What is computed: problems, masks, scores, their cost, and a float64 reference. Pure; no torch at import."""
