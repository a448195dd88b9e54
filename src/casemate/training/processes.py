"""The processes that train one network together, each on its part of every batch (data-parallel training).

`torchrun` starts them, and they meet here. There is no wrapper round the model, since an objective calls it several
times per step: after the backward pass the gradients of all processes are averaged, and so are the changes of the
floating-point buffers (the statistics of batch normalisation). All processes therefore hold the same weights, and each
decision is made alike in all of them, from numbers that were added up.

An error in one process is raised in all of them. A process that dies is noticed by the others, whose connection to it
breaks; torchrun then ends them.
"""

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Final, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from casemate import errors
from casemate.devices import as_device
from casemate.errors import CasemateError, SettingError, TrainingError
from casemate.progress import NULL_OBSERVER, Observer
from casemate.torchrun import Place, mark_shared, place

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others. It is as long as the slowest one may take to read its images."""
_POLL = 0.05
"""Seconds between two looks at the store by which processes find each other."""
_LONGEST = 10_000
"""Bytes of an error's message that the other processes repeat."""
_current: ContextVar["TrainingGroup | None"] = ContextVar("the group of processes that was joined", default=None)


@final
class TrainingGroup:
    """The group of processes that train together, as seen by one of them.

    In a group of one, which has no connections, everything is what it is without a group.
    """

    def __init__(self, at: Place, control: "dist.ProcessGroup | None" = None) -> None:
        self.rank: Final = at.rank
        """Number of this process, from 0."""
        self.count: Final = at.count
        """Number of processes."""
        self._local_rank = at.local_rank
        self._control = control
        """The group by which numbers and messages on the CPU are exchanged; None for the default one."""

    @property
    def is_first(self) -> bool:
        """Whether this process reads and writes checkpoints and shows progress."""
        return self.rank == 0

    @property
    def seed(self) -> tuple[int | str, ...]:
        """What this process adds to a seed, so that no two draw the same dropout; the first draws what one alone does.

        Everything else that is random is drawn alike in all processes.
        """
        return () if self.is_first else ("process", self.rank)

    def own_device(self, device: torch.device | str) -> torch.device:
        """The device of this process: for "cuda" the GPU of its number on its machine, which becomes the current one.

        Raises `SettingError` for a device that cannot be used, or if the machine has fewer GPUs than processes.
        """
        if self.count == 1 or str(device) != "cuda":
            return as_device(device)
        found = torch.cuda.device_count()
        if self._local_rank >= found:
            raise SettingError(
                f"more processes on this machine than GPUs, of which PyTorch finds {found}; expected a GPU for each: "
                f"start torchrun with --nproc-per-node {max(1, found)}, or choose the device cpu"
            )
        torch.cuda.set_device(self._local_rank)
        return torch.device("cuda", self._local_rank)

    def part(self, size: int, least: int = 2) -> slice:
        """The part of a batch of `size` images for this process: at least `least` (batch normalisation needs two).

        Parts differ by one image at most; with too few images, the last processes have an empty part.
        """
        busy = max(1, min(self.count, size // least))
        short, longer = divmod(size, busy)
        starts = [min(each, busy) * short + min(each, longer) for each in (self.rank, self.rank + 1)]
        return slice(*starts)

    @contextmanager
    def together(self, length: int = 0) -> Iterator[list[float]]:
        """A context that all processes leave together: if its body fails in one, all raise that error.

        Yields a list of `length` zeros. What the body writes into it is added up over the processes: afterwards the
        list holds the sums. The body must not exchange anything itself.
        """
        sums, failed = [0.0] * length, None
        if self.count == 1:
            yield sums
            return
        try:
            yield sums
        except Exception as error:
            failed = error
        totals = torch.tensor([float(failed is not None), *sums], dtype=torch.float64)
        with _connected():
            dist.all_reduce(totals, group=self._control)
        if totals[0]:
            self._raise_first(failed)
        sums[:] = totals[1:].tolist()

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replace tensors in place by their sums over the processes, each weighted by that process's `weight`.

        All processes get the same bits.
        """
        if self.count == 1:
            return
        for alike in _by_type(tensors):
            flat = torch.cat([each.detach().reshape(-1) for each in alike]).mul_(weight)
            with _connected():
                dist.all_reduce(flat)
            _unpack(flat, alike)

    def share_weights(self, model: nn.Module) -> None:
        """Give the model the weights and buffers of the first process's model.

        Raises `TrainingError` if they are of other kinds in this process.
        """
        if self.count == 1:
            return
        tensors = [*model.named_parameters(), *model.named_buffers()]
        layout = "\n".join(f"{name} {tuple(each.shape)} {each.dtype} {each.requires_grad}" for name, each in tensors)
        self.expect_same(layout, "network's layers")
        self.broadcast([each for _, each in tensors])

    def buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies of the model's floating-point buffers, by name, before a step; nothing for one process."""
        if self.count == 1:
            return {}
        return {name: each.detach().clone() for name, each in model.named_buffers() if each.is_floating_point()}

    def changes(self, model: nn.Module, before: Mapping[str, Tensor]) -> list[Tensor]:
        """How the buffers differ from what they were `before`; exactly zero where they are equal.

        Raises `TrainingError` for a buffer that has another shape or type than before.
        """
        found: list[Tensor] = []
        now = dict(model.named_buffers()) if before else {}
        for name, old in before.items():
            new = now.get(name)
            if new is None or (new.shape, new.dtype) != (old.shape, old.dtype):
                raise TrainingError(
                    f"the network's buffer {name} is another one after a training step; several processes can only "
                    "train a network whose buffers keep their shape and type"
                )
            found.append((new.detach() - old).where(new.detach() != old, 0.0))  # the first is NaN for infinite values
        return found

    @torch.no_grad()
    def average_step(
        self,
        parameters: Sequence[nn.Parameter],
        holders: Sequence[float],
        model: nn.Module,
        before: Mapping[str, Tensor],
        changes: Sequence[Tensor],
        weight: float,
    ) -> None:
        """Replace gradients, and the changes of buffers in this step, by their means over all processes' images.

        Args:
            parameters: those that are trained.
            holders: for each of them, how many processes have a gradient of it; if none has, it stays None.
            model: its buffers are changed.
            before: its buffers before the step.
            changes: how they differ now, in this process.
            weight: this process's share of the images of the batch.
        """
        if self.count == 1:
            return
        held = [parameter for parameter, holding in zip(parameters, holders, strict=True) if holding]
        for parameter in held:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average([*(parameter.grad for parameter in held if parameter.grad is not None), *changes], weight)
        now = dict(model.named_buffers())
        for (name, old), change in zip(before.items(), changes, strict=True):
            now[name].copy_(old + change)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors in place by those of the first process."""
        if self.count == 1:
            return
        for alike in _by_type(tensors):
            flat = torch.cat([each.detach().reshape(-1) for each in alike])
            with _connected():
                dist.broadcast(flat, 0)
            _unpack(flat, alike)

    def broadcast_bytes(self, content: bytes) -> bytes:
        """The `content` that the first process has; that of the others is ignored."""
        if self.count == 1:
            return content
        length = torch.tensor([len(content)])
        with _connected():
            dist.broadcast(length, 0, group=self._control)
            found = torch.zeros(int(length), dtype=torch.uint8)
            if self.is_first and content:
                found = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            if len(found):
                dist.broadcast(found, 0, group=self._control)
        return found.numpy().tobytes()

    def expect_same(self, text: str, what: str) -> None:
        """Raise `TrainingError` in all processes unless they call it with the same `text`, a description of `what`."""
        expected = self.broadcast_bytes(text.encode())
        with self.together():
            if text.encode() != expected:
                raise TrainingError(f"its {what} are not those of process 0; all processes must train the same")

    def _raise_first(self, own: Exception | None) -> None:
        """Raise, after a failure, the error of the first process that failed, in all processes.

        The others raise one with the same message, and of the same class if it is one of casemate's. An error of
        another class is a bug: the process that has it raises its `own`, with its traceback.
        """
        mine = b"" if own is None else f"{type(own).__name__}\n{own}".encode()[:_LONGEST]
        sent = torch.zeros(_LONGEST, dtype=torch.uint8)
        if mine:
            sent[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        found = [torch.zeros_like(sent) for _ in range(self.count)]
        with _connected():
            dist.all_gather(found, sent, group=self._control)
        texts = [each.numpy().tobytes().rstrip(b"\0").decode(errors="replace") for each in found]
        first = next(rank for rank, text in enumerate(texts) if text)
        name, _, message = texts[first].partition("\n")
        kind = getattr(errors, name, None)
        if not (isinstance(kind, type) and issubclass(kind, CasemateError)):
            kind, message = TrainingError, f"{name}: {message}" if message else name
            if own is not None and first == self.rank:
                raise own
        where = f"process {first} of {self.count}: " if first else ""
        raise mark_shared(kind(f"{where}{message}")) from own


ALONE: Final = TrainingGroup(Place())
"""One process that trains by itself."""


@contextmanager
def process_group(observer: Observer = NULL_OBSERVER) -> Iterator[TrainingGroup]:
    """A context that yields the group of processes that torchrun started; `observer` shows that they are waited for.

    Inside another such context it is the same group. A process that was not started by torchrun is alone. A group that
    the caller formed by `torch.distributed.init_process_group` is used, and remains.

    Raises `TrainingError` if the other processes do not come.
    """
    at, known = place(), _current.get()
    if known is not None:
        yield known
        return
    formed = dist.is_available() and dist.is_initialized()
    if at.count == 1 and not formed:
        yield ALONE
        return
    if not dist.is_available():
        raise SettingError(
            f"torchrun started {at.count} processes, but this PyTorch is built without torch.distributed"
        )
    with ExitStack() as stack:
        if formed:
            at = Place(rank=dist.get_rank(), count=dist.get_world_size(), local_rank=at.local_rank)
            control = _control_group() if at.count > 1 else None
            if control is not None:
                stack.callback(dist.destroy_process_group, control)
            group = TrainingGroup(at, control)
        else:
            with observer.work(f"Waiting for all {at.count} processes", 0), _connected():
                _form_group(at)
            stack.callback(dist.destroy_process_group)
            group = TrainingGroup(at)
        stack.callback(_current.reset, _current.set(group))
        yield group


def _control_group() -> "dist.ProcessGroup":
    """A group for exchanges on the CPU, beside the caller's own group, which may be one of GPUs."""
    made = dist.new_group(backend="gloo")
    if not isinstance(made, dist.ProcessGroup):
        raise TrainingError("this process is not in the group of torch.distributed that the caller formed")
    return made


def _form_group(at: Place) -> None:
    """Form PyTorch's default group of the processes, which wait for each other."""
    from torch.distributed.distributed_c10d import PrefixStore  # here, since not every PyTorch is built with them
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    name = _name_of_group(store, at)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"casemate/{name}", store),
        rank=rank,
        world_size=count,
        timeout=_PATIENCE,
    )


def _name_of_group(store: "Store", at: Place) -> str:
    """A name that all processes of this group know, and no earlier group had; waits for all of them.

    The store, by which they find each other, outlives them: after a failure torchrun starts them again with the same
    one, and the addresses of the processes before are still in it. The first process therefore writes a new name, and
    each other one repeats an answer, which is new too, to the name it finds until the first has confirmed the answer.
    """
    own = secrets.token_hex(8)
    if at.is_first:
        store.set("casemate/group", own)
        answers = [store.get(f"casemate/{own}/{rank}").decode() for rank in range(1, at.count)]
        store.set(f"casemate/{own}/confirmed", " ".join(answers))
        return own
    end = time.monotonic() + _PATIENCE.total_seconds()
    while time.monotonic() < end:
        name = store.get("casemate/group").decode()
        store.set(f"casemate/{name}/{at.rank}", own)
        confirmed = f"casemate/{name}/confirmed"
        if store.check([confirmed]) and own in store.get(confirmed).decode().split():
            return name
        time.sleep(_POLL)
    raise RuntimeError("the processes did not find each other")


@contextmanager
def _connected() -> Iterator[None]:
    """A context of an exchange, which raises `TrainingError` if another process is gone or does not answer."""
    try:
        yield
    except RuntimeError as error:  # PyTorch's errors of connections and timeouts are of this class
        reason = re.sub(r"^(\[.*?\] )+", "", str(error).strip()).partition(". ")[0].partition("\n")[0]
        raise mark_shared(
            TrainingError(
                f"a process of this training ended, or did not answer for {_PATIENCE.total_seconds() / 60:.0f} minutes "
                f"({reason}). The checkpoint, if there is one, keeps the state after the last finished epoch: start "
                "all processes again to continue"
            )
        ) from error


def _by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups of one type and device each, in the order in which the types first occur."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for each in tensors:
        groups.setdefault((each.dtype, each.device), []).append(each)
    return list(groups.values())


@torch.no_grad()
def _unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the values of `flat` back into the tensors that it was joined from."""
    for part, each in zip(flat.split([each.numel() for each in tensors]), tensors, strict=True):
        each.copy_(part.view_as(each))
