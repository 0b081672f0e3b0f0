"""Training by the sandwich rule, its own loop and the trainer's, resumed runs, and saved supernets."""

import copy
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bough
from bough.errors import CheckpointError, PlanError, TrainingError
from bough.recovery import Distillation
from bough.supernet.sandwich import Schedule
from tests.supernet.models import accuracy, dataset, inputs, nested, residual

pytest.importorskip("accelerate")


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_step_is_the_mean_loss_over_its_subnets():
    """Written out by hand: the largest learns the labels, the others its logits, each by the model of its own cut."""
    net, (x, y) = nested(), dataset(32).tensors
    sandwich = bough.Sandwich(random=1, distillation=Distillation(logits=0.5, temperature=2.0))
    largest, *subnets = Schedule(net, sandwich, (), 0, 10).subnets(0)
    assert largest.key == net.largest.key
    assert subnets[0].key == net.smallest.key
    whole = net.model(x)
    losses = [F.cross_entropy(whole, y)]
    for subnet in subnets:
        out = net.extract(subnet).model(x)
        answers, teacher = (F.log_softmax(o / 2, 1) for o in (out, whole.detach()))
        divergence = 4 * F.kl_div(answers, teacher, log_target=True, reduction="batchmean")
        losses.append(0.5 * divergence + 0.5 * F.cross_entropy(out, y))
    seen = []
    training = bough.Training(epochs=1, batch_size=32, lr=1e-9)
    net.eval().fit(dataset(32), training, sandwich=sandwich, forward=eval_run, callback=lambda line: seen.append(line["loss"]))
    assert seen == pytest.approx([float(sum(losses).detach() / 3)], rel=1e-5)


def eval_run(model, batch):
    """Run in eval mode, so that batch norms compute what those of extracted models do."""
    if not isinstance(model, bough.Supernet):  # the teacher
        return model(batch[0])
    active = model._active[-1]
    active.eval()
    try:
        return model(batch[0])
    finally:
        active.train()


@pytest.mark.parametrize("with_teacher", [True, False])
def test_a_step_of_named_subnets_is_the_mean_loss_over_them(with_teacher):
    """With a teacher they alone learn, from it; without one the largest learns the labels beside them, and teaches them."""
    net, (x, y), teacher = nested(), dataset(32).tensors, residual() if with_teacher else None
    budget = bough.Budget(macs="60%")
    subnets = [net.within(budget), net.smallest, net.within(budget)]
    answers = (teacher or net.model)(x).detach()
    losses = [] if with_teacher else [F.cross_entropy(net.model(x), y)]
    for subnet in subnets[:2]:
        out = net.extract(subnet).model(x)
        losses.append(bough.recovery.distillation_loss(out, answers))
    seen = []
    training = bough.Training(epochs=1, batch_size=32, lr=1e-9)
    net.eval().fit(
        dataset(32),
        training,
        subnets=subnets,
        teacher=teacher,
        forward=eval_run,
        callback=lambda line: seen.append(line["loss"]),
    )
    assert seen == pytest.approx([float(torch.stack(losses).detach().mean())], rel=1e-5)


def test_a_teacher_stays_as_it_is_and_sandwiches_learn_from_it():
    net, teacher = nested(), residual()
    before = copy.deepcopy(teacher)
    done = net.fit(dataset(), bough.Training(epochs=8, batch_size=32, lr=2e-2), teacher=teacher.train())
    assert equal(teacher, before)
    assert teacher.training
    assert done.epochs[-1]["loss"] < 0.5 * done.epochs[0]["loss"]


def test_the_metric_of_named_subnets_is_their_mean():
    net, data = nested(), [inputs(96)]
    done = net.fit(
        dataset(),
        bough.Training(epochs=1, batch_size=32),
        subnets=[net.smallest],
        evaluate=accuracy,
        data=data,
        teacher=residual(),
    )
    assert done.epochs[0]["metric"] == pytest.approx(accuracy(net.eval().extract(net.smallest, data=data).model))


def test_training_improves_all_sizes():
    net, data = nested(), [inputs(96)]
    before = [accuracy(net.extract(s, data=data).model) for s in (net.smallest, net.middle)]
    training = bough.Training(epochs=16, batch_size=32, lr=2e-2)
    done = net.fit(dataset(), training, evaluate=accuracy, data=data)
    after = [accuracy(net.eval().extract(s, data=data).model) for s in (net.smallest, net.middle)]
    assert done.steps == 48
    assert min(after) > max(0.5, *before)
    assert done.best == max(e["metric"] for e in done.epochs)


def test_a_loop_of_ones_own():
    net, (x, y), rng = nested().train(), dataset().tensors, np.random.default_rng(0)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        answers = net(x)
        total = F.cross_entropy(answers, y)
        total.backward()
        for subnet in (net.smallest, net.sample(rng)):
            with net.at(subnet):
                F.kl_div(F.log_softmax(net(x), 1), F.softmax(answers.detach(), 1), reduction="batchmean").backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("options", [{}, {"sandwich": bough.Sandwich(random=1, shrinking=0.5)}])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, options):
    def train(folder, kill_at=None):
        net = nested()

        def callback(line):
            if line["step"] == kill_at:
                raise KeyboardInterrupt

        training = bough.Training(epochs=2, batch_size=32, folder=folder, save_every=2)
        net.fit(dataset(), training, callback=callback, **options)
        return net

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", kill_at=5)
    assert equal(train(tmp_path / "killed"), whole)


def test_a_run_with_other_subnets_is_not_resumed(tmp_path):
    training = bough.Training(epochs=1, batch_size=32, folder=tmp_path)
    nested().fit(dataset(), training)
    other = nested()
    changed = [
        (nested(round_to=2), {}), (other, {"sandwich": bough.Sandwich(random=1)}), (other, {"subnets": [other.smallest]}),
        (other, {"teacher": residual()}),
    ]  # fmt: skip
    for net, options in changed:
        with pytest.raises(TrainingError, match="holds a run with another loss"):
            net.fit(dataset(), training, **options)


def test_progressive_shrinking_begins_with_the_largest():
    sandwich = bough.Sandwich(shrinking=0.5)
    assert [sandwich.position(step, 100) for step in (0, 25, 50, 99)] == [1.0, 0.5, 0.0, 0.0]
    net = nested()
    assert {s.key for s in Schedule(net, sandwich, (), 0, 100).subnets(0)} == {net.largest.key}


def test_a_loss_that_runs_the_model_and_labels_alone():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    sandwich = bough.Sandwich(distillation=Distillation(logits=0.0))
    nets = []
    for given in (loss, None):
        net = nested()
        net.fit(dataset(), bough.Training(epochs=1, batch_size=32), loss=given, sandwich=sandwich)
        nets.append(net)
    for a, b in zip(*(n.parameters() for n in nets), strict=True):
        torch.testing.assert_close(a, b)


def test_training_that_can_not_start():
    with pytest.raises(TrainingError, match="needs data: batches on which the batch-norm statistics"):
        nested().fit(dataset(), bough.Training(epochs=1), evaluate=accuracy)
    with pytest.raises(TrainingError, match="random not negative"):
        bough.Sandwich(random=-1)
    with pytest.raises(TrainingError, match="shrinking=2"):
        bough.Sandwich(shrinking=2)
    with pytest.raises(TrainingError, match="give at least one subnet"):
        nested().fit(dataset(), subnets=[])
    net = nested()
    with pytest.raises(TrainingError, match="must be 0"):
        net.fit(dataset(), subnets=[net.smallest], sandwich=bough.Sandwich(shrinking=0.5))
    for part in (net, net.model, net.model.head):
        with pytest.raises(TrainingError, match="is the supernet's own model"):
            net.fit(dataset(), teacher=part)
    with pytest.raises(TrainingError, match="is not used"):
        net.fit(dataset(), teacher=residual(), sandwich=bough.Sandwich(distillation=Distillation(logits=0.0)))
    graph = bough.trace(residual(), inputs())
    with pytest.raises(TrainingError, match="match must be None"):
        bough.Sandwich(distillation=Distillation(match=bough.recovery.Features(graph, ["stem"], student=graph)))


def test_a_saved_supernet_is_the_same(tmp_path):
    net, x = nested(round_to=2, minimum=0.5), inputs()
    net.save(tmp_path)
    again = bough.Supernet.load(tmp_path, residual, x)
    assert equal(net, again)
    assert [(w.groups, w.counts.tolist()) for w in again.space.widths] == [
        (w.groups, w.counts.tolist()) for w in net.space.widths
    ]
    assert again.space.depths == net.space.depths
    for budget in (bough.Budget(macs="50%"), bough.Budget(params="30%")):
        assert net.within(budget) == again.within(budget)
        torch.testing.assert_close(net.extract(budget).model(x), again.extract(budget).model(x), rtol=0, atol=0)


def test_what_was_ignored_stays_whole_after_loading(tmp_path):
    net = nested(ignore=["stem"])
    net.save(tmp_path)
    again = bough.Supernet.load(tmp_path, lambda: (residual(), inputs()))
    assert again.smallest.counts == {**net.smallest.counts, "stem": 6}
    assert again.extract(bough.Budget(params="60%")).model.stem.out_features == 6


def test_saved_supernets_that_do_not_fit(tmp_path):
    path = nested().save(tmp_path)
    with pytest.raises(CheckpointError, match="has a supernet already"):
        nested().save(tmp_path)
    nested().save(tmp_path, overwrite=True)
    with pytest.raises(PlanError, match="is of another model than this Linear"):
        bough.Supernet.load(tmp_path, lambda: torch.nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(CheckpointError, match="needs example_inputs"):
        bough.Supernet.load(tmp_path, residual)
    with pytest.raises(CheckpointError, match="build_model returned a str"):
        bough.Supernet.load(tmp_path, lambda: "net", inputs())
    with pytest.raises(CheckpointError, match="holds no supernet"):
        bough.Supernet.load(tmp_path / "none", residual, inputs())
    shutil.copy(path, tmp_path / "whole")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        bough.Supernet.load(tmp_path, residual, inputs())


def test_weights_that_are_not_trained_stay():
    net = nested()
    net.model.head.requires_grad_(False)
    before = copy.deepcopy(net.model.head)
    net.fit(dataset(), bough.Training(epochs=1, batch_size=32))
    assert torch.equal(before.weight, net.model.head.weight)
