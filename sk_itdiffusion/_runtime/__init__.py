"""How work is done: threads, memory, progress, callbacks, generators, warnings, links to pages.

Nothing here knows of tables or densities.  May import nothing of the package.
"""

__all__: list[str] = []
