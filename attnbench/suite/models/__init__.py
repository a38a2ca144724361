"""Make a suite from a model's config.json, as the transformers library writes it. Nothing is downloaded."""

from attnbench.suite.models.config_file import read_config
from attnbench.suite.models.suite_text import ModelSuite, suite_of

__all__ = ["ModelSuite", "read_config", "suite_of"]
