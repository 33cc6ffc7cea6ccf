"""The methods for graphs by name.

Their names in a recipe begin with ``graphs/``, as in ``graphs/alignahead``.
"""

from __future__ import annotations

from dskd.engine.tasks.graphs.base import Alone, GraphMethod, GraphPair
from dskd.engine.tasks.graphs.online import Alignahead, AlignaheadPlus, Alignment
from dskd.engine.tasks.graphs.supervised import GraphDSKD

METHODS: dict[str, type[GraphMethod]] = {
    "alone": Alone,
    "alignment": Alignment,
    "alignahead": Alignahead,
    "alignahead++": AlignaheadPlus,
    "dskd": GraphDSKD,
}
"""The methods by their name after ``graphs/``."""

__all__ = ["METHODS", "GraphMethod", "GraphPair"]
