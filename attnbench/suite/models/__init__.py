"""Make a suite from a model's config.json, as the transformers library writes it. Nothing is downloaded."""

from attnbench.suite.models.suite_text import ModelSuite, suite_of

__all__ = ["ModelSuite", "suite_of"]
