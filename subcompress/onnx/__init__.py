"""ONNX: graphs traced from modules, with weights inside or computed in the graph, checked before they are kept."""

from subcompress.onnx.checking import accuracy_of_graph
from subcompress.onnx.exporting import export, export_self_unfolding
from subcompress.onnx.tracing import graph_of

__all__ = ["accuracy_of_graph", "export", "export_self_unfolding", "graph_of"]
