"""Figures and HTML templates, and the one-file HTML report of an evaluation, made from stored results alone.

The names in `__init__.pyi` are for packages that add reports of their own; they are provisional. Each is imported when
it is first used, since some need matplotlib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
