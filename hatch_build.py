"""Fills `project.urls` from the repository that builds the package, so that no address is written down anywhere."""

from __future__ import annotations

import os

from hatchling.metadata.plugin.interface import MetadataHookInterface


class CustomMetadataHook(MetadataHookInterface):
    """Reads the variables of GitHub Actions: https://docs.github.com/actions/reference/variables-reference."""

    def update(self, metadata: dict) -> None:
        """Set `urls`; they stay empty where the package is built elsewhere."""
        server, repository = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
        metadata["urls"] = {}
        if server and repository:
            home = f"{server}/{repository}"
            metadata["urls"] = {
                "Source": home,
                "Issues": f"{home}/issues",
                "Changelog": f"{home}/blob/main/CHANGELOG.md",
                "Documentation": f"{home}/tree/main/docs",
            }
