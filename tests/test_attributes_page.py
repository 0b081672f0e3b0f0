"""The example of docs/attributes.md runs."""

from tests import pages


def test_the_example():
    names = pages.run("attributes.md")
    small = names["result"].model
    assert names["result"].plan.attributes == {":num_features": small.fc.in_features}
    assert small(names["x"]).shape == (2, 7)
    stale = names["stale"]
    assert (stale.name, stale.value, stale.sizes, stale.methods) == ("k", 48, (small.a.out_features,), ("double",))
