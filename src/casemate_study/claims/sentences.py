"""The paper's claims in its sections 3.3 to 7 that numbers can judge, with the rule for each.

It omits sentences that repeat another, and those that no measurement decides: whether a human observer sees a change,
why something happens, and what the authors suggest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from casemate_study.claims import attacks, classes, defenses, distillation, training
from casemate_study.claims.rules import ClaimEvidence, RuleResult

Rule = Callable[[ClaimEvidence], RuleResult]


@final
@dataclass(frozen=True, kw_only=True)
class PaperClaim:
    """One claim of the paper: the experiment that tests it, its section and text, and the rule that judges it."""

    experiment: str
    where: str
    """Section of the paper, such as "4.1.1"."""
    says: str
    judge: Rule


_TABLE: tuple[tuple[str, str, str, Rule], ...] = (
    ("E1", "3.3", "93.7 % test accuracy.", attacks.test_accuracy),
    ("E1", "3.3", "The accuracies of the classes range from 74 % to 99 %.", classes.class_range),
    ("E1", "3.3", "The easiest classes are trousers, bags and sandals.", classes.easiest),
    ("E1", "3.3", "The most difficult classes are pullovers, T-shirts and shirts.", classes.hardest),
    ("E1", "3.3", "Pullovers are most often misclassified as coats.", classes.pullover_as_coat),
    ("E1", "3.3", "T-shirts and shirts are often misclassified as one another.", classes.one_another),
    ("E1", "5", "The initially trained model over-fits.", training.over_fits),
    (
        "E1",
        "5",
        "Shirt against T-shirt is a distinctive confusion in every model trained.",
        classes.in_every_model,
    ),
    ("E2", "4.1.1", "FGSM at eps 0.1 lowers 94 % to 63.6 %.", attacks.fgsm_accuracy),
    (
        "E2",
        "6",
        "Both attacks lower the accuracy of the undefended network and raise its loss.",
        attacks.both_attacks,
    ),
    ("E3", "4.1.2", "BIM with clip ball is more effective than with clip range.", attacks.clipping),
    ("E3", "4.1.2", "In terms of loss, too, clip ball is more effective than clip range.", attacks.clipping_loss),
    (
        "E3",
        "5",
        "With clip ball the changes keep to the garment and leave the black background alone.",
        attacks.background,
    ),
    (
        "E3",
        "5",
        "At a small eps the lower boundary of clip ball is often above 0 (here: on the garment).",
        attacks.lower_boundary,
    ),
    (
        "E3",
        "5",
        "With the clip range of FGSM the changes reach the black background too.",
        attacks.background_too,
    ),
    ("E4", "4.1.2", "Accuracy drops rapidly up to 25 iterations.", attacks.rapid_until_25),
    ("E4", "4.1.2", "BIM at eps 0.05 leaves 37.48 % after 25 iterations.", attacks.accuracy_after_25),
    ("E4", "4.1.2", "From then on accuracy is level while the loss keeps growing.", attacks.level_after_25),
    ("E5", "4.2.1", "Augmentation under-fits: validation above training accuracy.", training.under_fits),
    (
        "E5",
        "4.2.1",
        "With augmentation validation and test accuracy are about 0.89, training accuracy about 0.83.",
        training.augmented_accuracies,
    ),
    (
        "E5",
        "4.2.1",
        "The augmented model does not over-fit as the original model does.",
        training.augmented_over_fits_less,
    ),
    ("E5", "5", "Training accuracy drops significantly with augmentation.", training.training_accuracy_drops),
    (
        "E5",
        "4.2.1",
        "Under FGSM it has the lower loss and the worse accuracy than E1.",
        defenses.lower_loss_and_accuracy,
    ),
    ("E5", "4.2.1", "Under FGSM its loss is even much lower than E1's.", defenses.much_lower_loss),
    (
        "E5",
        "5",
        "The augmented model has the lower loss but the worse accuracy (here: without an attack).",
        defenses.clean_loss_and_accuracy,
    ),
    ("E5", "5", "The augmented model is less confident in its predictions.", defenses.less_confident),
    (
        "E5",
        "6",
        "Augmentation does not do much to defend the network against any attack.",
        defenses.augmentation_does_little,
    ),
    (
        "E6",
        "4.2.2",
        "Adversarial regularisation keeps up to 70 % under FGSM at 0.2.",
        defenses.keeps_70,
    ),
    (
        "E6",
        "4.2.2",
        "Under FGSM adversarial regularisation of E1 does best of the four models E1, E5, E6 and E7.",
        defenses.best_of_four,
    ),
    ("E6", "4.2.2", "Under BIM, both clippings, E1 is better than it.", defenses.loses_to_bim),
    (
        "E6",
        "5",
        "Over-fitting makes models respond less to the defences (here: E6 against the same training from E11).",
        defenses.less_responsive,
    ),
    (
        "E6",
        "5",
        "Adversarial regularisation may over-fit the perturbed images (a hypothesis).",
        defenses.fitted_to_one_step,
    ),
    ("E6", "6", "Adversarial regularisation helps against FGSM.", defenses.helps_against_fgsm),
    (
        "E6",
        "6",
        "Adversarial regularisation has the best accuracy and loss of all methods under FGSM.",
        defenses.best_of_all,
    ),
    ("E6", "6", "Adversarial regularisation is the strongest method against adversarial attacks.", defenses.strongest),
    ("E7", "4.2.2", "E6 on E5: much worse accuracy than E6, loss on par.", defenses.regularised_twice),
    ("E8", "3.5.2", "Four rounds with growing steps are no better than one.", defenses.four_rounds),
    (
        "E8",
        "3.5.2",
        "Training with several eps avoids over-fitting one of them (a theory; here: FGSM at eps below E6's step).",
        defenses.several_eps,
    ),
    (
        "E9",
        "4.2.3",
        "Without an attack: teacher 93.76 % with a loss of 0.2374, student 93.78 % with 0.1919.",
        distillation.numbers_without_attack,
    ),
    (
        "E9",
        "4.2.3",
        "Without an attack the student is as accurate as the teacher, with a lower loss.",
        distillation.equal_accuracy_lower_loss,
    ),
    ("E9", "4.2.3", "The student's loss is always below the teacher's.", distillation.students_loss),
    ("E9", "4.2.3", "The student is more accurate than the teacher under FGSM.", distillation.students_fgsm),
    ("E9", "4.2.3", "Under both BIMs the teacher is more accurate.", distillation.students_bim),
    ("E9", "4.2.3", "An epoch of the student takes 1.25 times the teacher's.", training.epoch_time),
    ("E9", "5", "The student over-fits as well.", training.student_over_fits),
    (
        "E9",
        "5",
        "All losses of students are below their teachers', in every configuration.",
        distillation.all_students_loss,
    ),
    (
        "E9",
        "5",
        "A student is not always more accurate than its teacher.",
        distillation.not_always_more_accurate,
    ),
    ("E9", "5", "Students may be less confident than the teacher (a hypothesis).", distillation.students_confidence),
    (
        "E9",
        "6",
        "Distillation makes the loss much lower, but accuracy still drops quite a bit.",
        distillation.much_lower_loss_but_drops,
    ),
    (
        "E9",
        "6",
        "Distillation had a more promising result than augmentation.",
        distillation.more_promising,
    ),
    (
        "E10",
        "3.5.3",
        "The adjusted student keeps the accuracy of the teacher.",
        distillation.keeps_accuracy,
    ),
    (
        "E10",
        "3.5.3",
        "The adjusted student is as fast as the teacher (here: in training).",
        training.keeps_speed,
    ),
    (
        "E10",
        "3.5.3",
        "The changes made the student (appendix B) simpler than the teacher.",
        training.simpler_student,
    ),
    (
        "E10",
        "3.5.3",
        "A simpler student can help to prevent over-fitting.",
        training.simpler_over_fits_less,
    ),
    (
        "E10",
        "4.2.3",
        "An epoch of the adjusted student takes 1.5 times the teacher's (6.18 s).",
        training.adjusted_epoch_time,
    ),
    ("E10", "4.2.3", "The adjusted student's loss, too, is below the teacher's.", distillation.adjusted_loss),
    (
        "E10",
        "4.2.3",
        "The adjusted student beats the teacher under BIM, clip ball, up to eps 0.1.",
        distillation.adjusted_bim,
    ),
    (
        "E10",
        "4.2.3",
        "Beyond eps 0.1 the adjusted student has no advantage under BIM, clip ball.",
        distillation.no_advantage_beyond,
    ),
    (
        "E10",
        "4.2.3",
        "Under BIM, clip ball, the adjusted student is nearer to the teacher in accuracy than the identical one.",
        distillation.adjusted_is_nearer,
    ),
    (
        "E10",
        "4.2.3",
        "Under FGSM the adjusted student has the lower loss and the higher accuracy.",
        distillation.adjusted_fgsm,
    ),
    (
        "E11",
        "5",
        "The early-stopped model is clearly more accurate under FGSM than the over-fitted one.",
        defenses.early_stopped_fgsm,
    ),
    (
        "E11",
        "5",
        "Under FGSM the early-stopped model has the lower loss, too.",
        defenses.early_stopped_loss,
    ),
    (
        "E11",
        "5",
        "All the over-fitted models do worse under attack (here: than those that were stopped early).",
        defenses.all_worse_over_fitted,
    ),
    ("E12", "5", "The regularised model is less sensitive to attacks than E1.", defenses.weight_decay),
    (
        "E13",
        "5",
        "A wider and deeper network seems to help against under-fitting and low confidence with augmentation.",
        training.wider_and_deeper,
    ),
    (
        "E13",
        "6",
        "With a deeper network augmentation may defend (a suggestion).",
        defenses.deeper_with_augmentation,
    ),
    (
        "E13",
        "5",
        "A targeted attack on shirt or T-shirt could be particularly effective.",
        classes.targeted,
    ),
    (
        "E13",
        "7",
        "Regularising the model before another defence would improve the accuracy.",
        defenses.regularise_first,
    ),
    (
        "E13",
        "7",
        "A teacher that does not over-fit could improve distillation.",
        distillation.early_stopped_teacher,
    ),
)

CLAIMS = tuple(
    PaperClaim(experiment=experiment, where=where, says=says, judge=rule) for experiment, where, says, rule in _TABLE
)
"""Every claim of the paper, by experiment."""
