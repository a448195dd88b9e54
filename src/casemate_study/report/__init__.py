"""Figures, tables and the one-file HTML report of the study, made from stored results alone."""
