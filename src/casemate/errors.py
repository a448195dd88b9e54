"""The one tree of errors. A message says what was seen, what was expected, and what to do.

Errors are about *use* (bad input, a missing file, a full disk). Trouble with *numbers* is a value: see the
status codes of `attacks.base.AttackResult` and the findings of `evaluate`. Where such a number goes straight to the
user, a `CasemateWarning` says so.
"""


class CasemateWarning(UserWarning):
    """A number that was computed as it should be, and may well mislead; an evaluation has a finding in its place."""


class CasemateError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits with 2."""


class MissingExtraError(CasemateError):
    """Something that needs a library which comes with an extra that is not installed."""


def missing_extra(what: str, extra: str) -> MissingExtraError:
    """The error that names the extra which `what` needs."""
    return MissingExtraError(f"{what} needs the extra {extra!r}: pip install 'casemate[{extra}]'")


class DataError(CasemateError):
    """Images or labels that cannot be found, read or trusted."""


class ShapeError(CasemateError):
    """A tensor whose shape, type or range is not what the callee states."""


class SettingError(CasemateError):
    """A setting (eps, number of steps, name, split, ...) outside its allowed values."""


class ModelError(CasemateError):
    """A model or checkpoint that cannot be loaded, or does not match what it is asked to be."""


class TrainingError(CasemateError):
    """Training that cannot go on; the last good checkpoint is kept."""


class StoreError(CasemateError):
    """The store of finished results cannot be read, written or locked."""


class MachineError(CasemateError):
    """The machine has not enough of what the work needs, such as memory."""


class RecordError(CasemateError):
    """A record of adversarial examples that cannot be read, or that is not about the model at hand."""
