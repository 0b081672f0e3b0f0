"""`Supernet`: one model that contains many smaller ones, whose weights they share."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.calibration import Data, Loss, as_data
from bough.cost import Cost, EnergyModel
from bough.cutting import cut
from bough.errors import ConflictError, PlanError
from bough.graph import Graph
from bough.latency import LatencyTable
from bough.planning import Allocator, Budget, OnConflict, Options, Plan, planned
from bough.planning.allocation import Allowed
from bough.recovery import Trained, Training
from bough.supernet.checkpoint import load_supernet, save_supernet
from bough.supernet.extracted import Extracted, recalibrated
from bough.supernet.instances import Instances
from bough.supernet.ordering import Scores
from bough.supernet.pricing import SubnetPrices, prices_of, subnet_within
from bough.supernet.profile import BudgetCheck, Profile, profile_of
from bough.supernet.sandwich import Sandwich
from bough.supernet.space import SubnetSpace
from bough.supernet.subnet import Subnet
from bough.supernet.table import SubnetRow, SubnetTable
from bough.supernet.tabulating import tabulated
from bough.supernet.training import train_sandwich
from bough.tracing.capture.attribute_numbers import state_restored
from bough.tracing.fingerprint import weights_digest

_PLANS = 256  # plans of subnets that stay known
_DRAWS = 100  # of a subnet, until the model's Python agrees with one


class Supernet(nn.Module):
    """A model that runs at the widths and depth that are set by `at`, and at full size outside of it.

    `bough.supernet` makes one, and `Supernet.load` reads a saved one.

    Attributes:
        model: the largest subnet, an ordinary module; its parameters are those of all subnets.
        space: the subnets.
        scores: {group: float64 [units]}, descending: by which the units were ordered, and budgets are divided.
        frozen: {group or layer that is not elastic although its types allow it: reason}.
        refused: {how the model's Python contradicts subnets that were drawn and not used: their number}.
    """

    def __init__(self, space: SubnetSpace, frozen: Mapping[str, str], allowed: Allowed, scores: Scores) -> None:
        super().__init__()
        self.model = space.graph.model
        self.space, self.scores, self.frozen, self.allowed = space, dict(scores), dict(frozen), allowed
        self.refused: dict[str, int] = {}
        self._instances = Instances(self.model)
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._active: list[nn.Module] = []
        self.training = self.model.training

    @property
    def graph(self) -> Graph:
        """The traced graph of `model`."""
        return self.space.graph

    @property
    def smallest(self) -> Subnet:
        """The subnet of the smallest widths and depth."""
        return self.space.at(0.0)

    @property
    def middle(self) -> Subnet:
        """The subnet of the middle widths and depth."""
        return self.space.at(0.5)

    @property
    def largest(self) -> Subnet:
        """The whole model as a subnet."""
        return self.space.at(1.0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the subnet that `at` has set, or the whole model."""
        module = self._active[-1] if self._active else self.model
        if module is not self.model:
            return module(*args, **kwargs)
        with state_restored(self.model):  # a cache of the whole model would be in the way of the next plan
            return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> Supernet:
        """Set the mode of the model, and of the subnets that are in use."""
        super().train(mode)
        for module in self._active:
            module.train(mode)
        return self

    @contextmanager
    def at(self, counts: Subnet | Mapping[str, int], *, drop: Iterable[str] = ()) -> Iterator[nn.Module]:
        """Run a subnet inside the context: calls of the supernet are calls of the module that is yielded.

        Its parameters are slices of the supernet's, made on entry: gradients flow to the supernet, and a step of the optimizer
        inside the context does not show before the next entry. Its buffers are copies, so the batch-norm statistics of the
        supernet are those of the largest subnet; `bough.recalibrate` sets a subnet's own.

        Args:
            counts: {group: units}, where groups that are not named are as wide as in the supernet; or a subnet.
            drop: elastic layers that are left out.

        Raises:
            PlanError: no such group, layer or width.
            ConflictError: the model's Python contradicts these counts.
        """
        subnet = self.subnet(counts, drop=drop)
        self._active.append(self.model if subnet.key == self.largest.key else self.instance(subnet))
        try:
            yield self._active[-1]
        finally:
            self._active.pop()

    def subnet(self, counts: Subnet | Mapping[str, int], *, drop: Iterable[str] = ()) -> Subnet:
        """Return the subnet of some counts and layers, completed and checked.

        Args:
            counts, drop: as for `at`.

        Raises:
            PlanError: as for `at`.
        """
        check_arguments(Supernet.subnet, locals())
        if isinstance(counts, Subnet):
            return self.space.checked(counts.counts, (*counts.dropped, *drop))
        return self.space.checked(counts, drop)

    def instance(self, subnet: Subnet) -> nn.Module:
        """Return a module of a subnet on slices of the present weights, with buffers of its own.

        Raises:
            ConflictError: as for `at`.
        """
        return self._instances.make(subnet.key, self.plan(subnet))

    def plan(self, subnet: Subnet) -> Plan:
        """Return the plan that cuts `model` to a subnet.

        Raises:
            ConflictError: the model's Python contradicts the counts.
        """
        check_arguments(Supernet.plan, locals())
        if subnet.key not in self._plans:
            planning = Options(drop=subnet.dropped, on_conflict=OnConflict.RAISE)
            plan = planned(self.graph, self.scores, dict(subnet.counts), planning)
            other = [n for n, k in subnet.counts.items() if plan.groups[n][0] != k]
            if other:
                raise ConflictError(f"{other[0]} can not have {subnet.counts[other[0]]} units: {plan.frozen.get(other[0], '')}")
            self._plans[subnet.key] = plan
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(subnet.key)
        return self._plans[subnet.key]

    def sample(self, rng: np.random.Generator | int, *, smallest: float = 0.0) -> Subnet:
        """Draw a subnet, each width and each depth uniformly; subnets that the model's Python contradicts are drawn again.

        Args:
            rng: a generator, or a seed.
            smallest: position from 0 to 1, between smallest and largest, below which nothing is drawn.

        Raises:
            PlanError: `smallest` is out of range.
            ConflictError: none of 100 draws runs.
        """
        check_arguments(Supernet.sample, locals())
        if not 0 <= smallest <= 1:
            raise PlanError(f"sample(smallest={smallest}): must be from 0 to 1")
        generator = np.random.default_rng(rng)
        for _ in range(_DRAWS):
            try:
                drawn = self.space.sample(generator, smallest)
                self.plan(drawn)
            except ConflictError as error:
                self.refused[str(error)] = self.refused.get(str(error), 0) + 1
                continue
            return drawn
        raise ConflictError(f"none of {_DRAWS} subnets runs: {next(reversed(self.refused))}")

    def costs(
        self, subnets: Iterable[Subnet], *, table: LatencyTable | None = None, energy: EnergyModel | None = None
    ) -> list[Cost]:
        """Return the predicted costs of subnets, by arithmetic alone.

        Args:
            subnets: of this supernet.
            table: adds the latency.
            energy: adds the energy.
        """
        check_arguments(Supernet.costs, locals())
        return SubnetPrices(self.space, prices_of(None, table, energy)).costs([*subnets])

    def profile(
        self, budgets: Iterable[Budget] = (), *, table: LatencyTable | None = None, energy: EnergyModel | None = None
    ) -> Profile:
        """Return the smallest, middle and largest subnet with their costs, and whether budgets can be met: before training.

        Args:
            budgets: to be checked.
            table: adds the latency; needed for budgets of latency.
            energy: adds the energy.

        Raises:
            BudgetError: a budget of latency without a table.
        """
        check_arguments(Supernet.profile, locals())
        subnets = {"smallest": self.smallest, "middle": self.middle, "largest": self.largest}
        checks = []
        for budget in budgets:
            *low, high = SubnetPrices(self.space, prices_of(budget, table, energy)).costs(
                [*self.space.smallest(), self.largest]
            )
            checks.append(BudgetCheck.of(budget, low, high))
        return profile_of(subnets, self.costs(subnets.values(), table=table, energy=energy), checks)

    def within(
        self, budget: Budget, *, allocation: str | Allocator = "global", table: LatencyTable | None = None,
        energy: EnergyModel | None = None,
    ) -> Subnet:  # fmt: skip
        """Return the subnet that an allocator finds for a budget, by the scores of the units; layers are left out last.

        Args:
            budget: upper bounds on what remains; percentages are of the largest subnet.
            allocation, table, energy: as for `plan`.

        Raises:
            BudgetError: no subnet meets the budget.
        """
        check_arguments(Supernet.within, locals())
        prices = SubnetPrices(self.space, prices_of(budget, table, energy))
        return subnet_within(prices, self.scores, budget, self.allowed, self.frozen, allocation)

    def extract(
        self, target: Budget | Subnet | SubnetRow | Mapping[str, int], *, drop: Iterable[str] = (),
        data: Data | Iterable[Any] | None = None, allocation: str | Allocator = "global", table: LatencyTable | None = None,
        energy: EnergyModel | None = None,
    ) -> Extracted:  # fmt: skip
        """Return a subnet as an ordinary plan and an ordinary dense model, equal to the supernet at these widths.

        Args:
            target: a budget (see `within`), counts as for `at`, a subnet, or a row of a table.
            drop: elastic layers that are left out, with counts.
            data: batches, as for `score`: the extracted model's batch-norm statistics are set to those on them.
            allocation, table, energy: for a budget, as for `plan`.

        Raises:
            BudgetError: no subnet meets the budget.
            PlanError: no such group, layer or width.
            ConflictError: the model's Python contradicts the counts.
        """
        check_arguments(Supernet.extract, locals())
        if isinstance(target, Budget):
            target = self.within(target, allocation=allocation, table=table, energy=energy)
        subnet = self.subnet(target.subnet if isinstance(target, SubnetRow) else target, drop=drop)
        plan = replace(self.plan(subnet), weights=weights_digest(self.model))
        small = cut(self.model, plan)
        return Extracted(recalibrated(small, None if data is None else as_data(data, "a supernet")), plan, subnet)

    def table(
        self, budgets: Mapping[str, Budget], *, tables: Mapping[str, LatencyTable] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None, data: Data | Iterable[Any] | None = None,
        allocation: str | Allocator = "global", energy: EnergyModel | None = None,
    ) -> SubnetTable:  # fmt: skip
        """Return a subnet for each device, with its cost and metric; any row can be extracted later.

        Args:
            budgets: {device: upper bounds}.
            tables: {device: latency table}, for budgets of latency.
            evaluate: module in eval mode -> metric; without it rows have no metric.
            data: batches, on which a subnet's batch-norm statistics are set before it is evaluated.
            allocation, energy: as for `plan`.

        Raises:
            BudgetError: no subnet meets a budget; the message names the device.
        """
        check_arguments(Supernet.table, locals())
        return tabulated(
            self, budgets, tables or {}, evaluate, None if data is None else as_data(data, "a supernet"), allocation, energy
        )

    def fit(
        self, train: Any, training: Training | None = None, *, sandwich: Sandwich | None = None,
        subnets: Sequence[Budget | Subnet] | None = None, teacher: nn.Module | None = None, loss: Loss | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None, evaluate: Callable[[nn.Module], float] | None = None,
        data: Data | Iterable[Any] | None = None, optimizer: Optimizer | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None, accelerator: Any = None,
    ) -> Trained:  # fmt: skip
        """Train all subnets in place by the sandwich rule: the largest, the smallest and random ones in each step.

        The largest learns the task; the others learn its answers to the same batch (in-place distillation). Where the weights
        are trained already, `teacher=model` lets all learn the answers of the model as it was. Where the devices are known,
        `subnets=[Budget(macs="50%"), ...]` trains those alone. Resumes as `finetune` does, and runs in several processes as
        that does.

        Source: Yu and Huang, 2019 (sandwich rule, in-place distillation); Cai et al., 2020 (progressive shrinking).

        Args:
            train: as for `finetune`.
            training: the options.
            sandwich: how many subnets a step has, and how they learn from the largest.
            subnets: what every step trains in place of the largest, the smallest and random ones: subnets, or budgets, which
                are those that `within` finds. Without a teacher the largest is trained beside them, since they learn from it.
            teacher: a model whose logits all subnets learn, the largest too; it runs in eval mode and stays as it is.
            loss, forward, optimizer, callback, accelerator: as for `finetune`.
            evaluate: module in eval mode -> metric; the metric of an epoch is the mean over `subnets`, or over the smallest,
                middle and largest, and the weights of the best epoch are kept.
            data: batches on which the batch-norm statistics of a subnet are set before it is evaluated.

        Raises:
            ArgumentError: an argument of another type.
            TrainingError: as for `finetune`; outputs without logits; `evaluate` without `data` where there are batch norms; no
                subnet in `subnets`, or a teacher that is part of the supernet.
            BudgetError, PlanError, ConflictError: for `subnets`, as for `within` and `at`.
            CheckpointError: the state in the folder is damaged.
        """
        check_arguments(Supernet.fit, locals())
        return train_sandwich(
            self, train, training or Training(), sandwich or Sandwich(), subnets=subnets, teacher=teacher, loss=loss,
            forward=forward, evaluate=evaluate, data=None if data is None else as_data(data, "a supernet"),
            optimizer=optimizer, callback=callback, accelerator=accelerator,
        )  # fmt: skip

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the supernet to a file in a folder, weights, order and subnets, and return the file's path.

        Args:
            folder: where to; made if absent.
            overwrite: replace a supernet that is in the folder.

        Raises:
            CheckpointError: the folder has a supernet already.
            WriteError: the file can not be written; an older one stays.
        """
        check_arguments(Supernet.save, locals())
        return save_supernet(self, Path(folder), overwrite=overwrite)

    @staticmethod
    def load(folder: str | os.PathLike[str], build_model: Callable[[], Any], example_inputs: Any = None) -> Supernet:
        """Return the supernet that `save` wrote, bit for bit.

        Args:
            folder: as for `save`.
            build_model: returns a model of the original architecture (its weights do not matter), or (model, example inputs).
            example_inputs: as for `trace`; needed unless `build_model` returns them.

        Raises:
            CheckpointError: the file is missing, damaged or of another version, or there are no example inputs.
            PlanError: `build_model` makes another model.
        """
        check_arguments(Supernet.load, locals())
        return Supernet(*load_supernet(Path(folder), build_model, example_inputs))
