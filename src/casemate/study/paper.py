"""The numbers that the paper states, to be marked beside ours. Accuracies are fractions."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One number of the paper."""

    experiment: str
    what: str
    value: float
    where: str
    """Section of the paper."""
    unit: str = "accuracy"


TEST_ACCURACY = Statement(experiment="E1", what="test accuracy", value=0.937, where="3.3")
WORST_CLASS = Statement(experiment="E1", what="accuracy of the worst class", value=0.74, where="3.3")
BEST_CLASS = Statement(experiment="E1", what="accuracy of the best class", value=0.99, where="3.3")
FGSM_AT_01 = Statement(experiment="E2", what="accuracy under FGSM, eps 0.1", value=0.636, where="4.1.1")
BIM_AT_25 = Statement(
    experiment="E4", what="accuracy under BIM, ball, eps 0.05, 25 iterations", value=0.3748, where="4.1.2"
)
STATEMENTS = (TEST_ACCURACY, WORST_CLASS, BEST_CLASS, FGSM_AT_01, BIM_AT_25)
