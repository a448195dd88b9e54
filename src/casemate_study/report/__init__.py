"""Figures, tables and the one-file HTML report of the study, from stored results alone."""
