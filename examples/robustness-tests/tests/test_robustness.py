"""What the project demands of its network. `pytest` runs all tests, `pytest -m "not robust"` only the quick ones."""

from shapes import CLASSES, RELEASED, held_out, trained

from casemate import Classifier


def test_the_network_is_accurate() -> None:
    images, labels = next(iter(held_out()))
    assert (trained()(images).argmax(1) == labels).float().mean() > 0.95


def test_the_network_is_robust(assert_robust) -> None:
    """The lower end of the 95 % interval counts, so a few images cannot pass by luck."""
    evaluation = assert_robust(trained(), held_out(), eps="8/255", at_least="70%", threads=1)
    assert evaluation.clean_accuracy > 0.95


def test_no_kind_of_bar_is_left_behind(assert_robust) -> None:
    """Named classes make for readable reports; the evaluation holds the accuracy of each."""
    model = Classifier(trained(), classes=CLASSES)
    evaluation = assert_robust(model, held_out(), eps="4/255", at_least=0.9, threads=1)
    assert min(each.value for each in evaluation.per_class if each is not None) > 0.8


def test_it_is_not_less_robust_than_the_released_one(assert_not_worse) -> None:
    """With a margin it has to be shown that less is lost; without one, only a drop beyond chance fails."""
    assert_not_worse(trained(), trained(RELEASED), held_out(), eps="8/255", margin="2%", threads=1)
