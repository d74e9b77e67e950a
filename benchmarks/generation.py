"""Generation with GPT-2 small's shape: danlu and transformers' `generate` in one run, greedy and beam search.

python benchmarks/generation.py [--json FILE] [--repetitions N] [--threads N] [--new-tokens N] [--cases 1x1,8x1,1x4,8x4]

124.4 M random weights, the same on both sides, prompts of 16 tokens, no end token. The peer runs `generate` as it is
and with cache_implementation="static", its own best. Methods alternate within each repetition, after a round that is
not counted; medians are reported, both ratios printed, and whether the tokens are the same. Ours is the copy that
`danlu.text.inference.for_inference` makes, with the kernels of danlu[fast] and, in one more column, without them.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from _machine import record, write
from danlu.text.beam_search import beam_search
from danlu.text.cached_steps import TransformerSteps
from danlu.text.config import TransformerConfig
from danlu.text.decoding import greedy
from danlu.text.inference import for_inference
from danlu.text.transformer import Transformer

PROMPT, VOCABULARY, DIM, LAYERS, HEADS = 16, 50257, 768, 12, 12
TARGETS = {("float32", 1, 1): 1.4}  # every other case: 2
PEERS = ("generate", "generate static")
OURS = ("danlu", "danlu without kernels")


def peer_model() -> GPT2LMHeadModel:
    """The peer in float32 with random weights, attention by SDPA."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa")).eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


def our_model(peer: GPT2LMHeadModel) -> Transformer:
    """A model of ours with the peer's weights."""
    config = TransformerConfig.of(
        "gpt2", vocab_size=VOCABULARY, hidden_size=DIM, num_layers=LAYERS, num_heads=HEADS, intermediate_size=4 * DIM,
        max_positions=1024, application="lm", pad_token_id=None,
    )  # fmt: skip
    given = peer.transformer.state_dict()
    weights = {"embeddings.token.weight": given["wte.weight"], "embeddings.position.weight": given["wpe.weight"]}
    pairs = {"attention.output": "attn.c_proj", "feed_forward.input": "mlp.c_fc", "feed_forward.output": "mlp.c_proj"}
    for i in range(LAYERS):
        ours, theirs = f"layers.{i}.", f"h.{i}."
        for kind, weight, bias in zip(
            ("query", "key", "value"),
            given[theirs + "attn.c_attn.weight"].T.split(DIM),
            given[theirs + "attn.c_attn.bias"].split(DIM),
            strict=True,
        ):
            weights |= {f"{ours}attention.{kind}.weight": weight, f"{ours}attention.{kind}.bias": bias}
        for name, other in pairs.items():
            weights[f"{ours}{name}.weight"] = given[f"{theirs}{other}.weight"].T
            weights[f"{ours}{name}.bias"] = given[f"{theirs}{other}.bias"]
        for name, other in {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}.items():
            weights |= {f"{ours}{name}.{part}": given[f"{theirs}{other}.{part}"] for part in ("weight", "bias")}
    weights |= {f"final_norm.{part}": given[f"ln_f.{part}"] for part in ("weight", "bias")}
    model = Transformer(config).eval()
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def written(method: str, peer: GPT2LMHeadModel, model: Transformer, prompts: torch.Tensor, beams: int, new: int):
    """Seconds and tokens of one method."""
    if method == "danlu without kernels":
        os.environ["DANLU_KERNELS"] = "off"
    begin = time.perf_counter()
    if method in PEERS:
        static = {"cache_implementation": "static"} if method == "generate static" else {}
        tokens = peer.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            num_beams=beams, **static,
        )[:, PROMPT:].tolist()  # fmt: skip
    else:
        steps = TransformerSteps(model, prompts, new)
        if beams == 1:
            tokens = greedy(steps, end_id=None, max_new_tokens=new).best()
        else:
            tokens = beam_search(steps, end_id=None, num_beams=beams, max_new_tokens=new).best()
    seconds = time.perf_counter() - begin
    os.environ.pop("DANLU_KERNELS", None)
    return seconds, tokens


def case(dtype: str, peer, model, batch: int, beams: int, new: int, repetitions: int) -> dict[str, object]:
    """One row of the table."""
    prompts = torch.randint(1, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
    times: dict[str, list[float]] = {method: [] for method in (*PEERS, *OURS)}
    tokens: dict[str, list[list[int]]] = {}
    for repetition in range(repetitions + 1):
        for method in times:
            seconds, tokens[method] = written(method, peer, model, prompts, beams, new)
            if repetition:
                times[method].append(seconds)
    medians = {method: statistics.median(values) for method, values in times.items()}
    return {
        "dtype": dtype, "batch": batch, "beams": beams, "ms_per_step": {m: 1e3 * s / new for m, s in medians.items()},
        "ratio": {m: {peer_method: medians[peer_method] / medians[m] for peer_method in PEERS} for m in OURS},
        "same_tokens": {m: tokens[m] == tokens["generate"] for m in OURS},
        "target": TARGETS.get((dtype, batch, beams), 2.0),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", "--out", type=Path, help="write the result here")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--cases", default="1x1,8x1,1x4,8x4", help="batch x beams, with commas between")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch", "transformers", "numba", "numpy"), options.threads)
    print(f"prompt {PROMPT}, {options.new_tokens} new tokens, {options.threads} threads; ms a step, median of "
          f"{options.repetitions}")  # fmt: skip
    layout = "{:<9}{:>6}{:>6}" + "{:>12}" * 4 + "{:>8}{:>9}{:>8}  {}"
    print(
        layout.format(
            "dtype", "batch", "beams", *PEERS[:1], "static", "danlu", "no kernels", "x", "x static", "target", "same"
        )
    )
    rows = []
    for dtype in options.dtypes.split(","):
        kind = getattr(torch, dtype)
        peer = peer_model()
        model = for_inference(our_model(peer), kind)
        peer = peer.to(kind)
        for name in options.cases.split(","):
            batch, beams = map(int, name.split("x"))
            row = case(dtype, peer, model, batch, beams, options.new_tokens, options.repetitions)
            rows.append(row)
            ms, ratio = row["ms_per_step"], row["ratio"]
            assert isinstance(ms, dict)
            assert isinstance(ratio, dict)
            numbers = [f"{ms[method]:.1f}" for method in (*PEERS, *OURS)]
            times = [f"{x:.2f}" for x in ratio["danlu"].values()]
            print(
                layout.format(dtype, batch, beams, *numbers, *times, f"{row['target']}", row["same_tokens"]), flush=True
            )
    result = head | {
        "setting": {"prompt": PROMPT, "new_tokens": options.new_tokens, "repetitions": options.repetitions},
        "rows": rows,
    }
    write(options.json, result)


if __name__ == "__main__":
    main()
