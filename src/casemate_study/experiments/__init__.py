"""Descriptions of what the study runs: experiments, scales, kinds of tasks, and the numbers that the paper states."""
