#!/usr/bin/env python3
"""Trains the models of Choir's benchmarks in PyTorch on the CPU, as fast as idiomatic PyTorch can.

The model, batch and step of configs/bench-small.yaml and configs/bench-gpt2.yaml: fused attention, fused AdamW,
clipping, autocast for bf16, torch.compile on request. Random tokens: speed does not depend on them. Prints one line
of JSON. README.md in this folder describes the figures.

    python bench_pytorch.py --model small --precision f32 --threads 1 --compile --steps 10
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int
    batch: int


SHAPES = {
    "small": Shape(layers=6, heads=6, width=384, context=256, vocabulary=4096, batch=8),
    "gpt2": Shape(layers=12, heads=12, width=768, context=512, vocabulary=50257, batch=2),
}


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.feed_forward_norm = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width)
        self.down = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, E]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh"))


class Decoder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.token = nn.Embedding(shape.vocabulary, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.final_norm = nn.LayerNorm(shape.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.layers) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.token.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def adamw(model):
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [{"params": [p for p in parameters if p.dim() == 2], "weight_decay": 0.1},
         {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}],
        lr=6e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)


def seconds_since_process_start():
    """Since the start of this process as recorded by Linux, so that the imports are included."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started_ticks = int(stat.read().rpartition(")")[2].split()[19])
        return float(uptime.read().split()[0]) - started_ticks / os.sysconf("SC_CLK_TCK")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--compile-mode", default="default", help="mode of torch.compile, such as max-autotune")
    parser.add_argument("--steps", type=int, default=10, help="measured steps; the median counts")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them, the first included")
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(1)
    shape = SHAPES[args.model]
    model = Decoder(shape)
    optimizer = adamw(model)
    loss_of = torch.compile(model, mode=args.compile_mode) if args.compile else model
    batches = torch.randint(shape.vocabulary, (4, 2, shape.batch, shape.context))

    def step(index):
        tokens, targets = batches[index % len(batches)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            loss = loss_of(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    startup, seconds, processor_seconds, losses = seconds_since_process_start(), [], [], []
    for index in range(args.warmup + args.steps):
        start, processor_start = time.perf_counter(), time.process_time()
        losses.append(step(index))
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    measured = seconds[args.warmup:]
    median = statistics.median(measured)
    print(json.dumps({
        "framework": "pytorch",
        "version": torch.__version__,
        "model": args.model,
        "precision": args.precision,
        "threads": args.threads,
        "compile": args.compile_mode if args.compile else False,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_second": shape.batch * shape.context / median,
        "step_seconds_median": median,
        "step_seconds_least": min(measured),
        "step_seconds_most": max(measured),
        # Of all threads. With one thread it equals step_seconds_median; it is less if other processes ran.
        "step_processor_seconds_median": statistics.median(processor_seconds[args.warmup:]),
        "startup_seconds": startup,
        "first_step_seconds": seconds[0],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


if __name__ == "__main__":
    main()
