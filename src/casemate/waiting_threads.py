"""How PyTorch's threads wait for each other: asleep, or spinning, which keeps a core busy that others may need.

PyTorch's CPU threads are those of an OpenMP library, which reads from the environment how they wait when it is loaded.
Unless a variable says otherwise they spin for some time, and with fewer free cores than threads each wait then takes
the time of the thread that is waited for: training beside one busy process took several times as long on two cores.
"""

import os
import sys

from casemate.progress import Observer

POLICY = "OMP_WAIT_POLICY"
"""The variable of the OpenMP standard: passive (threads that wait sleep) or active (they spin)."""
VARIABLES = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that set how threads wait: the standard's, and those of the OpenMP libraries of GCC and of LLVM."""

_BUSY = 1.25
"""Load average per processor above which other programs run: this one alone cannot make more than 1."""
_set_here: list[str] = []
"""`POLICY`, once `sleep_while_waiting` has set it in this process."""


def sleep_while_waiting() -> None:
    """Set `OMP_WAIT_POLICY` to passive for this process and those that it starts.

    Does nothing if one of `VARIABLES` is set, or if PyTorch is loaded, since it would have no effect.
    """
    if "torch" in sys.modules or any(name in os.environ for name in VARIABLES):
        return
    os.environ[POLICY] = "passive"
    _set_here.append(POLICY)


def describe_waiting() -> str:
    """How threads wait and who set that, such as "passive, set by casemate"."""
    found = [
        f"{os.environ[name] or 'empty'}, set by {'casemate' if name in _set_here else f'you in {name}'}"
        for name in VARIABLES
        if name in os.environ
    ]
    return "; ".join(found) or "not in effect: PyTorch was loaded before"


def mention_spinning(observer: Observer) -> None:
    """Say how to avoid it, if this process's threads spin while they wait and other programs need the processors."""
    import torch  # not before `sleep_while_waiting`

    from casemate.memory import processors

    if torch.get_num_threads() == 1 or any(name in os.environ for name in VARIABLES) or not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], processors()
    if load > _BUSY * cores:
        observer.message(
            f"Other programs use the processors too (load {load:.1f} on {cores}), and PyTorch's threads, which spin "
            f"while they wait, can then make this several times slower: call torch.set_num_threads(1), or set "
            f"{POLICY}=passive before Python starts"
        )
