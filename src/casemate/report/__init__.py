"""Parts of pages and figures, and the one-file HTML report of an evaluation, from stored results alone."""
