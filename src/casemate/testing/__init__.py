"""Assertions about robustness for tests, with a plugin that pytest loads by itself: see docs/testing.md.

The public names stand in `__init__.pyi`. Importing this package imports no PyTorch, since pytest does so for every user
who has casemate installed; the first assertion does.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
