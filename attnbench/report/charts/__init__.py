"""Charts, each defined once, and the rules by which all are drawn."""
