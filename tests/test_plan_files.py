"""A plan that is damaged is refused in one sentence that names the field, wherever plans are read or carried out."""

import json
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

import bough
from bough.cutting.check import check
from bough.errors import CheckpointError, PlanError
from bough.planning import Stale
from bough.planning.plan import Plan, Scale
from bough.planning.schema import _FIELDS, checked_plan
from bough.storage.schema import Invalid

INTERNALS = ("Error", "traceback", "__", "object at", "NoneType", "expected str", "list indices", "dict")


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


@pytest.fixture(scope="module")
def result():
    return bough.prune(build(), torch.randn(2, 8), bough.Budget(params="50%"))


def every_field(plan):
    """A plan that uses all the fields there are."""
    cost = replace(plan.cost, stored=3, latency=1e-3, energy=2.5e-9)
    return replace(
        plan, scales=(Scale("0.weight", 0, (1, 3), 0.5),), renormalizing=("a",), frozen={"b": "why"},
        left_out={"c": (2, True)}, sequences={"d:e": [0, 2]}, ragged={"f": "g"}, alike={"h": "why"}, rebuild=True,
        notes=("one", "zwei \u00e4"), inputs=("x", "y"), attributes={"a:b": 3, "a:c": 0.25}, cost=cost, weights="00ff",
        stale=(Stale("a:d", 32, (9, 13), ("reset",)),),
        unreached={"i": "why"}, tie=(("j.*", "k.*"), (("l.weight", 0), ("m", -1))),
    )  # fmt: skip


def test_plans_come_back_as_they_were(result):
    for plan in (result.plan, every_field(result.plan), replace(result.plan, inputs=None, weights=None)):
        assert Plan.from_json(plan.to_json()) == plan


def test_the_schema_has_the_fields_of_plans(result):
    data = result.plan.to_dict()
    assert data.keys() - {"format", "version", "indices"} == {f.name for f in fields(Plan)}
    for name in data:
        with pytest.raises(Invalid, match="not a known field"):
            _FIELDS({**data, f"{name}_": 1}, "")


def edits():
    """(what is done to the plan's data, what the message says)."""

    def put(path, value):
        def edit(data):
            for key in path[:-1]:
                data = data[key]
            data[path[-1]] = value

        return edit

    weight = ["kept", "0.weight"]
    return [
        (put(["indices", 0, 0], 1.5), r"indices\[0\] has the index 1.5"),
        (put(["indices", 0, 0], True), r"indices\[0\] has the index true"),
        (put(["indices", 0, 0], "1"), r'indices\[0\] has the index "1"'),
        (put(["indices", 0, 0], None), r"indices\[0\] has the index null"),
        (put(["indices", 0, 0], -1), r"indices\[0\] has the index -1.*out of range"),
        (put(["indices", 0, -1], 32), r'kept\["0.bias"\]\[0\] has the index 32.*0 to 31'),
        (put(["indices", 0], []), r"indices\[0\] is \[\]"),
        (put(["indices", 0], {}), r"indices\[0\] is \{\}"),
        (lambda d: d["indices"][0].insert(0, d["indices"][0][0]), r"indices\[0\] has the index \d+ twice"),
        (lambda d: d["indices"][0].reverse(), r"indices\[0\] has the index \d+ after \d+"),
        (put([*weight, "0"], 99), r'kept\["0.weight"\]\[0\] refers to list 99'),
        (put([*weight, "0"], -1), r'kept\["0.weight"\]\["0"\] is -1'),
        (put([*weight, "2"], 0), r'kept\["0.weight"\]\[2\] is of dim 2'),
        (put([*weight, "-1"], 0), r'kept\["0.weight"\] has the key \'-1\''),
        (put([*weight, "01"], 0), r'kept\["0.weight"\] has the key \'01\''),
        (put(weight, []), r'kept\["0.weight"\] is \[\]'),
        (put(["kept"], None), "kept is null"),
        (lambda d: d.pop("kept"), "kept is missing"),
        (put(["kepd"], {}), "kepd is not a known field"),
        (put(["groups", "0"], [33, 32]), r'groups\["0"\] keeps 33 units of 32'),
        (put(["groups", "0"], [3]), r'groups\["0"\] is \[3\]'),
        (put(["attributes"], {"a:b": "3"}), r'attributes\["a:b"\] is "3"'),
        (put(["attributes"], {"a:b": 10**400}), r'attributes\["a:b"\] is'),
        (put(["scales"], [["0.weight", 0, 0, None]]), r"scales\[0\]\[3\] is null"),
        (put(["scales"], [["0.weight", 0, 7, 1.0]]), r"scales\[0\] refers to list 7"),
        (put(["cost", "macs"], 1.5), "cost.macs is 1.5"),
        (put(["original"], {}), "original.params is missing"),
        (put(["original_shapes", "0.weight"], [-32, 8]), r'original_shapes\["0.weight"\]\[0\] is -32'),
        (put(["left_out"], {"a": [0, 1]}), r'left_out\["a"\]\[1\] is 1'),
        (put(["sequences"], {"a": [0.5]}), r'sequences\["a"\]\[0\] is 0.5'),
        (put(["rebuild"], "no"), 'rebuild is "no"'),
        (put(["notes"], "text"), 'notes is "text"'),
        (put(["inputs"], True), "inputs is true"),
        (put(["fingerprint"], 5), "fingerprint is 5"),
        (put(["weights"], 5), "weights is 5"),
        (put(["version"], 99), "version is 99"),
        (put(["version"], True), "version is true"),
        (put(["format"], "zip"), "format"),
    ]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), edits(), ids=[m for _, m in edits()])
def test_a_wrong_field_is_named(result, edit, message, tmp_path):
    data = json.loads(result.plan.to_json())
    edit(data)
    with pytest.raises(PlanError, match=message) as error:
        Plan.from_json(json.dumps(data))
    assert not [word for word in INTERNALS if word in str(error.value)]
    bough.save(result, tmp_path)
    whole = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**whole, "plan": data}))
    with pytest.raises(CheckpointError, match=rf"plan.json is damaged.*plan(\.{message}| is not a plan.*{message})"):
        bough.load(tmp_path, build)


GOOD = '{"format": "bough-plan", "version": 1}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nest too deep"), ('{"a":' * 100_000, "nest too deep"), ("", "line 1, column 1"), ("{}", "format"),
        ("null", "format"), ("[]", "format"), ("3", "format"), (GOOD, "missing"), (GOOD[:-3], "valid JSON"),
        ('{"a": NaN}', "NaN"), ('{"a": 1, "a": 2}', "'a' twice"), ("9" * 5000, "too many digits"), (b"\xff\xfe\x00", "UTF-8"),
    ],
)  # fmt: skip
def test_text_that_is_no_plan(result, text, message, tmp_path):
    if isinstance(text, str):
        with pytest.raises(PlanError, match=message) as error:
            Plan.from_json(text)
        assert "\n" not in str(error.value)
    bough.save(result, tmp_path)
    (tmp_path / "plan.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"plan.json is damaged or truncated: it"):
        bough.load(tmp_path, build)


def test_any_cut_off_end_is_refused(result):
    text = result.plan.to_json()
    for end in range(0, len(text), 17):
        with pytest.raises(PlanError):
            Plan.from_json(text[:end])


KEPT = {
    "a float": [0, 1.5], "a flag": [0, True], "one twice": [0, 3, 3], "unsorted": [4, 2], "negative": [-1, 2],
    "out of range": [0, 32], "none": [], "no list": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("verb", ["cut", "cut_", "mask"])
def test_a_plan_is_checked_against_the_model_before_anything_is_cut(result, name, verb):
    model = build()
    plan = replace(result.plan, kept={**result.plan.kept, "2.weight": {**result.plan.kept["2.weight"], 0: KEPT[name]}})
    with pytest.raises(PlanError, match=r"damaged: of dim 0 of 2\.weight"):
        getattr(bough, verb)(model, plan)
    assert model[2].weight.shape == (32, 32)


def test_names_dims_and_scales_of_another_model(result):
    model, plan = build(), result.plan
    model.kinds, model.kind = ["a", "b", "c"], 3
    for wrong, message in (
        (replace(plan, kept={"9.weight": {0: [0]}}), r"cuts 9\.weight, which does not exist"),
        (replace(plan, kept={"0.bias": {1: [0]}}), r"cuts dim 1 of 0\.bias"),
        (replace(plan, kept={"0.bias": {True: [0]}}), r"cuts dim True of 0\.bias"),
        (replace(plan, scales=(Scale("0.bias", 0, (1, 1), 2.0),)), "index 1 twice"),
        (replace(plan, scales=(Scale("x", 0, (1,), 2.0),)), "cuts x, which does not exist"),
        (replace(plan, left_out={"7": (0, False)}), "leaves out 7"),
        (replace(plan, attributes={"0:inner:n": 3}), "sets 0:inner:n"),
        (replace(plan, sequences={":kinds": [0, 3]}), "of the items of :kinds it keeps.*the index 3, which is out of range"),
        (replace(plan, sequences={":kinds": [1, 1]}), "index 1 twice"),
        (replace(plan, sequences={":kind": [0]}), "is for a list"),
        (replace(plan, fingerprint="0" * 16), "fingerprint"),
        (replace(plan, original_shapes={"0.weight": [64, 8]}), "had shape"),
    ):
        with pytest.raises(PlanError, match=message):
            check(model, wrong)
    check(model, replace(plan, sequences={":kinds": [0, 2]}))


def test_a_place_in_a_larger_file_is_in_the_message():
    with pytest.raises(Invalid, match=r"^plan is not a plan"):
        checked_plan({}, "plan")
