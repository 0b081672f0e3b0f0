"""The examples of docs/sparsity.md run."""

from tests import pages


def test_the_page():
    names = pages.run("sparsity.md")
    assert abs(names["sparse"].sparsity - 0.8) < 1e-3
    assert names["gradual"].settled
