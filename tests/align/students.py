"""Small students, their data and what they are taught."""

from __future__ import annotations

import torch
import transformers as tf

import repaudit as ra

COUNT = 40
LAYER = "bert.encoder.layer[-1]"


def config(layers: int = 2, dropout: float = 0.1) -> tf.BertConfig:
    return tf.BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=16, num_labels=4, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip


def student(seed: int = 0, **options: float) -> tf.BertForSequenceClassification:
    tf.set_seed(seed)
    return tf.BertForSequenceClassification(config(**options))


def inputs(count: int = COUNT, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 50, (count, 8), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[: count // 2, 6:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def rows(count: int = COUNT, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    found = inputs(count, seed)
    labels = torch.arange(count) % 4
    return [{**{name: value[i] for name, value in found.items()}, "labels": labels[i]} for i in range(count)]


def probe_set(**options: object) -> ra.ProbeSet:
    return ra.ProbeSet.from_tensors(inputs(), ids=[f"s{i}" for i in range(COUNT)], **options)


def target(perplexity: float = 6) -> ra.AlignmentTarget:
    points = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(9))
    gauge = ra.DiffusionGauge(perplexity=perplexity)
    return ra.AlignmentTarget.from_operator(gauge(points), samples=[f"s{i}" for i in range(COUNT)], gauge=gauge)


def teachers() -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(COUNT, width, generator=torch.Generator().manual_seed(width))
        for name, width in (("small", 5), ("large", 7))
    }


def objective(match: torch.nn.Module | None = None, **options: object) -> ra.JointObjective:
    return ra.JointObjective(
        match or ra.OperatorMatch(target()), **{"layer": LAYER, "probe_set": probe_set(), "batch_size": 16} | options
    )
