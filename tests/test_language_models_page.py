"""The examples of docs/language_models.md run."""

from tests import pages
from tests.zoo.shim import declare_torchvision_ops


def test_the_page_runs():
    declare_torchvision_ops()
    pages.run("language_models.md")
