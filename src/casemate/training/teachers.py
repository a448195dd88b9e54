"""The other networks that an objective holds, such as a teacher: which they are, and that training leaves them alone.

They are restored at the end of a training. What they share with the trained model would be restored there too, and the
training would be lost in part without a word.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

from torch import nn

from casemate.errors import ModelError
from casemate.models import Classifier
from casemate.training.objective import Objective


def attributes_of(objective: Any) -> dict[str, Any]:
    """The attributes of an object by name, of a dataclass with slots too."""
    slots = {each.name: getattr(objective, each.name) for each in fields(objective)} if is_dataclass(objective) else {}
    return slots | getattr(objective, "__dict__", {})


def teachers_of(objective: Any) -> dict[str, nn.Module]:
    """The networks among the attributes of an objective, and of the objectives inside it, by the attributes' names."""
    found: dict[str, nn.Module] = {}
    for name, part in attributes_of(objective).items():
        if isinstance(part, nn.Module):
            found[name] = part
        elif isinstance(part, Objective) and not isinstance(part, type):
            found |= {f"{name}.{inner}": teacher for inner, teacher in teachers_of(part).items()}
    return found


def check_teachers(model: Classifier, teachers: Mapping[str, nn.Module]) -> None:
    """Raise `ModelError` if a teacher has a layer, a parameter or a buffer of the model that is trained.

    Args:
        model: the model that is trained.
        teachers: by their names in the error.
    """
    own = {each for _, each in _identities(model)}
    for name, teacher in teachers.items():
        shared = next((layer for layer, each in _identities(teacher) if each in own), None)
        if shared is not None:
            raise ModelError(
                f"the objective's {name} shares {shared} with the model that is trained, and would change with it; "
                f"expected a network of its own: give {name}=copy.deepcopy({name})"
            )


def _identities(model: nn.Module) -> Iterator[tuple[str, tuple[str, int]]]:
    """The modules, parameters and buffers of a model: what each is called in errors, and what it is known by.

    Tensors are known by their memory, which tied weights share even where they are different objects.
    """
    for name, module in model.named_modules():
        label = name.removeprefix("network").removeprefix(".")
        yield f"its layer {label!r}" if label else "all its layers", ("module", id(module))
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        try:
            place = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError, ValueError):  # a sparse tensor, or one without values yet
            place = 0
        yield f"its weights {name.removeprefix('network.')!r}", ("memory", place) if place else ("tensor", id(tensor))
