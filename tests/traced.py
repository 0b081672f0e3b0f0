"""Small nets of the zoo, traced in float64, with inputs."""

import torch

import bough
from tests.zoo import randomize, to_double
from tests.zoo.small import ZOO


def traced(name, batch):
    """A small net of the zoo with random weights in float64, its graph, and a batch of random inputs."""
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    shape = (batch, *inputs.shape[1:])
    data = torch.randn(shape, dtype=torch.float64) if inputs.is_floating_point() else torch.randint(0, 20, shape)
    model = randomize(model.eval())
    return model, bough.trace(model, to_double(inputs)), data
