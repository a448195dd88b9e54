"""What the study runs, as data: experiments, scales, kinds of tasks, and the numbers that the paper states."""
