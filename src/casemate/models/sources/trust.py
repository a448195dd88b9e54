"""What may run code while it is loaded is refused, unless the user trusts it."""

from pathlib import Path

from casemate.errors import ModelError


def require_trust(path: Path | str, what: str, *, trusted: bool, instead: str) -> None:
    """Raise `ModelError` unless the user trusts the code of a file.

    Args:
        path: the file.
        what: what it is and why that can run code, such as "a pickle, which can run code when it is loaded".
        trusted: whether the user said so.
        instead: another way, which needs no trust, as a sentence in the imperative without a full stop.
    """
    if not trusted:
        raise ModelError(
            f"{path} is {what}; nothing of it was run. If you trust whoever made it, give --trust-code. Otherwise: "
            f"{instead}"
        )
