"""The one tree of errors. A message says what was seen, what was expected, and what to do.

Errors are about *use* (bad input, a missing file, a full disk). Problems with *numbers* are values: the status codes of
`attacks.result.AttackResult` and the findings of `evaluate`. A user who gets such a number without an evaluation gets a
`CasemateWarning` too.
"""


class CasemateWarning(UserWarning):
    """Warns of a number that was computed correctly but may mislead; `evaluate` reports a finding instead."""


class CasemateError(Exception):
    """Base class of errors that the user can fix. The command line prints them without a traceback and exits with 2."""


class MissingExtraError(CasemateError):
    """A feature that needs a library from an extra that is not installed."""


def missing_extra(what: str, extra: str) -> MissingExtraError:
    """The error, to be raised by the caller, that the feature `what` needs an extra that is not installed."""
    return MissingExtraError(f"{what} needs the extra {extra!r}: pip install 'casemate[{extra}]'")


class DataError(CasemateError):
    """Images or labels that cannot be found, read or trusted."""


class ShapeError(CasemateError):
    """A tensor with an unexpected shape, type or range."""


class SettingError(CasemateError):
    """A setting (eps, number of steps, name, split, ...) outside its allowed values."""


class ModelError(CasemateError):
    """A model or checkpoint that cannot be loaded or used, or is not the expected one."""


class NoGradientError(ModelError):
    """A gradient of a model that has none: a black box."""


class TrainingError(CasemateError):
    """Training that cannot go on; the last good checkpoint is kept."""


class EvaluationError(CasemateError):
    """An evaluation that was stopped before its attacks, since its robust accuracy would say nothing."""


class StoreError(CasemateError):
    """The store of finished results cannot be read, written or locked."""


class MachineError(CasemateError):
    """The machine lacks a resource that the work needs, such as memory."""


class TrackingError(CasemateError):
    """An experiment tracker that cannot be reached or written."""


class RecordError(CasemateError):
    """A record of adversarial examples, or a stored result, that cannot be read or was made for another model."""


def kind_of(given: object) -> str:
    """What a caller gave in place of something else, for a message: its type, or the name of a class."""
    if isinstance(given, type):
        return f"the class {given.__name__}"
    name = type(given).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def is_interruption(error: BaseException | None) -> bool:
    """Whether an error is a `KeyboardInterrupt`, or one is among its causes and contexts."""
    seen: list[BaseException] = []  # an error can be its own cause
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
