"""The same answers with less work: copies to be attacked, and what is exchanged in networks that are trained."""
