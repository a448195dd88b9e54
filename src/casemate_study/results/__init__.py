"""The study's stored results as objects: what each task found, everything measured on one model, paired comparisons of
two.
"""
