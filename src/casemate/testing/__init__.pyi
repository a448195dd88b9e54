"""The public names."""

from .assertions import assert_not_worse as assert_not_worse
from .assertions import assert_robust as assert_robust
