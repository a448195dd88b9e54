"""A black box: a Python function of images that returns scores or labels, without gradients, with a count of queries.

Only attacks that need no gradient can be run on it; the others get an error that names some that can.
"""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from casemate.errors import CasemateError, ModelError, NoGradientError, kind_of
from casemate.models.output_errors import described
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.failures import quoted
from casemate.models.sources.opened import OpenedModel, opened_network
from casemate.models.sources.own_code import named_object, takes_arguments
from casemate.models.sources.query_count import QueryCount
from casemate.types import Images


def open_black_box(text: str, queries: int | None, stated: ModelFacts | None) -> OpenedModel:
    """The function that package.module:name or file.py:name names, as a model.

    Args:
        text: names a function that takes images `(n, channels, height, width)`, float32 within [0, 1], and returns
            scores `(n, classes)` or whole numbers `(n,)`, the predicted classes.
        queries: the largest number of images that it may be called with in all, or None.
        stated: what the user says of it; for a function that returns classes alone, also their number.

    Raises:
        ModelError: the import fails, or it is no function.
    """
    function = named_object(text)
    what = function if isinstance(function, type) else type(function)
    if issubclass(what, nn.Module):
        raise ModelError(
            f"{text} is a network of PyTorch, which has gradients; leave --black-box out, since attacks with gradients "
            "find more. To hide them, name a function that calls the network"
        )
    if not callable(function) or isinstance(function, type):
        raise ModelError(f"{text} is {kind_of(function)}; expected a function of images, for a black box")
    if not takes_arguments(function, 1):
        raise ModelError(
            f"{text} cannot be called with images alone; expected a function of images, for a black box. If it builds "
            "and returns a network, leave --black-box out"
        )
    count = None if stated is None or stated.classes is None else len(stated.classes)
    network = BlackBox(function, classes=count, budget=queries)
    return opened_network(network, ModelFacts(), stated, name=text, short=text.rpartition(":")[2])


@final
class BlackBox(nn.Module):
    """A function of images as a network that has no gradient.

    Args:
        function: see `open_black_box`.
        classes: the number of classes, for a function that returns classes alone.
        budget: the largest number of images that it may be called with, or None.
    """

    def __init__(
        self, function: Callable[[Tensor], Any], *, classes: int | None = None, budget: int | None = None
    ) -> None:
        super().__init__()
        self.function = function
        self.classes = classes
        self.count = QueryCount(budget)
        self.eval()

    def forward(self, images: Images) -> Tensor:
        """The scores that the function returns, or 1 for the class that it returns and -1 for the others.

        Raises `NoGradientError` where a gradient is needed, `ModelError` where the budget is used up, or for another
        result.
        """
        # `torch.func.functionalize` hides that a gradient is needed, and NumPy would read no pixels of its tensors
        inside = torch._is_functional_tensor(images)  # pyright: ignore[reportPrivateImportUsage]
        if inside or (images.requires_grad and torch.is_grad_enabled()):
            raise NoGradientError(
                "the model is a black box, which has no gradient; run attacks that need none, such as square or "
                "hop-skip-jump"
            )
        self.count.add(len(images))
        with torch.no_grad():
            try:
                returned = self.function(images.detach())
            except CasemateError:
                raise
            except Exception as error:
                raise ModelError(
                    f"the black box failed on images of shape {tuple(images.shape)}: {quoted(error)}; it must take any "
                    "number of images (n, channels, height, width), float32 within [0, 1]"
                ) from error
        if isinstance(returned, nn.Module):
            raise ModelError(
                f"the black box returned {kind_of(returned)}; if it builds networks, leave --black-box out"
            )
        found = torch.as_tensor(returned) if isinstance(returned, np.ndarray | list) else returned
        if not isinstance(found, Tensor) or found.ndim not in (1, 2) or len(found) != len(images):
            raise ModelError(
                f"the black box returned {described(returned)} for {len(images)} images; expected scores (n, classes), "
                "or the predicted classes (n,) as whole numbers"
            )
        found = found.to(images.device)
        if found.ndim == 2:
            return found.float()
        if found.is_floating_point() or self.classes is None:
            raise ModelError(
                "the black box returned one number per image; if these are the predicted classes, return whole "
                "numbers and give the number of classes: --classes 10"
            )
        if int(found.min()) < 0 or int(found.max()) >= self.classes:
            raise ModelError(
                f"the black box returned the classes {int(found.min())} to {int(found.max())}, but --classes states "
                f"{self.classes}, from 0"
            )
        return 2.0 * nn.functional.one_hot(found.long(), self.classes) - 1  # not 0 and 1, which look like probabilities
