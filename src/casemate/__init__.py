"""casemate: train image classifiers, attack them, defend them, and say how far the result can be trusted."""

__version__ = "0.1.0"
