"""ONNX: graphs traced from modules, with weights inside or computed in the graph, checked before they are written."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subcompress.onnx.checking import accuracy_of_graph
    from subcompress.onnx.exporting import export, export_self_unfolding
    from subcompress.onnx.tracing import graph_of
else:
    from subcompress.support import lazy

    # The server opens sessions (`session`, `runtime`) without torch.
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "checking": ("accuracy_of_graph",),
            "exporting": ("export", "export_self_unfolding"),
            "tracing": ("graph_of",),
        },
    )

__all__ = ["accuracy_of_graph", "export", "export_self_unfolding", "graph_of"]
