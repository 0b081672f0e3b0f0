"""Passes of data through a model: batches, taps, statistics and moments of activations, gradients, staged runs.

`synthesize` makes calibration inputs if there is no data.
"""

from bough.calibration.activation_statistics import ActivationStatistics, activation_statistics
from bough.calibration.batches import (
    batch_size,
    copy_to_device,
    parameter_device,
    select_inputs,
    split_samples,
    traced_batch,
    traced_inputs,
)
from bough.calibration.blockwise import BlockwiseData, stages_of
from bough.calibration.consumer_inputs import InputAxis, consumer_inputs, observed_axes, unreached_groups
from bough.calibration.data import Data, Loss, as_data, show_progress
from bough.calibration.expert_means import ExpertMeans, expert_means
from bough.calibration.expert_outputs import GatedNorms, gated_norms
from bough.calibration.gradients import loss_gradients, sample_gradients
from bough.calibration.losses import as_model_loss, as_output_loss, calling_convention
from bough.calibration.mixtures import Mixture
from bough.calibration.model_inputs import (
    example_inputs_from,
    first_batches,
    forward_inputs,
    require_batch_in_each_process,
    require_few_batches,
    require_reiterable,
)
from bough.calibration.moments import TINY, InnerProducts, Moments, collect_moments, rounding_floor
from bough.calibration.output_sensitivity import output_sensitivities, scale_by_output_sensitivity
from bough.calibration.output_variance import scale_by_output_variance
from bough.calibration.paired_runs import PairedRuns, StagedModel
from bough.calibration.passes import tapped_pass
from bough.calibration.processes import (
    add_over_processes,
    first_process_object,
    gather_objects,
    process_count,
    process_rank,
    require_equal_in_processes,
)
from bough.calibration.staged_run import MAX_PAUSED, Observed, StagedRun, TapPoint
from bough.calibration.sums import Sums
from bough.calibration.synthetic import keeps_statistics, synthesize
from bough.calibration.taps import Reader, Tap, preserve_state, tapped
from bough.calibration.thread_state import in_state_of_caller
from bough.calibration.unfolding import Unfolded, unfold, unfold_output, unfold_pair, unit_columns

__all__ = [
    "MAX_PAUSED",
    "TINY",
    "ActivationStatistics",
    "BlockwiseData",
    "Data",
    "ExpertMeans",
    "GatedNorms",
    "InnerProducts",
    "InputAxis",
    "Loss",
    "Mixture",
    "Moments",
    "Observed",
    "PairedRuns",
    "Reader",
    "StagedModel",
    "StagedRun",
    "Sums",
    "Tap",
    "TapPoint",
    "Unfolded",
    "activation_statistics",
    "add_over_processes",
    "as_data",
    "as_model_loss",
    "as_output_loss",
    "batch_size",
    "calling_convention",
    "collect_moments",
    "consumer_inputs",
    "copy_to_device",
    "example_inputs_from",
    "expert_means",
    "first_batches",
    "first_process_object",
    "forward_inputs",
    "gated_norms",
    "gather_objects",
    "in_state_of_caller",
    "keeps_statistics",
    "loss_gradients",
    "observed_axes",
    "output_sensitivities",
    "parameter_device",
    "preserve_state",
    "process_count",
    "process_rank",
    "require_batch_in_each_process",
    "require_equal_in_processes",
    "require_few_batches",
    "require_reiterable",
    "rounding_floor",
    "sample_gradients",
    "scale_by_output_sensitivity",
    "scale_by_output_variance",
    "select_inputs",
    "show_progress",
    "split_samples",
    "stages_of",
    "synthesize",
    "tapped",
    "tapped_pass",
    "traced_batch",
    "traced_inputs",
    "unfold",
    "unfold_output",
    "unfold_pair",
    "unit_columns",
    "unreached_groups",
]  # fmt: skip
