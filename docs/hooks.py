"""What mkdocs calls while it builds the site: pages made from the code are added to those in this folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs does the same, but only while it loads this file

import _generate
from _generate.registry import Registry


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every op and rule into the navigation."""
    nav: Any = config.nav
    config.nav = _generate.with_registry(nav, Registry.of_hfgraph())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path, text in _generate.pages(Registry.of_hfgraph()).items():
        # Source pages are reached by links; they would drown the navigation.
        level = InclusionLevel.NOT_IN_NAV if path.startswith("source/") else InclusionLevel.UNDEFINED
        files.append(File.generated(config, path, content=text, inclusion=level))
    return files


def on_post_page(output: str, page: object, config: MkDocsConfig) -> str:
    """Let long names in the two sidebars break after an underscore. Only there: the titles themselves also go to the search and the browser's tab."""
    return re.sub(r'(?<=<span class="md-ellipsis">)[^<]*', lambda found: found[0].replace("_", "_<wbr>"), output)
