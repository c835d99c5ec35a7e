"""How work is done: threads, memory, files, progress, callbacks, generators, warnings, links.

Nothing here knows of tables or densities.  May import nothing of the package.
"""

__all__: list[str] = []
