"""Traces of served requests, and the attention batches of the server that answers them. No torch."""
