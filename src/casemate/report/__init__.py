"""What shows: figures and the one-file HTML report, from stored results alone."""
