"""The version of this package, in a module of its own so that no module imports the top-level package for it."""

__version__ = "0.1.0"
