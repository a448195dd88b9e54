"""The command line: one module per command, which parses, calls and renders. Importing it does not import PyTorch."""
