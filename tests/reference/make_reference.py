#!/usr/bin/env python3
"""Losses and gradients of small decoders, encoders, classifiers, encoder-decoders and vision models, computed by PyTorch: the reference values of Choir's tests.

The model is written from the papers on PyTorch's own functions (F.scaled_dot_product_attention, F.layer_norm,
F.rms_norm, F.gelu, torch.optim) and shares no formula with Choir. Everything stored is computed in float64 from
weights that are exact in float32. README.md in this folder describes the HDF5 files.

    python make_reference.py [CASE ...]
"""

import pathlib
import sys
import typing

import h5py
import numpy as np
import torch
import torch.nn.functional as F
import yaml

# Each case is the `model` and `train` sections of a Choir configuration, with every key that matters.
# Together they use every value of position, feed_forward.kind, norm.kind, tied and bias, and uneven sizes.
CASES = {
    # A small GPT-2 (Radford et al. 2019).
    "gpt": """\
model:
  family: decoder
  layers: 2
  width: 32
  vocabulary: 64
  context: 16
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 4, kv_heads: 4, head_width: 8, position: learned, window: 0}
  feed_forward: {kind: gelu, width: 80}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # A small Llama (Touvron et al. 2023), with shared key/value heads (Ainslie et al. 2023) and an odd vocabulary.
    "llama": """\
model:
  family: decoder
  layers: 2
  width: 36
  vocabulary: 101
  context: 24
  tied: false
  bias: false
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: rotary, rotary_base: 10000, window: 0}
  feed_forward: {kind: swiglu, width: 56}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 2}
""",
    # A head count that two ranks cannot split evenly; one target in three is ignored.
    "five_heads": """\
model:
  family: decoder
  layers: 2
  width: 40
  vocabulary: 53
  context: 16
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 5, kv_heads: 5, head_width: 8, position: rotary, rotary_base: 100, window: 0}
  feed_forward: {kind: gelu, width: 72}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # Sliding window (Beltagy et al. 2020); heads wider than width / heads; RMS norm and linear layers with biases.
    "window": """\
model:
  family: decoder
  layers: 2
  width: 24
  vocabulary: 67
  context: 24
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 4, kv_heads: 2, head_width: 10, position: rotary, rotary_base: 10000, window: 5}
  feed_forward: {kind: swiglu, width: 40}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 2}
""",
    # The exact GELU; layer norm without bias; an epsilon large enough to affect the results.
    "gelu_erf": """\
model:
  family: decoder
  layers: 2
  width: 24
  vocabulary: 59
  context: 16
  tied: false
  bias: false
  dropout: 0
  attention: {heads: 3, kv_heads: 3, head_width: 8, position: learned, window: 0}
  feed_forward: {kind: gelu_erf, width: 64}
  norm: {kind: layer_norm, epsilon: 1.0e-2}
train: {batch: 3}
""",
    # No positions except through the causal mask; one key/value head for all (Shazeer 2019); a window.
    "no_positions": """\
model:
  family: decoder
  layers: 2
  width: 21
  vocabulary: 37
  context: 20
  tied: false
  bias: true
  dropout: 0
  attention: {heads: 3, kv_heads: 1, head_width: 7, position: none, window: 7}
  feed_forward: {kind: gelu, width: 33}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 2}
""",
    # A small BERT (Devlin et al. 2018) with norms first: tokens see both sides, and a few hidden ones are the targets.
    # It is what torch.nn.TransformerEncoderLayer can do, which computes it too.
    "encoder": """\
model:
  family: encoder
  layers: 2
  width: 40
  vocabulary: 53
  context: 16
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 5, kv_heads: 5, head_width: 8, position: learned, window: 0}
  feed_forward: {kind: gelu_erf, width: 72}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 4}
""",
    # An encoder of Llama's parts that sees three tokens on either side.
    "encoder_window": """\
model:
  family: encoder
  layers: 2
  width: 36
  vocabulary: 61
  context: 20
  tied: false
  bias: false
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: rotary, rotary_base: 10000, window: 4}
  feed_forward: {kind: swiglu, width: 56}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # A small ViT (Dosovitskiy et al. 2020) of images that are not square, with two values a pixel; the class is told from
    # the mean. The stem is a convolution.
    "vision": """\
model:
  family: vision
  layers: 2
  width: 40
  image: {height: 8, width: 12, channels: 2, patch: 4}
  classes: 7
  pool: mean
  context: 6
  bias: true
  dropout: 0
  attention: {heads: 5, kv_heads: 5, head_width: 8, position: learned, window: 0}
  feed_forward: {kind: gelu_erf, width: 72}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 4}
""",
    # The same of Llama's parts, with a class token.
    "class_token": """\
model:
  family: vision
  layers: 2
  width: 24
  image: {height: 6, width: 6, channels: 3, patch: 2}
  classes: 5
  pool: class_token
  context: 10
  bias: false
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 4, position: learned, window: 0}
  feed_forward: {kind: swiglu, width: 40}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # What attention may do to its scores: a soft cap (Gemma 2), norms of q and k (Qwen 3), a window.
    "soft_cap": """\
model:
  family: decoder
  layers: 2
  width: 36
  vocabulary: 61
  context: 20
  tied: false
  bias: false
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: rotary, rotary_base: 10000, window: 7, soft_cap: 2, \
norm: true}
  feed_forward: {kind: swiglu, width: 56}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # ALiBi (Press et al. 2021) with a number of heads that is not a power of two; sinks (gpt-oss); a prefix that sees
    # itself (Raffel et al. 2019).
    "alibi": """\
model:
  family: decoder
  layers: 2
  width: 40
  vocabulary: 53
  context: 16
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 5, kv_heads: 5, head_width: 8, position: alibi, window: 0, sinks: true, prefix: 4}
  feed_forward: {kind: gelu, width: 72}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # Sequences of several documents.
    "documents": """\
model:
  family: decoder
  layers: 2
  width: 24
  vocabulary: 59
  context: 18
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 3, kv_heads: 3, head_width: 8, position: learned, window: 0, documents: separate}
  feed_forward: {kind: gelu, width: 64}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    "encoder_documents": """\
model:
  family: encoder
  layers: 2
  width: 36
  vocabulary: 61
  context: 20
  tied: false
  bias: false
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: rotary, rotary_base: 10000, window: 0, \
documents: separate}
  feed_forward: {kind: swiglu, width: 56}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # A small BART (Lewis et al. 2019) with norms first and sources of several lengths. It is what
    # torch.nn.TransformerEncoderLayer and TransformerDecoderLayer can do, which compute it too.
    "encoder_decoder": """\
model:
  family: encoder_decoder
  layers: 1
  encoder_layers: 2
  width: 40
  vocabulary: 53
  context: 12
  source_context: 16
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 5, kv_heads: 5, head_width: 8, position: learned, window: 0}
  feed_forward: {kind: gelu_erf, width: 72}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 4}
""",
    # The same of Llama's parts, with norms of q and k and sinks; the encoder sees three tokens on either side, the decoder the last
    # four of its own.
    "encoder_decoder_window": """\
model:
  family: encoder_decoder
  layers: 2
  encoder_layers: 1
  width: 36
  vocabulary: 61
  context: 14
  source_context: 9
  tied: false
  bias: false
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: rotary, rotary_base: 10000, window: 4, norm: true, sinks: true}
  feed_forward: {kind: swiglu, width: 56}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
}
CASES |= {
    # A classifier of texts of 2 to 16 tokens, filled up: torch.nn.TransformerEncoderLayer with src_key_padding_mask gives
    # the same.
    "classifier": """\
model:
  family: classifier
  layers: 2
  width: 40
  vocabulary: 53
  classes: 4
  pool: mean
  context: 16
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 5, kv_heads: 5, head_width: 8, position: learned, window: 0}
  feed_forward: {kind: gelu_erf, width: 72}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 4}
""",
    # Positions by row and column, learned; and rotary, behind a stem of two convolutions.
    "learned_2d": """\
model:
  family: vision
  layers: 2
  width: 40
  image: {height: 6, width: 8, channels: 2, patch: 2}
  classes: 7
  pool: class_token
  context: 13
  bias: true
  dropout: 0
  attention: {heads: 5, kv_heads: 5, head_width: 8, position: learned_2d, window: 0}
  feed_forward: {kind: gelu, width: 72}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 4}
""",
    "convolution": """\
model:
  family: vision
  layers: 2
  width: 36
  image: {height: 12, width: 16, channels: 3, patch: 4, stem: convolution}
  classes: 5
  pool: mean
  context: 12
  bias: true
  dropout: 0
  attention: {heads: 3, kv_heads: 3, head_width: 12, position: rotary_2d, rotary_base: 100, window: 0}
  feed_forward: {kind: swiglu, width: 56}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # Each token has one head and two of the five others (a mixture of heads: Jin et al. 2024); some find no room.
    "chosen_heads": """\
model:
  family: decoder
  layers: 2
  width: 36
  vocabulary: 61
  context: 16
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: rotary, rotary_base: 10000, window: 9, \
routing: {chosen: 2, always: 1, capacity: 1.1, balance_weight: 0.1}}
  feed_forward: {kind: swiglu, width: 56}
  norm: {kind: rms_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # Gated linear attention (Yang et al. 2023) of separate documents, longer than a chunk; the second of three blocks has
    # softmax. The first output of a document is v times a number, of which the norm leaves little but the sign: the epsilon
    # keeps it smooth.
    "linear": """\
model:
  family: decoder
  layers: 3
  width: 30
  vocabulary: 61
  context: 72
  tied: false
  bias: false
  dropout: 0
  attention: {kind: linear, softmax_every: 2, heads: 5, kv_heads: 5, head_width: 6, position: rotary, \
rotary_base: 10000, window: 0, norm: true, documents: separate}
  feed_forward: {kind: swiglu, width: 40}
  norm: {kind: rms_norm, epsilon: 0.25}
train: {batch: 2}
""",
    # A decoder whose tokens compare themselves with each other and read the source at the places that they find.
    "aligned_sources": """\
model:
  family: encoder_decoder
  layers: 2
  encoder_layers: 1
  width: 30
  vocabulary: 53
  context: 11
  source_context: 11
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: rotary, rotary_base: 100, window: 0, norm: true, \
sources: {queries: target, keys: target, values: source}}
  feed_forward: {kind: gelu, width: 56}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # The gated delta rule (Yang et al. 2024) in all blocks, of separate documents, longer than a chunk.
    "delta": """\
model:
  family: decoder
  layers: 2
  width: 24
  vocabulary: 53
  context: 72
  tied: true
  bias: true
  dropout: 0
  attention: {kind: delta, heads: 3, kv_heads: 3, head_width: 8, position: rotary, rotary_base: 10000, window: 0, \
documents: separate}
  feed_forward: {kind: gelu, width: 40}
  norm: {kind: layer_norm, epsilon: 0.25}
train: {batch: 2}
""",
    # Gated linear attention to both sides, in encoders.
    "linear_encoder": """\
model:
  family: encoder
  layers: 2
  width: 30
  vocabulary: 61
  context: 72
  tied: true
  bias: true
  dropout: 0
  attention: {kind: linear, softmax_every: 2, heads: 5, kv_heads: 5, head_width: 6, position: rotary, \
rotary_base: 10000, window: 0, documents: separate}
  feed_forward: {kind: gelu, width: 40}
  norm: {kind: layer_norm, epsilon: 0.25}
train: {batch: 2}
""",
    "linear_pairs": """\
model:
  family: encoder_decoder
  layers: 1
  encoder_layers: 2
  width: 30
  vocabulary: 53
  context: 9
  source_context: 14
  tied: true
  bias: true
  dropout: 0
  attention: {kind: linear, heads: 5, kv_heads: 5, head_width: 6, position: learned, window: 0, norm: true}
  feed_forward: {kind: gelu, width: 40}
  norm: {kind: layer_norm, epsilon: 0.25}
train: {batch: 3}
""",
    # A decoder that compares itself with one source and reads another one.
    "two_sources": """\
model:
  family: encoder_decoder
  layers: 2
  encoder_layers: 1
  width: 30
  vocabulary: 53
  context: 9
  source_context: 11
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: learned, window: 0, norm: true, \
sources: {queries: target, keys: source, values: second_source}}
  feed_forward: {kind: gelu, width: 56}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # Tokens of an encoder and of a decoder choose heads of self-attention, and experts (Shazeer et al. 2017) beside one that
    # all have; some find no room.
    "chosen_pairs": """\
model:
  family: encoder_decoder
  layers: 1
  encoder_layers: 1
  width: 30
  vocabulary: 53
  context: 10
  source_context: 14
  tied: true
  bias: true
  dropout: 0
  attention: {heads: 6, kv_heads: 2, head_width: 6, position: rotary, rotary_base: 100, window: 0, \
routing: {chosen: 2, always: 1, capacity: 1.1, balance_weight: 0.1}}
  feed_forward: {kind: swiglu, width: 33}
  experts: {count: 4, chosen: 2, capacity: 1.1, shared: 1, balance_weight: 0.1, every: 1}
  norm: {kind: layer_norm, epsilon: 1.0e-5}
train: {batch: 3}
""",
    # The gated delta rule to both sides.
    "delta_encoder": """\
model:
  family: encoder
  layers: 2
  width: 24
  vocabulary: 53
  context: 72
  tied: true
  bias: true
  dropout: 0
  attention: {kind: delta, softmax_every: 2, heads: 5, kv_heads: 5, head_width: 6, position: rotary, \
rotary_base: 10000, window: 0, documents: separate}
  feed_forward: {kind: gelu, width: 32}
  norm: {kind: layer_norm, epsilon: 0.25}
train: {batch: 2}
""",
}
IGNORED_TARGETS = {"five_heads", "encoder_decoder"}

class Tokens(typing.NamedTuple):
    """Ids [B, T], or pixels, and for each position of a sequence the position at which its document begins [B, T]: 0 where sequences are one document.
    Of an encoder-decoder the ids of the source [B, texts, S], and -1 behind the end of each text."""
    ids: torch.Tensor
    begins: torch.Tensor
    source: torch.Tensor | None = None


STEPS = 5
# Each completes the configuration. SGD has no decay: PyTorch's decay is not decoupled, Choir's is.
OPTIMIZERS = {
    "adamw": """\
optimizer: {kind: adamw, rate: 1.0e-3, schedule: constant, warmup: 0, betas: [0.9, 0.95], epsilon: 1.0e-8, \
weight_decay: 0.1, clip: 0}
""",
    "sgd": """\
optimizer: {kind: sgd, rate: 2.0e-2, schedule: constant, warmup: 0, momentum: 0.9, weight_decay: 0, clip: 0}
""",
}


def is_convolved(model):
    return model["family"] == "vision" and model["image"].get("stem") == "convolution"


def convolution_channels(model):
    """Doubled by each convolution, up to the model's width."""
    squares = model["image"]["patch"] // 2
    return [] if not squares else [model["width"] * 2 ** n // squares for n in range(int(np.log2(squares)) + 1)]


def places(model):
    """Row and column [T] of each square; a class token stands before the first row and column."""
    image, token = model["image"], int(model["pool"] == "class_token")
    square = torch.arange(image["height"] * image["width"] // image["patch"] ** 2)
    columns = image["width"] // image["patch"]
    return tuple(F.pad(at + token, (token, 0)) for at in (square // columns, square % columns))


def is_linear(model, name):
    """Has the attention named `name` a state?"""
    attention, block = model["attention"], int(name.split(".")[-2])
    every = attention.get("softmax_every", 0)
    has_softmax = name.endswith("cross_attention") or (every and (block + 1) % every == 0)
    return attention.get("kind") in ("linear", "delta") and not has_softmax


def has_experts(model, name):
    """Has the block of the layer named `name` experts?"""
    return "experts" in model and (int(name.split(".")[-2]) + 1) % model["experts"]["every"] == 0


def streams_of_memory(model):
    """Those that an encoder-decoder's decoder reads, in the order of their texts."""
    read = model["attention"].get("sources", {}).values()
    return ["source"] + ["second_source"] * ("second_source" in read)


def shapes(model):
    """Every parameter's name and shape. Weights of linear layers are [out, in]."""
    attention, feed_forward = model["attention"], model["feed_forward"]
    width, hidden = model["width"], feed_forward["width"]
    q_width = attention["heads"] * attention["head_width"]
    kv_width = attention["kv_heads"] * attention["head_width"]

    found = {}

    def linear(name, outputs, inputs):
        found[f"{name}.weight"] = (outputs, inputs)
        if model["bias"]:
            found[f"{name}.bias"] = (outputs,)

    def norm(name):
        found[f"{name}.weight"] = (width,)
        if model["bias"] and model["norm"]["kind"] == "layer_norm":
            found[f"{name}.bias"] = (width,)

    if is_convolved(model):
        inputs = model["image"]["channels"]
        for n, outputs in enumerate(convolution_channels(model)):
            found[f"embedding.convolution.{n}.weight"] = (outputs, 9 * inputs)
            if model["bias"]:
                found[f"embedding.convolution.{n}.bias"] = (outputs,)
            inputs = outputs
        found["embedding.patch.weight"] = (inputs, width)
    elif model["family"] == "vision":
        found["embedding.patch.weight"] = (model["image"]["channels"] * model["image"]["patch"] ** 2, width)
    else:
        found["embedding.token.weight"] = (model["vocabulary"], width)
    if attention["position"] == "learned":
        found["embedding.position.weight"] = (model["context"], width)
    if attention["position"] == "learned_2d":
        rows, columns = (int(at.max()) + 1 for at in places(model))
        found["embedding.position.row.weight"] = (rows, width)
        found["embedding.position.column.weight"] = (columns, width)

    def attend(name):
        norm(f"{name}_norm")
        linear(f"{name}.q", q_width, width)
        linear(f"{name}.k", kv_width, width)
        linear(f"{name}.v", kv_width, width)
        linear(f"{name}.out", width, q_width)
        if attention.get("norm"):
            found[f"{name}.q_norm.weight"] = (attention["head_width"],)
            found[f"{name}.k_norm.weight"] = (attention["head_width"],)
        if attention.get("sinks"):
            found[f"{name}.sinks"] = (attention["heads"],)
        routing = attention.get("routing")
        if routing and not name.endswith("cross_attention"):
            found[f"{name}.router.weight"] = (attention["heads"] - routing["always"], width)
        if is_linear(model, name):
            found[f"{name}.decay.weight"] = (attention["heads"], width)
            found[f"{name}.decay.bias"] = (attention["heads"],)
            if attention["kind"] == "delta":
                found[f"{name}.rate.weight"] = (attention["heads"], width)
                found[f"{name}.rate.bias"] = (attention["heads"],)
            found[f"{name}.out_norm.weight"] = (attention["head_width"],)

    def feed(name):
        norm(f"{name}_norm")
        parts = ["gate", "up", "down"] if feed_forward["kind"] == "swiglu" else ["up", "down"]
        if not has_experts(model, name):
            for part in parts:
                linear(f"{name}.{part}", *((width, hidden) if part == "down" else (hidden, width)))
            return
        experts = model["experts"]
        found[f"{name}.router.weight"] = (experts["count"], width)
        for part in parts:
            all_have = hidden * experts["shared"]
            linear(f"{name}.shared.{part}", *((width, all_have) if part == "down" else (all_have, width)))
        for i in range(experts["count"]):
            for part in parts:
                found[f"{name}.experts.{i}.{part}.weight"] = (width, hidden) if part == "down" else (hidden, width)

    if model["family"] == "encoder_decoder":
        if len(streams_of_memory(model)) == 2:
            found["encoder.embedding.text.weight"] = (2, width)
        if attention["position"] == "learned":
            found["encoder.embedding.position.weight"] = (model["source_context"], width)
        for i in range(model["encoder_layers"]):
            attend(f"encoder.blocks.{i}.attention")
            feed(f"encoder.blocks.{i}.feed_forward")
        norm("encoder.final_norm")
    for i in range(model["layers"]):
        attend(f"blocks.{i}.attention")
        if model["family"] == "encoder_decoder":
            attend(f"blocks.{i}.cross_attention")
        feed(f"blocks.{i}.feed_forward")
    norm("final_norm")
    if not model.get("tied") or "classes" in model:
        found["head.weight"] = (model.get("classes") or model["vocabulary"], width)
    return found


def initial_weights(model, generator):
    """Random values, exact in float32, large enough that no term of any formula is negligible."""
    weights = {}
    for name, shape in shapes(model).items():
        z = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("norm.weight"):
            w = 1 + 0.25 * z
        elif name.endswith(".bias"):
            w = 0.2 * z
        elif name.endswith(".sinks"):
            w = z
        elif "embedding" in name:
            w = 0.4 * z
        else:
            w = z / shape[1] ** 0.5
        weights[name] = w.to(torch.float32).to(torch.float64)
    return weights


def rotate(x, positions, base):
    """Rotary positions (Su et al. 2021) on x [B, heads, T, E], positions [B, T]: features i and i + E/2 are one complex
    number. With a pair of positions, row and column, half of the pairs turn by each."""
    if isinstance(positions, tuple):
        quarter = x.shape[-1] // 4
        parts = x.split(quarter, dim=-1)
        turned = [rotate(torch.cat(parts[n::2], dim=-1), positions[n][None], base).split(quarter, dim=-1) for n in (0, 1)]
        return torch.cat([turned[0][0], turned[1][0], turned[0][1], turned[1][1]], dim=-1)
    width = x.shape[-1]
    frequency = base ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    angle = positions.to(x.dtype)[:, None, :, None] * frequency
    turned = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def visible(model, begins):
    """[B, 1, T, T]: may position i read position j? `window` - 1 positions before it, or all if 0; an encoder also
    behind; the positions of the prefix each other; and only in its document."""
    window = model["attention"]["window"] or model["context"]
    i, j = torch.arange(model["context"])[:, None], torch.arange(model["context"])[None, :]
    prefix = model["attention"].get("prefix", 0)
    seen = ((j - i).abs() < window) & ((j <= i) | torch.tensor(not model["family"].endswith("decoder")))
    seen = seen | ((i < prefix) & (j < prefix))
    if model["family"] == "classifier":  # a key padding mask
        return (seen & (begins == 0)[:, None, :])[:, None]
    return (seen & (begins[:, :, None] == begins[:, None, :]))[:, None]


def visible_source(model, source):
    """[B, 1, S, S]: may position i of a source read position j? Both directions; padding only itself."""
    window = model["attention"]["window"] or model["source_context"]
    i, j = torch.arange(source.shape[1])[:, None], torch.arange(source.shape[1])[None, :]
    text = source >= 0
    return (((j - i).abs() < window) & (text[:, :, None] == text[:, None, :]))[:, None]


def alibi_slopes(heads):
    """As in the code of Press et al. 2021: powers of 2 by their formula, others by halves of the next power."""
    power = 2 ** int(np.floor(np.log2(heads)))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    return slopes if power == heads else slopes + alibi_slopes(2 * power)[0::2][: heads - power]


def mix(attention, q, k, v, seen, sinks):
    """Attention of q, k, v [B, heads, T, E] with what PyTorch's own function lacks: a soft cap and sinks."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if attention.get("soft_cap"):
        scores = attention["soft_cap"] * torch.tanh(scores / attention["soft_cap"])
    if attention["position"] == "alibi":
        at = torch.arange(q.shape[2])
        slopes = torch.tensor(alibi_slopes(q.shape[1]), dtype=q.dtype)
        scores = scores - slopes[:, None, None] * (at[:, None] - at[None, :]).abs()
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    return torch.softmax(scores, dim=-1)[..., : k.shape[2]] @ v


class Choices:
    """The heads and experts that tokens choose, by layer: those of `given`, if it has them. And the sum of the layers'
    balance losses."""
    def __init__(self, given=None):
        self.given, self.of_layers, self.balance = given, {}, 0.0


def choose(config, name, scores, choices):
    """By scores [B, T, heads or experts]: which a token has chosen, and of those which compute it, since fewer than
    `capacity` earlier tokens of the sequence have chosen them. Each booleans of the same shape."""
    length = scores.shape[1]
    chosen = choices.given.of_layers[name] if choices.given else torch.zeros_like(scores, dtype=torch.bool).scatter(
        -1, scores.topk(config["chosen"], dim=-1).indices, True)
    choices.of_layers[name] = chosen
    share = chosen.sum(1) / (config["chosen"] * length)
    mean = torch.softmax(scores, dim=-1).mean(1)
    choices.balance = choices.balance + config["balance_weight"] * scores.shape[-1] * (share * mean).sum(-1).mean()
    capacity = int(np.ceil(config["capacity"] * config["chosen"] * length / scores.shape[-1] - 1e-9))
    return chosen, chosen & (chosen.cumsum(1) <= capacity)


def shares(scores, chosen, computed):
    """The softmax over the scores of what is chosen; 0 of what does not compute."""
    return torch.softmax(scores.masked_fill(~chosen, -torch.inf), dim=-1) * computed


def gates(model, name, scores, choices):
    """[B, T, heads], by scores [B, T, heads that are routed]: 1 of heads that are always on; of those chosen their share
    times their number."""
    routing = model["attention"]["routing"]
    gate = routing["chosen"] * shares(scores, *choose(routing, name, scores, choices))
    return torch.cat([torch.ones_like(gate[..., : routing["always"]]), gate], dim=-1)


def recur(q, k, v, gate, rate, begins, both_sides):
    """Gated linear attention of q, k, v [B, heads, T, E] and gates [B, heads, T], token by token. A document begins with
    a state of zeros. With rates of the same shape, by the delta rule: q and k at unit length, and a token adds the
    difference between its value and what the decayed state holds at its key. To both sides, a second state of the tokens
    behind decays on the way from t to t - 1."""
    zeros, outputs = torch.zeros_like(q[:, :, 0, :, None] * v[:, :, 0, None, :]), []
    length, decay = q.shape[2], torch.sigmoid(gate) ** (1 / 16)
    if rate is not None:
        q, k = (x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    kept = [(decay[:, :, t] * (begins[:, t] != t)[:, None])[..., None, None] for t in range(length)]

    def added(t, state, decayed):  # decayed: by what the state is before the key reads it
        value = v[:, :, t, None, :]
        if rate is not None:
            value = torch.sigmoid(rate[:, :, t])[..., None, None] * (value - k[:, :, t, None, :] @ (decayed * state))
        return k[:, :, t, :, None] * value

    before, behind = [zeros], [zeros]
    for t in range(length):
        before.append(kept[t] * before[-1] + added(t, before[-1], kept[t]))
    for t in reversed(range(length)) if both_sides else ():
        behind.append(kept[t] * (behind[-1] + added(t, behind[-1], 1)))
    for t in range(length):
        state = before[t + 1] + (behind[length - 1 - t] if both_sides else 0)
        outputs.append((q[:, :, t, None, :] @ state)[:, :, 0] / (1 if rate is not None else q.shape[-1] ** 0.5))
    return torch.stack(outputs, dim=2)


def embed(model, w, inputs):
    """[B, T] token ids, or pixels [B, C, height, width] from 0 to 255, to [B, T, D]."""
    if model["family"] != "vision":
        return F.embedding(inputs, w["embedding.token.weight"])
    table, image = w["embedding.patch.weight"], model["image"]
    x, side = inputs.to(table.dtype) / 127.5 - 1, image["patch"]
    if is_convolved(model):  # a weight's columns are pixels of the square, then channels
        for n in range(len(convolution_channels(model))):
            kernel = w[f"embedding.convolution.{n}.weight"].unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
            x = F.conv2d(x, kernel, w.get(f"embedding.convolution.{n}.bias"), stride=2, padding=1)
            x = F.gelu(x, approximate="tanh")
        side = 1
    x = F.conv2d(x, table.T.reshape(-1, x.shape[1], side, side), stride=side).flatten(2).transpose(1, 2)
    return F.pad(x, (0, 0, 1, 0)) if model["pool"] == "class_token" else x


def logits(model, w, tokens, choices=None):
    """embed() to [B, T, V], of images to [B, classes]: pre-norm blocks x += attention(norm(x)), x += feed_forward(norm(x))."""
    attention, kind = model["attention"], model["feed_forward"]["kind"]
    choices = choices or Choices()
    batch, length = len(tokens.ids), model["context"]
    causal = visible(model, tokens.begins)
    positions = torch.arange(length)[None, :] - (0 if model["family"] == "classifier" else tokens.begins)

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name, x):
        weight, epsilon = w[f"{name}.weight"], model["norm"]["epsilon"]
        if model["norm"]["kind"] == "rms_norm":
            return F.rms_norm(x, weight.shape, weight, epsilon)
        return F.layer_norm(x, weight.shape, weight, w.get(f"{name}.bias"), epsilon)

    def split_heads(x):  # [B, T, heads * E] to [B, heads, T, E]
        return x.view(batch, x.shape[1], -1, attention["head_width"]).transpose(1, 2)

    def attend(name, x, keys, values, mask, at, begins=None):
        """The tokens of x compare themselves with keys and read values, which may be x; `at`: positions, or None;
        `begins`: of their documents, for linear attention."""
        q, k, v = (split_heads(linear(f"{name}.{part}", of)) for part, of in zip("qkv", (x, keys, values)))
        if attention.get("norm"):
            q, k = (F.rms_norm(x, x.shape[-1:], w[f"{name}.{part}_norm.weight"], model["norm"]["epsilon"])
                    for part, x in (("q", q), ("k", k)))
        if attention["position"] in ("rotary", "rotary_2d") and at is not None:
            q, k = (rotate(x, at, attention["rotary_base"]) for x in (q, k))
        if is_linear(model, name):
            gate, rate = (F.linear(x, w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"]).transpose(1, 2)
                          if f"{name}.{part}.weight" in w else None for part in ("decay", "rate"))
            both_sides = name.startswith("encoder.") or not model["family"].endswith("decoder")
            y = recur(q, k, v, gate, rate, begins, both_sides)
            y = F.rms_norm(y, y.shape[-1:], w[f"{name}.out_norm.weight"], model["norm"]["epsilon"])
        elif attention.get("soft_cap") or attention.get("sinks") or attention["position"] == "alibi":
            y = mix(attention, q, k, v, mask, w.get(f"{name}.sinks"))
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        if f"{name}.router.weight" in w:
            scores = F.linear(x, w[f"{name}.router.weight"])
            y = y * gates(model, name, scores, choices).transpose(1, 2)[..., None]
        return linear(f"{name}.out", y.transpose(1, 2).reshape(batch, x.shape[1], -1))

    def feed_forward(name, x):
        if f"{name}.router.weight" in w:
            scores = F.linear(x, w[f"{name}.router.weight"])
            share = shares(scores, *choose(model["experts"], name, scores, choices))
            return feed_forward(f"{name}.shared", x) + sum(
                share[..., i, None] * feed_forward(f"{name}.experts.{i}", x) for i in range(share.shape[-1]))
        up = linear(f"{name}.up", x)
        if kind == "swiglu":
            y = F.silu(linear(f"{name}.gate", x)) * up
        else:
            y = F.gelu(up, approximate="tanh" if kind == "gelu" else "none")
        return linear(f"{name}.down", y)

    def attend_to_self(name, x, mask, at, begins):
        normed = norm(f"{name}_norm", x)
        return x + attend(name, normed, normed, normed, mask, at, begins)

    if model["family"] == "encoder_decoder":
        at = torch.arange(model["source_context"])[None, :].expand(batch, -1)
        memory = {}
        for n, stream in enumerate(streams_of_memory(model)):
            ids = tokens.source[:, n]
            y = embed(model, w, ids.clamp(min=0)) * (ids >= 0)[..., None]
            if len(streams_of_memory(model)) == 2:
                y = y + w["encoder.embedding.text.weight"][n]
            if attention["position"] == "learned":
                y = y + F.embedding(at, w["encoder.embedding.position.weight"])
            begins = torch.where(ids >= 0, 0, (ids >= 0).sum(1, keepdim=True))  # what fills up is another document
            for i in range(model["encoder_layers"]):
                name = f"encoder.blocks.{i}"
                y = attend_to_self(f"{name}.attention", y, visible_source(model, ids), at, begins)
                y = y + feed_forward(f"{name}.feed_forward", norm(f"{name}.feed_forward_norm", y))
            memory[stream] = norm("encoder.final_norm", y)
        text = (tokens.source >= 0).all(1)[:, None, None, :].expand(-1, -1, length, -1)
        sources = attention.get("sources", {"keys": "source", "values": "source"})
        is_aligned = "target" in (sources["keys"], sources["values"])
    x = embed(model, w, tokens.ids)
    if attention["position"] == "learned":
        x = x + F.embedding(positions, w["embedding.position.weight"])
    at = places(model) if attention["position"] == "rotary_2d" else positions
    if attention["position"] == "learned_2d":
        row, column = places(model)
        x = x + w["embedding.position.row.weight"][row] + w["embedding.position.column.weight"][column]
    for i in range(model["layers"]):
        x = attend_to_self(f"blocks.{i}.attention", x, causal, at, tokens.begins)
        if model["family"] == "encoder_decoder":
            name = f"blocks.{i}.cross_attention"
            streams = {"target": norm(f"{name}_norm", x)} | memory
            x = x + attend(name, streams["target"], streams[sources["keys"]], streams[sources["values"]],
                           text & causal if is_aligned else text, at if is_aligned else None)
        x = x + feed_forward(f"blocks.{i}.feed_forward", norm(f"blocks.{i}.feed_forward_norm", x))
    head = w["embedding.token.weight"] if "head.weight" not in w else w["head.weight"]
    x = norm("final_norm", x)
    if "classes" in model:
        is_read = (tokens.begins == 0)[..., None]
        x = x[:, 0] if model["pool"] == "class_token" else (x * is_read).sum(1) / is_read.sum(1)
    return F.linear(x, head)


def mean_loss(model, w, tokens, targets, choices=None):
    """The mean over the targets that are not -1."""
    return F.cross_entropy(logits(model, w, tokens, choices).flatten(0, -2), targets.flatten(), ignore_index=-1)


def both_losses(model, w, tokens, targets, given=None):
    """mean_loss(), and what the gradients are of: it and the balance loss."""
    choices = Choices(given)
    loss = mean_loss(model, w, tokens, targets, choices)
    return loss, loss + choices.balance


def loss_and_gradients(model, weights, tokens, targets):
    w = {name: value.clone().requires_grad_() for name, value in weights.items()}
    loss, objective = both_losses(model, w, tokens, targets)
    objective.backward()
    return loss.item(), {name: value.grad for name, value in w.items()}


def loss_and_gradients_of_layers(model, weights, tokens, targets):
    """The same by torch.nn.TransformerEncoderLayer and TransformerDecoderLayer, whose weights are given ours. Their q, k
    and v are one weight."""
    width, feed_forward = model["width"], model["feed_forward"]
    w = {name: value.clone().requires_grad_() for name, value in weights.items()}

    def layer_of(kind, prefix, *inputs, **masks):
        layer = kind(width, model["attention"]["heads"], feed_forward["width"], dropout=0, activation=F.gelu,
                     layer_norm_eps=model["norm"]["epsilon"], batch_first=True, norm_first=True, dtype=torch.float64)
        crosses = kind is torch.nn.TransformerDecoderLayer
        given = {}
        for part in ("weight", "bias"):
            def mine(name):
                return w[f"{prefix}.{name}.{part}"]
            for ours, theirs in (("attention", "self_attn"), ("cross_attention", "multihead_attn"))[: 1 + crosses]:
                given[f"{theirs}.in_proj_{part}"] = torch.cat([mine(f"{ours}.{x}") for x in "qkv"])
                given[f"{theirs}.out_proj.{part}"] = mine(f"{ours}.out")
            given |= {f"linear1.{part}": mine("feed_forward.up"), f"linear2.{part}": mine("feed_forward.down"),
                      f"norm1.{part}": mine("attention_norm"),
                      f"norm{3 if crosses else 2}.{part}": mine("feed_forward_norm")}
            if crosses:
                given[f"norm2.{part}"] = mine("cross_attention_norm")
        return torch.func.functional_call(layer, given, inputs, masks)

    def norm(name, x):
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], model["norm"]["epsilon"])

    x = F.embedding(tokens.ids, w["embedding.token.weight"]) + w["embedding.position.weight"]
    if model["family"] != "encoder_decoder":
        padding = tokens.begins > 0 if model["family"] == "classifier" else None
        for i in range(model["layers"]):
            x = layer_of(torch.nn.TransformerEncoderLayer, f"blocks.{i}", x, src_key_padding_mask=padding)
    else:
        source = tokens.source[:, 0]
        padding = source < 0
        memory = F.embedding(source.clamp(min=0), w["embedding.token.weight"]) * ~padding[..., None]
        memory = memory + w["encoder.embedding.position.weight"]
        for i in range(model["encoder_layers"]):
            memory = layer_of(torch.nn.TransformerEncoderLayer, f"encoder.blocks.{i}", memory,
                              src_key_padding_mask=padding)
        memory = norm("encoder.final_norm", memory)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for i in range(model["layers"]):
            x = layer_of(torch.nn.TransformerDecoderLayer, f"blocks.{i}", x, memory, tgt_mask=later,
                         memory_key_padding_mask=padding)
    x = norm("final_norm", x)
    if model["family"] == "classifier":
        x = torch.stack([text[begins == 0].mean(0) for text, begins in zip(x, tokens.begins)])[:, None]
    head = w.get("head.weight", w["embedding.token.weight"])
    loss = F.cross_entropy(F.linear(x, head).flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss.backward()
    return loss.item(), {name: value.grad for name, value in w.items()}


def training_losses(model, weights, tokens, targets, optimizer):
    """STEPS + 1 losses of one batch: element s is the loss after s updates."""
    w = {name: value.clone().requires_grad_() for name, value in weights.items()}
    matrices = [value for value in w.values() if value.dim() == 2]
    vectors = [value for value in w.values() if value.dim() == 1]
    if optimizer["kind"] == "adamw":
        step = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": optimizer["weight_decay"]}, {"params": vectors, "weight_decay": 0}],
            lr=optimizer["rate"], betas=optimizer["betas"], eps=optimizer["epsilon"])
    else:
        step = torch.optim.SGD(matrices + vectors, lr=optimizer["rate"], momentum=optimizer["momentum"])
    losses = []
    for _ in range(STEPS):
        step.zero_grad()
        loss, objective = both_losses(model, w, tokens, targets)
        objective.backward()
        step.step()
        losses.append(loss.item())
    return losses + [mean_loss(model, w, tokens, targets).item()]


def worst_finite_difference(model, weights, gradients, tokens, targets, generator):
    """For each tensor, the slope of the loss along a random direction, by central differences of fourth order.

    Returns the largest relative error. Error of the formula: h^4 from the series, 1e-16 / h from rounding.
    """
    worst, h = 0.0, 1e-3
    chosen = Choices()  # which do not change along the direction
    logits(model, weights, tokens, chosen)
    for name, weight in weights.items():
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()

        def loss_at(step):
            moved = {**weights, name: weight + step * direction}
            return both_losses(model, moved, tokens, targets, chosen if chosen.of_layers else None)[1].item()

        slope = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h)
        expected = (gradients[name] * direction).sum().item()
        # A key bias without rotary shifts all scores of a query alike: its gradient is zero and defines no scale.
        scale = max(gradients[name].norm().item() / weight.numel() ** 0.5, 1e-4)
        worst = max(worst, abs(slope - expected) / scale)
    return worst


def relative_to_tensor(a, b):
    """The largest difference of two sets of gradients, relative to the tensor's largest element; skips zero tensors."""
    return max(((a[name] - b[name]).abs().max() / b[name].abs().max()).item()
               for name in b if b[name].abs().max() > 1e-12)


def make(name, seed, folder):
    config = yaml.safe_load(CASES[name])
    model, batch = config["model"], config["train"]["batch"]
    generator = torch.Generator().manual_seed(seed)
    weights = initial_weights(model, generator)
    size = (batch, model["context"])
    if model["family"] == "vision":
        image = model["image"]
        tokens = torch.randint(256, (batch, image["channels"], image["height"], image["width"]), generator=generator)
        targets = torch.randint(model["classes"], (batch,), generator=generator)
    else:
        tokens = torch.randint(model["vocabulary"], size, generator=generator)
        targets = torch.randint(model.get("classes") or model["vocabulary"], size[: 1 if "classes" in model else 2],
                                generator=generator)
    if name in IGNORED_TARGETS:
        targets[torch.rand(size, generator=generator) < 1 / 3] = -1
    if model["family"] == "encoder":  # three in ten are targets; most of these are read as the mask token
        targets = torch.where(torch.rand(size, generator=generator) < 0.3, tokens, -1)
        hidden = (targets >= 0) & (torch.rand(size, generator=generator) < 0.8)
        tokens = torch.where(hidden, model["vocabulary"] - 1, tokens)

    begins = torch.zeros(size, dtype=torch.int64)
    if model["attention"].get("documents") == "separate":  # of four tokens or so
        border = torch.rand(size, generator=generator) < 0.25
        begins = torch.cummax(torch.where(border, torch.arange(size[1]), 0), dim=1).values
    source = None
    if model["family"] == "encoder_decoder":
        positions, texts = model["source_context"], len(streams_of_memory(model))
        source = torch.randint(model["vocabulary"], (batch, texts, positions), generator=generator)
        lengths = torch.randint(1, positions + 1, (batch, texts), generator=generator)
        lengths[0, 0] = positions
        source = torch.where(torch.arange(positions) < lengths[..., None], source, -1)
    if model["family"] == "classifier":  # what fills a text up is a document of its own
        ends = torch.randint(2, model["context"] + 1, (batch, 1), generator=generator)
        ends[0] = model["context"]
        begins = torch.where(torch.arange(size[1]) < ends, 0, ends)
    tokens = Tokens(tokens, begins, source)

    loss, gradients = loss_and_gradients(model, weights, tokens, targets)
    losses = {kind: training_losses(model, weights, tokens, targets, yaml.safe_load(text)["optimizer"])
              for kind, text in OPTIMIZERS.items()}

    error = worst_finite_difference(model, weights, gradients, tokens, targets, generator)
    if error > 1e-7:
        sys.exit(f"{name}: gradients and finite differences differ by {error:.1e}")

    if name in ("encoder", "encoder_decoder", "classifier"):
        other, others = loss_and_gradients_of_layers(model, weights, tokens, targets)
        apart = max(abs(other / loss - 1), relative_to_tensor(others, gradients))
        if apart > 1e-11:
            sys.exit(f"{name}: the layers of torch.nn differ by {apart:.1e}")

    # The error of the same arithmetic in float32: the scale for Choir's f32 differences.
    single = {n: value.float() for n, value in weights.items()}
    loss32, gradients32 = loss_and_gradients(model, single, tokens, targets)
    losses32 = {kind: training_losses(model, single, tokens, targets, yaml.safe_load(text)["optimizer"])
                for kind, text in OPTIMIZERS.items()}
    lost = {kind: np.max(np.abs(np.array(losses32[kind]) / losses[kind] - 1)) for kind in losses}

    with h5py.File(folder / f"{name}.h5", "w") as file:
        file.attrs["config"] = np.bytes_(CASES[name])
        for kind, text in OPTIMIZERS.items():
            file.attrs[kind] = np.bytes_(text)
            file.attrs[f"{kind}_losses"] = np.array(losses[kind], dtype="<f8")
        file.attrs["loss"] = np.float64(loss)
        file.attrs["made_by"] = np.bytes_(f"PyTorch {torch.__version__}")
        file["tokens/inputs"] = tokens.ids.numpy().astype("<i4")
        if begins.any():
            file["tokens/document_begins"] = begins.numpy().astype("<i4")
        if source is not None:
            file["tokens/source"] = source.squeeze(1).numpy().astype("<i4")
        file["tokens/targets"] = targets.numpy().astype("<i4")
        for parameter, value in weights.items():
            file[f"weights/{parameter}"] = value.numpy().astype("<f4")
            file[f"gradients/{parameter}"] = gradients[parameter].numpy().astype("<f8")

    print(f"| {name} | {sum(value.numel() for value in weights.values())} | {loss:.6f} "
          f"| {losses['adamw'][-1]:.6f} | {losses['sgd'][-1]:.6f} | {error:.0e} | {abs(loss32 / loss - 1):.0e} "
          f"| {relative_to_tensor(gradients32, gradients):.0e} | {lost['adamw']:.0e} | {lost['sgd']:.0e} |")


def main():
    torch.set_num_threads(1)
    folder = pathlib.Path(__file__).resolve().parent
    wanted = sys.argv[1:] or list(CASES)
    unknown = [name for name in wanted if name not in CASES]
    if unknown:
        sys.exit(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    print("| case | parameters | loss | after AdamW | after SGD | finite differences "
          "| f32: loss | gradients | AdamW | SGD |\n|---|---|---|---|---|---|---|---|---|---|")
    for seed, name in enumerate(CASES, start=1):
        if name in wanted:
            make(name, seed, folder)


if __name__ == "__main__":
    main()
