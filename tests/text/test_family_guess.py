"""The family told from names and shapes: real tensor lists, variants made of them, what nobody can tell, rubbish."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.text.config import TransformerConfig
from danlu.text.family_guess import guess
from danlu.text.tf_names import tf_names

BERT = {"vocab_size": 203, "hidden_size": 32, "num_layers": 2, "intermediate_size": 72, "segment_vocab_size": 2}
CASES = {  # case: (family or candidates, layout, sizes, heads), written down from the cases' config.json
    "bert": ("bert", "bert", {**BERT, "max_positions": 40}, ("pooler", "nsp", "mlm")),
    "bert_fp16": ("bert", "bert", {**BERT, "max_positions": 40}, ("mlm",)),
    "bert_nosegment": ("bert", "bert", {**BERT, "max_positions": 40, "segment_vocab_size": 0}, ("mlm",)),
    "roberta": ("bert", "bert", {**BERT, "max_positions": 40, "vocab_size": 193}, ("mlm",)),
    "nezha": (("nezha", "roformer"), "bert", BERT, ("pooler", "nsp", "mlm")),
    "roformer": (("nezha", "roformer"), "bert", BERT, ("pooler", "nsp", "mlm")),
    "roformer_v2": ("roformer_v2", "bert", BERT, ()),
    "electra": ("electra", "electra", {**BERT, "max_positions": 40, "embedding_size": 24}, ("discriminator",)),
    "gau_alpha": (
        "gau_alpha", "gau", {**BERT, "intermediate_size": 64, "num_layers": 4, "key_size": 16, "num_heads": 1}, (),
    ),
    "gpt": ("gpt", "gpt", {**BERT, "max_positions": 40}, ()),
    "gpt_nosegment": ("gpt", "gpt", {**BERT, "max_positions": 40, "segment_vocab_size": 0}, ()),
    "gpt2": ("gpt2", "gpt2", {**BERT, "max_positions": 40, "segment_vocab_size": 0}, ()),
}  # fmt: skip
T5 = {"vocab_size": 203, "hidden_size": 32, "num_layers": 2, "intermediate_size": 72, "num_heads": 4, "num_buckets": 32,
      "head_size": 10}  # fmt: skip
CASES |= {name.replace(".", "_"): (name, name, T5, ()) for name in ("t5.1.0", "t5.1.1", "mt5.1.1")}
ALBERT = {name: size for name, size in BERT.items() if name != "num_layers"}
CASES["albert"] = ("albert", "albert", {**ALBERT, "max_positions": 40, "embedding_size": 24}, ("pooler", "nsp", "mlm"))
NEWS = {name: size for name, size in BERT.items() if name != "segment_vocab_size"}
CASES["gpt2_ml"] = ("gpt2_ml", "newslm", {**NEWS, "max_positions": 40}, ())


def real(case):
    if "DANLU_DATA" not in os.environ:
        pytest.skip("DANLU_DATA names the folder with oracles/models")
    place = Path(os.environ["DANLU_DATA"]) / "oracles" / "models" / case / "case.json"
    return {name: tuple(entry["shape"]) for name, entry in json.loads(place.read_text())["checkpoint"].items()}


def made(family, heads=(), layout=None, hidden=64, **sizes):
    """Names with shapes that only say what the guess looks at."""
    config = TransformerConfig.of(
        family,
        **{"vocab_size": 9, "hidden_size": hidden, "num_layers": 2, "num_heads": 1, "intermediate_size": 12, **sizes},
    )
    return {slot.name: (hidden, hidden) for slot in tf_names(config, heads, layout).values()}


@pytest.mark.parametrize("case", CASES)
def test_cases(case):
    family, layout, sizes, heads = CASES[case]
    found = guess(real(case))
    candidates = (family,) if isinstance(family, str) else family
    assert (found.candidates, found.layout) == (candidates, layout)
    assert found.family == (family if isinstance(family, str) else None)
    assert found.sizes == sizes
    assert found.heads == heads
    assert found.assumed == {}  # 32 is no multiple of 64


def test_what_nobody_can_tell_is_said():
    reasons = " ".join(guess(real("roformer")).reasons)
    assert "family='nezha' or 'roformer'" in reasons and "no position table" in reasons


def test_head_sizes_follow_from_the_number_of_heads():
    found = guess(real("roformer_v2"))
    assert found.widths == {"query": 24, "value": 32}
    assert found.head_sizes(4) == {"key_size": 6}
    assert found.head_sizes(5) == {}  # 24 and 32 are no multiples of it
    assert guess(real("t5_1_0")).head_sizes(2) == {"head_size": 20}
    assert guess(real("bert")).head_sizes(4) == {}


def test_electra_s_parts():
    both = made("electra", ["discriminator"]) | made("electra", ["mlm"])
    assert (guess(both).layout, guess(both).heads) == ("electra", ("discriminator",))
    assert any("other part" in reason for reason in guess(both).reasons)
    second = guess(both, "generator")
    assert (second.layout, second.family, second.heads) == ("generator", "electra", ("mlm",))
    alone = guess(made("electra", ["mlm"]))
    assert (alone.layout, alone.heads) == ("generator", ("mlm",))
    assert not any("other part" in reason for reason in alone.reasons)
    assert guess(made("electra"), "generator").layout is None


def test_openai_s_gpt2():
    shapes = made("gpt2", layout="openai")
    shapes |= {"model/wte": (50, 128), "model/wpe": (10, 128)}
    for i in range(2):
        shapes |= {f"model/h{i}/attn/c_attn/w": (1, 128, 384), f"model/h{i}/mlp/c_fc/w": (1, 128, 512)}
    found = guess(shapes)
    assert (found.family, found.layout) == ("gpt2", "openai")
    assert found.sizes == {
        "vocab_size": 50, "hidden_size": 128, "num_layers": 2, "intermediate_size": 512, "max_positions": 10
    }  # fmt: skip
    assert found.assumed == {"num_heads": 2} and found.head_sizes(2) == {}


def test_the_usual_number_of_heads_is_an_assumption():
    shapes = made("bert") | {"bert/encoder/layer_0/attention/self/query/kernel": (768, 768)}
    found = guess(shapes)
    assert found.assumed == {"num_heads": 12} and "num_heads" not in found.sizes
    assert any("assumed" in reason for reason in found.reasons)


def test_heads_need_all_their_weights():
    shapes = made("bert", ["pooler", "nsp", "mlm"])
    assert guess(shapes).heads == ("pooler", "nsp", "mlm")
    for lost, heads in (
        ("cls/predictions/output_bias", ("pooler", "nsp")),
        ("cls/predictions/transform/dense/kernel", ("pooler", "nsp")),
        ("cls/seq_relationship/output_bias", ("pooler", "mlm")),
        ("bert/pooler/dense/kernel", ("mlm",)),
    ):
        assert guess({name: shape for name, shape in shapes.items() if name != lost}).heads == heads


def test_layers_are_counted_up_to_the_first_gap():
    shapes = made("bert", num_layers=5)
    del shapes["bert/encoder/layer_3/attention/self/query/kernel"]
    assert guess(shapes).sizes["num_layers"] == 3
    assert guess(made("t5.1.1", num_layers=3, num_decoder_layers=2)).sizes["num_decoder_layers"] == 2


def test_mixtures_are_no_family():
    shapes = made("bert")
    without_norms = {name: shape for name, shape in shapes.items() if "LayerNorm" not in name}
    found = guess(without_norms)
    assert (found.family, found.candidates, found.layout) == (None, (), "bert")
    assert "no family has this mixture" in found.reasons
    bare = {name: shape for name, shape in made("roformer").items() if not name.endswith("bias")}  # norms, no biases
    assert guess(bare).candidates == ()


NAMES = sorted(
    {name for family in ("bert", "gau_alpha", "gpt2", "t5.1.1", "electra") for name in made(family, hidden=4)}
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.integers(0, 9), max_size=4).map(tuple)))
def test_no_names_and_shapes_make_it_fail(shapes):
    found = guess(shapes)
    assert all(isinstance(size, int) for size in found.sizes.values())
    assert found.reasons


def test_nothing_known():
    found = guess({"dense/kernel": (2, 2)})
    assert (found.family, found.layout, found.sizes, found.heads) == (None, None, {}, ())
