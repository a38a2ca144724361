"""Tables and text in a terminal."""
