"""Producers: the functions that compute the study's tasks, one for each kind, and write the artifacts' files."""
