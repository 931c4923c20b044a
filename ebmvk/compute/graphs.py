"""Graphs of torch.fx that become Python code only if they are run.

torch's own compiler makes its graphs this way, through names that aren't public. If a version of
torch lacks these names, the code of each graph is made at once, which takes longer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import fx

try:
    from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
except ImportError:  # torch 2.9 to 2.15 have them

    def lazily() -> AbstractContextManager[None]:
        return nullcontext()

    def graph_module(root: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
        return fx.GraphModule(root, graph)

else:

    def lazily() -> AbstractContextManager[None]:
        """A context in which new graphs become code only if they are run."""
        return _use_lazy_graph_module(True)

    def graph_module(root: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
        """A module of `graph`, with the tensors of `root` that the graph names."""
        return _make_graph_module(root, graph)
