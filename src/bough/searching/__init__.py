"""Search: the best widths and layers under several limits, by evaluating candidates that the closed form has priced."""

from bough.searching.building import search_space, subnet_space
from bough.searching.candidate import Candidate
from bough.searching.makers import CutMaker, Maker, SubnetMaker
from bough.searching.points import Point
from bough.searching.result import SearchResult
from bough.searching.search import METHODS, search
from bough.searching.space import SearchSpace
from bough.searching.start_points import START

__all__ = [
    "METHODS", "START", "Candidate", "CutMaker", "Maker", "Point", "SearchResult", "SearchSpace", "SubnetMaker", "search",
    "search_space", "subnet_space",
]  # fmt: skip
