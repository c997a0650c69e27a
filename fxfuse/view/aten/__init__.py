"""The ATen dialect: graphs of `torch.export`, of AOTAutograd and of Inductor after decomposition.

The same canonical forms as for torch-level graphs. Nothing here asks which dialect a graph is of: a formula is what it
is wherever it stands, so a model that spells one out by hand gains the same.
"""

from fxfuse.view.aten import overloads, activations, masking, norms, projections, rounding, softmax, splitting  # isort: skip

FAMILIES = (activations, masking, norms, projections, rounding, softmax, splitting)

__all__ = ["FAMILIES", "overloads"]
