"""casemate: train image classifiers, attack them, defend them, and say how far the result can be trusted.

The public names stand in `__init__.pyi`. Each is loaded when it is first used, so that `import casemate` is quick and
imports no PyTorch.
"""

import lazy_loader

from casemate._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
