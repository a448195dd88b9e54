"""Numbers that the paper states, shown beside ours. Accuracies are fractions, times in seconds."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Statement:
    """One number that the paper states: our name of the experiment, what was measured, and its value."""

    experiment: str
    what: str
    value: float
    where: str
    """Section of the paper that states it, such as "4.1.1"."""


TEST_ACCURACY = Statement(experiment="E1", what="test accuracy", value=0.937, where="3.3")
WORST_CLASS = Statement(experiment="E1", what="accuracy of the worst class", value=0.74, where="3.3")
BEST_CLASS = Statement(experiment="E1", what="accuracy of the best class", value=0.99, where="3.3")
FGSM_AT_01 = Statement(experiment="E2", what="accuracy under FGSM, eps 0.1", value=0.636, where="4.1.1")
BIM_AT_25 = Statement(
    experiment="E4", what="accuracy under BIM, ball, eps 0.05, 25 iterations", value=0.3748, where="4.1.2"
)
ADVERSARIAL_AT_02 = Statement(
    experiment="E6",
    what="accuracy under FGSM, eps 0.2",
    value=0.7,
    where="4.2.2",
)
AUGMENTED_VALIDATION = Statement(
    experiment="E5", what="test accuracy with augmentation, about", value=0.89, where="4.2.1"
)
AUGMENTED_TRAINING = Statement(
    experiment="E5", what="training accuracy with augmentation, about", value=0.83, where="4.2.1"
)
TEACHER_ACCURACY = Statement(experiment="E9", what="test accuracy of the teacher", value=0.9376, where="4.2.3")
TEACHER_LOSS = Statement(experiment="E9", what="test loss of the teacher", value=0.2374, where="4.2.3")
STUDENT_ACCURACY = Statement(experiment="E9", what="test accuracy of the student", value=0.9378, where="4.2.3")
STUDENT_LOSS = Statement(experiment="E9", what="test loss of the student", value=0.1919, where="4.2.3")
TEACHER_SECONDS = Statement(experiment="E9", what="seconds per epoch of the teacher", value=4.12, where="4.2.3")
STUDENT_SECONDS = Statement(experiment="E9", what="seconds per epoch of the student", value=5.14, where="4.2.3")
ADJUSTED_SECONDS = Statement(
    experiment="E10", what="seconds per epoch of the adjusted student", value=6.18, where="4.2.3"
)
