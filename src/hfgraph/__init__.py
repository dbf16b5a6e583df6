"""hfgraph: a torch.compile backend for Hugging Face models.

    model.compile(backend="hfgraph")

Recognises what a traced model means, rewrites it, proves the rewrite, and hands it to Inductor.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfgraph.explaining import explain as explain
    from hfgraph.options import Options as Options
    from hfgraph.report import Report as Report
    from hfgraph.report import Site as Site
    from hfgraph.report import last_report as last_report
    from hfgraph.verdict import Verdict as Verdict
    from hfgraph.verifying import verify as verify

__version__ = "0.1.0"

# Imported on first use, so that `import hfgraph` stays light: no transformers, no triton, no compiler.
_PUBLIC = {
    "explain": "hfgraph.explaining",
    "last_report": "hfgraph.report",
    "Options": "hfgraph.options",
    "Report": "hfgraph.report",
    "Site": "hfgraph.report",
    "verify": "hfgraph.verifying",
    "Verdict": "hfgraph.verdict",
}

__all__ = ["Options", "Report", "Site", "Verdict", "explain", "last_report", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hfgraph' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
