"""Numbers that others published for Fashion-MNIST in Linf at eps 0.1, shown beside the benchmark's own."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Published:
    """A published result. Shares are from 0 to 1, of the test images named in `images`; None where none was stated."""

    model: str
    clean: float | None
    attacked: float | None
    attack: str
    """What left `attacked`."""
    certified: float | None
    images: str
    source: str


EPS = 0.1
"""The radius of all of them."""
PUBLISHED = (
    Published(
        model="Linf-distance network and MLP",
        clean=None,
        attacked=None,
        attack="",
        certified=0.7923,
        images="10,000",
        source="Zhang et al. 2021 (arXiv 2102.05363), abstract",
    ),
    Published(
        model="boosted trees, depth 30",
        clean=0.8585,
        attacked=0.7683,
        attack="exact",
        certified=0.7683,
        images="10,000",
        source="Andriushchenko and Hein 2019, table 3",
    ),
    Published(
        model="CNN, PGD-trained",
        clean=0.8846,
        attacked=0.785,
        attack="PGD and integer programming",
        certified=0.27,
        images="first 1,000",
        source="Croce, Andriushchenko and Hein 2019, table 1",
    ),
    Published(
        model="CNN, IBP, kappa 0.5",
        clean=0.8626,
        attacked=0.7844,
        attack="PGD, 20 steps",
        certified=None,
        images="10,000",
        source="Song, Shokri and Mittal 2019 (arXiv 1905.10291), notebooks of its repository",
    ),
    Published(
        model="CNN, TRADES, beta 1",
        clean=0.9092,
        attacked=0.7240,
        attack="PGD, 20 steps",
        certified=None,
        images="10,000",
        source="Song, Shokri and Mittal 2019 (arXiv 1905.10291), notebooks of its repository",
    ),
    Published(
        model="CNN, MMR and adversarial training",
        clean=0.855,
        attacked=0.734,
        attack="PGD and integer programming",
        certified=0.693,
        images="first 1,000",
        source="Croce, Andriushchenko and Hein 2019, table 1",
    ),
    Published(
        model="CNN, convex outer polytope",
        clean=0.7827,
        attacked=0.6837,
        attack="PGD",
        certified=0.6547,
        images="10,000",
        source="Wong and Kolter 2018, as in Andriushchenko and Hein 2019, table 3",
    ),
)
"""Only results that were read in the source named, not those known second-hand."""
