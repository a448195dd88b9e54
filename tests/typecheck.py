"""How annotations are checked while the tests run: an int passes for a float, as type checkers have it (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
"""The decorator that jaxtyping puts on every function of casemate."""
