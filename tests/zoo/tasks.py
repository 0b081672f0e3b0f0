"""A task for the small nets, as the command line takes it."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.zoo import small


def same_mlp():
    """`small:mlp` with the same weights each time, as a trained model has."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small.mlp()


def five_inputs():
    """For `small:mlp`: three classes by the largest of three inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=generator)
    y = x[:, :3].argmax(1)
    return TensorDataset(x[:64], y[:64]), DataLoader(TensorDataset(x[64:], y[64:]), 32)


def unlabelled():
    """Batches of inputs alone, made as they are asked for."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(32, 5, generator=generator) for _ in range(4))
