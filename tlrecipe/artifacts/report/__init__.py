"""The report of a run as one self-contained page, and runs side by side.

``record`` reads a run directory into plain values, ``findings`` computes what its predictions say,
``charts`` draws with ``shapes``, ``page`` puts it all into the templates beside it.
"""
