"""Names of microbatches and of a leader's rounds."""

from typing import NamedTuple


class MicrobatchID(NamedTuple):
    """Names one microbatch of one step; its data are a pure function of this name."""

    step: int
    index: int


class Round(NamedTuple):
    """One pass of one leader's loop; the larger one is the newer one.

    Terms are pairs (number, trainer), so that two trainers that took the same number
    are still ordered. Every answer to a round is a promise to refuse older rounds
    (design, section 5).
    """

    number: int
    trainer: str
    pass_: int


NO_ROUND = Round(0, "", 0)
