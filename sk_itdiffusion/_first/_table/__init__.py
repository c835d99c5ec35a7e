"""Tables: how they are read, and how their rows become those of a model, and back.

Encoding of columns and frames, weighted rows and their groups, bounds, maps of single columns,
dequantisation, values that are not categories, and tables that are larger than memory.  No joint
distribution is fitted here.  May import `_runtime`, `persistence`, `channel`, `layout` and `_immse`
of the package.
"""

__all__: list[str] = []
