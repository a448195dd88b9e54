"""What computes one task of the study: trainings, measurements, pictures, evaluations."""
