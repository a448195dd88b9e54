"""Numbers that the paper states, shown beside ours. Accuracies are fractions, times in seconds."""

import math
from dataclasses import dataclass, replace
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Statement:
    """One number that the paper states: our name of the experiment, what was measured, its value, and the section."""

    experiment: str
    what: str
    value: float
    unit: float
    """One in the last digit that the paper prints: 0.001 for "63.6 %"."""
    where: str
    """Section of the paper that states it, such as "4.1.1"."""
    about: bool = False
    """Whether the paper says "about"."""

    @property
    def in_percent(self) -> str:
        """A fraction in percent with the paper's digits, such as "37.48 %" or "about 89 %"."""
        digits = max(0, round(-math.log10(100 * self.unit)))
        return f"{'about ' if self.about else ''}{100 * self.value:.{digits}f} %"


TEST_ACCURACY = Statement(experiment="E1", what="test accuracy", value=0.937, unit=0.001, where="3.3")
WORST_CLASS = Statement(experiment="E1", what="accuracy of the worst class", value=0.74, unit=0.01, where="3.3")
BEST_CLASS = Statement(experiment="E1", what="accuracy of the best class", value=0.99, unit=0.01, where="3.3")
FGSM_AT_01 = Statement(experiment="E2", what="accuracy under FGSM, eps 0.1", value=0.636, unit=0.001, where="4.1.1")
BIM_AT_25 = Statement(
    experiment="E4", what="accuracy under BIM, ball, eps 0.05, 25 iterations", value=0.3748, unit=0.0001, where="4.1.2"
)
ADVERSARIAL_AT_02 = Statement(
    experiment="E6",
    what="accuracy under FGSM, eps 0.2",
    value=0.7,
    unit=0.01,
    where="4.2.2",
)
AUGMENTED_TEST = Statement(
    experiment="E5", what="test accuracy with augmentation", value=0.89, unit=0.01, where="4.2.1", about=True
)
AUGMENTED_VALIDATION = replace(AUGMENTED_TEST, what="validation accuracy with augmentation")
AUGMENTED_TRAINING = replace(AUGMENTED_TEST, what="training accuracy with augmentation", value=0.83)
TEACHER_ACCURACY = Statement(
    experiment="E9", what="test accuracy of the teacher", value=0.9376, unit=0.0001, where="4.2.3"
)
TEACHER_LOSS = Statement(experiment="E9", what="test loss of the teacher", value=0.2374, unit=0.0001, where="4.2.3")
STUDENT_ACCURACY = Statement(
    experiment="E9", what="test accuracy of the student", value=0.9378, unit=0.0001, where="4.2.3"
)
STUDENT_LOSS = Statement(experiment="E9", what="test loss of the student", value=0.1919, unit=0.0001, where="4.2.3")
TEACHER_SECONDS = Statement(
    experiment="E9", what="seconds per epoch of the teacher", value=4.12, unit=0.01, where="4.2.3"
)
STUDENT_SECONDS = Statement(
    experiment="E9", what="seconds per epoch of the student", value=5.14, unit=0.01, where="4.2.3"
)
ADJUSTED_SECONDS = Statement(
    experiment="E10", what="seconds per epoch of the adjusted student", value=6.18, unit=0.01, where="4.2.3"
)
