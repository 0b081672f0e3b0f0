"""What bough does where the user leaves it open: the best known criterion, allocation and recovery, chosen by trial."""

from bough.defaults.candidates import WITH_DATA, WITHOUT_DATA, Candidate, candidates
from bough.defaults.choose import Choice, Chosen, Trial, choose
from bough.defaults.layers import choose_layers
from bough.defaults.sample import Sample, sample_of

__all__ = [
    "WITHOUT_DATA", "WITH_DATA", "Candidate", "Choice", "Chosen", "Sample", "Trial", "candidates", "choose", "choose_layers",
    "sample_of",
]  # fmt: skip
