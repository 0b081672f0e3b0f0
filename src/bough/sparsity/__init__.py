"""Sparsity without removal: single weights that are zero, unstructured or N:M, for contrast and for GPUs that profit."""

from bough.sparsity.attached_masks import attach_masks_, attached_masks, detach_masks_
from bough.sparsity.gradual import GradualPruning
from bough.sparsity.kernels import SparseKernels, use_sparse_kernels
from bough.sparsity.patterns import follows_pattern
from bough.sparsity.selected import selected_weights as selected_weights
from bough.sparsity.sparse_files import file_sizes, load_sparse, save_sparse
from bough.sparsity.sparsified import SparseLayer, Sparsified
from bough.sparsity.sparsify import METHODS as METHODS
from bough.sparsity.sparsify import sparsify

__all__ = [
    "GradualPruning", "SparseKernels", "SparseLayer", "Sparsified", "attach_masks_", "attached_masks", "detach_masks_",
    "file_sizes", "follows_pattern", "load_sparse", "save_sparse", "sparsify", "use_sparse_kernels",
]  # fmt: skip
