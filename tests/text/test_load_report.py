"""Load reports: rows by hand, values in the right place and layout, refusals that change nothing, the table's text."""

import pytest
import torch
from torch import nn

from danlu.data.errors import InputError
from danlu.text.load_report import LoadError, LoadReport, Row, fill, match, weights_dtype
from danlu.text.slots import Slot

JOINED = torch.arange(12.0).reshape(
    1, 2, 6
)  # (1, in, 3 * out): query, key and value side by side, as OpenAI keeps them
FILE = {
    "w": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([7.0, 8.0, 9.0]),
    "joined": JOINED,
    "step": torch.tensor(3),
    "w/adam_m": torch.zeros(2, 3),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in FILE.items()}
SLOTS = {
    "dense.weight": Slot("w", transpose=True),
    "dense.bias": Slot("b"),
    "value.weight": Slot("joined", transpose=True, part=2, parts=3, leading=1),
}


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"dense": nn.Linear(2, 3), "value": nn.Linear(2, 2, bias=False)})


def load(target, file=FILE, **options):
    shapes = {name: tuple(tensor.shape) for name, tensor in file.items()}
    return fill(target, SLOTS, file.__getitem__, shapes, source="a.ckpt", training=lambda n: "adam" in n or n == "step",
                **options)  # fmt: skip


def test_values_lie_where_the_slots_say():
    target = model()
    report = load(target)
    assert target.dense.weight.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert target.dense.bias.tolist() == [7.0, 8.0, 9.0]
    assert target.value.weight.tolist() == [[4.0, 10.0], [5.0, 11.0]]  # the last two columns, turned
    assert target.load_report is report
    assert report.counts() == {"matched": 3, "training state": 2}
    assert report.problems() == []
    assert [(row.ours, row.theirs) for row in report.of("matched")] == [
        ("dense.weight", "w"), ("dense.bias", "b"), ("value.weight", "joined")
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_s_type_and_gradients_stay(dtype):
    target = model().to(dtype)
    target.dense.bias.requires_grad_(False)
    load(target)
    assert target.dense.weight.dtype == dtype and target.dense.weight.requires_grad
    assert not target.dense.bias.requires_grad
    assert target.dense.bias.float().tolist() == [7.0, 8.0, 9.0]


def test_a_model_without_memory_comes_to_life():
    with torch.device("meta"):
        target = model()
    target.dense.bias.requires_grad_(False)
    load(target)
    assert target.dense.weight.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert target.dense.weight.requires_grad and not target.dense.bias.requires_grad
    assert target.dense.weight.is_contiguous() and not any(p.is_meta for p in target.parameters())


def test_the_file_s_memory_is_not_the_model_s():
    file = {name: tensor.clone() for name, tensor in FILE.items()}
    with torch.device("meta"):
        target = model()
    load(target, file)
    with torch.no_grad():
        target.dense.bias.zero_()
    assert file["b"].tolist() == [7.0, 8.0, 9.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, r"^1 weight of the model is not in a.ckpt: dense.bias \(3\); look here$"),
        ({"b": None, "w": None}, r"^2 weights of the model are not in a.ckpt: dense.weight \(3, 2\), dense.bias"),
        ({"b": torch.zeros(4)}, r"^1 weight has another shape in a.ckpt: dense.bias \(3\) against b \(4\); look here$"),
        ({"joined": torch.zeros(2, 6)}, r"value.weight \(2, 2\) against joined \(2, 6\)"),  # an axis is lacking
        ({"joined": torch.zeros(1, 2, 7)}, r"value.weight \(2, 2\) against joined \(1, 2, 7\)"),  # not three parts
        ({"w": torch.zeros(3, 2)}, r"dense.weight \(3, 2\) against w \(3, 2\)"),  # turned the other way round
        ({"position": torch.zeros(5)}, r"^a.ckpt holds 1 weight that the model has no place for: position \(5\); "),
    ],
)  # fmt: skip
def test_refusals_name_the_weights_and_change_nothing(change, message):
    file = {name: tensor for name, tensor in {**FILE, **change}.items() if tensor is not None}
    target = model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(LoadError, match=message) as caught:
        load(target, file, hint="look here", essential=lambda name: name == "position")
    assert isinstance(caught.value, InputError) and caught.value.report.problems()
    assert "!" in str(caught.value.report)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_edited_weights_may_begin_with_another_shape_and_must_end_with_the_right_one():
    wider = {**FILE, "b": torch.zeros(4)}
    report = load(target := model(), wider, edits={"dense.bias": lambda tensor: tensor[:3] + 1})
    assert target.dense.bias.tolist() == [1.0, 1.0, 1.0]
    assert report.of("edited") == [Row("dense.bias", "b", "edited", (3,), (4,))]
    with pytest.raises(LoadError, match=r"dense.bias needs shape \(3\), b gives \(2\)"):
        load(model(), wider, edits={"dense.bias": lambda tensor: tensor[:2]})
    with pytest.raises(LoadError, match="joined"):  # cannot even be cut
        load(model(), {**FILE, "joined": torch.zeros(2)}, edits={"value.weight": lambda tensor: tensor})


def test_missing_may_be_allowed_another_shape_never():
    file = {name: tensor for name, tensor in FILE.items() if name != "b"} | {"position": torch.zeros(5)}
    target = model()
    bias = target.dense.bias.clone()
    report = load(target, file, allow_missing=True, essential=lambda name: name == "position")
    assert torch.equal(target.dense.bias, bias)
    assert report.counts() == {"matched": 2, "missing": 1, "unused": 1, "training state": 2}
    with pytest.raises(LoadError, match="another shape"):
        load(model(), {**file, "b": torch.zeros(4)}, allow_missing=True)


def test_fresh_parameters_keep_their_values():
    file = {name: tensor for name, tensor in FILE.items() if name != "b"}
    target = model()
    bias = target.dense.bias.clone()
    report = load(target, file, fresh=lambda name: name == "dense.bias")
    assert torch.equal(target.dense.bias, bias)
    assert report.of("fresh") == [Row("dense.bias", "b", "fresh", (3,))]
    assert report.problems() == []


def test_parameters_without_a_slot_are_missing():
    report = match({"a": (1,)}, {}, {}, source="f")
    assert report.rows == [Row("a", None, "missing", (1,), None, True)]
    assert report.problems() == ["1 weight of the model is not in f: a (1)"]


def test_the_table_is_aligned_and_long_lists_are_cut():
    shapes = {f"layers.{i}.weight": (2,) for i in range(30)}
    slots = {name: Slot(f"layer_{i}") for i, name in enumerate(shapes)}
    available = {f"layer_{i}": (2,) for i in range(20)} | {"layer_29": (3,), "m": (1,)}
    report = match(shapes, slots, available, source="a.ckpt", training=lambda name: name == "m")
    report.notes.append("family bert")
    lines = str(report).splitlines()
    assert lines[0] == "a.ckpt: 20 matched, 9 missing, 1 mismatched, 1 training state"
    assert lines[1] == "note: family bert"
    assert sum(line.startswith("matched") for line in lines) == 13 and any("... 8 more" in line for line in lines)
    assert lines[-2].split() == ["mismatched!", "layers.29.weight", "(2)", "layer_29", "(3)"]
    assert lines[-1].split() == ["training", "state", "-", "m"]
    column = lines[2].index("model")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[2:])
    assert report.problems()[0].startswith("9 weights of the model are not in a.ckpt: layers.20.weight (2), ")
    assert report.problems()[0].endswith(" and 6 more")


def test_messages():
    with pytest.raises(ValueError, match=r"a row is matched, .*got 'lost'"):
        LoadReport("a.ckpt").of("lost")
    assert str(LoadReport("a.ckpt")).startswith("a.ckpt: nothing")


@pytest.mark.parametrize(("given", "expected"), [
    (None, torch.float32), ("float32", torch.float32), ("fp32", torch.float32), ("bfloat16", torch.bfloat16),
    ("bf16", torch.bfloat16), ("fp16", torch.float16), (torch.float64, torch.float64), ("float64", torch.float64),
])  # fmt: skip
def test_types_of_weights(given, expected):
    assert weights_dtype(given) == expected


@pytest.mark.parametrize("given", [torch.int8, torch.complex64, "double", "", 16, [torch.float32]])
def test_types_that_no_weight_has(given):
    with pytest.raises(
        InputError, match="dtype must be float32, bfloat16, float16 or float64, of torch or by name; got"
    ):
        weights_dtype(given)
