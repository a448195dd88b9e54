"""Producers: the functions that compute the tasks of the study and write their artifacts."""
