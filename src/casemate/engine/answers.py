"""What a worker sends back: the result of a job, or the error that it raised, as bytes."""

import pickle
import traceback
from typing import Any

import cloudpickle

from casemate.engine.pool import Compute
from casemate.errors import CasemateError, MachineError
from casemate.progress import Observer


def packed(content: Any) -> bytes:
    """`content` as bytes for another process. Raises `CasemateError` if it cannot be sent."""
    try:
        return cloudpickle.dumps(content)
    except CasemateError:
        raise
    except Exception as error:  # the user's own classes may raise anything
        raise MachineError(
            f"the work cannot be sent to other processes ({type(error).__name__}: {error}); define the network, its "
            "layers and the attacks at the top of a module, without open files or locks, or use no engine (on the "
            "command line --workers 1)"
        ) from error


def unpacked(content: bytes) -> Any:
    """What `packed` made the bytes from."""
    return pickle.loads(content)


def answer(compute: Compute, job: bytes, observer: Observer) -> bytes:
    """The packed pair ("result", value) or ("error", exception) of a packed job."""
    try:
        return packed(("result", compute(unpacked(job), observer)))
    except Exception as error:  # passed on to the parent, which decides
        return packed(("error", sendable(error)))


def sendable(error: Exception) -> Exception:
    """The error with its traceback as a note; a `RuntimeError` with type and message if it cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class defined elsewhere may raise anything
        made = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            made.add_note(note)
        return made
    return error
