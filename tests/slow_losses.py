"""Losses in plain Python and float64, written from their formulas, and problems to try them on."""

import math
from types import SimpleNamespace

import numpy as np
import torch

C = 4


def problem(shape: tuple[int, ...], seed: int = 0, unlabelled: float = 0.5) -> SimpleNamespace:
    """Random logits, labels and weights of M points (shape (M,)) or of images (shape (B, H, W)), float64."""
    generator = np.random.default_rng(seed)
    logits_shape = (shape[0], C, *shape[1:])
    label = generator.integers(0, C, shape)
    label[generator.random(shape) < unlabelled] = 255
    return SimpleNamespace(
        student=torch.from_numpy(3 * generator.normal(size=logits_shape)).requires_grad_(),
        teacher=torch.from_numpy(3 * generator.normal(size=logits_shape)).requires_grad_(),
        label=torch.from_numpy(label),
        weight=torch.from_numpy(generator.random(shape) * 5).requires_grad_(),
    )


def entries(logits, *maps):
    """One (logits of C floats, value of each map) per point or pixel."""
    logits = np.moveaxis(np.asarray(logits), 1, -1).reshape(-1, C)
    return list(zip(logits.tolist(), *(np.asarray(one).reshape(-1).tolist() for one in maps), strict=True))


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(z - max(logits)) for z in logits]
    return [power / sum(powers) for power in powers]


def slow_supervised(student, label) -> float:
    terms = [-math.log(softmax(z)[y]) for z, y in entries(student, label) if y != 255]
    return sum(terms) / len(terms) if terms else 0.0


def slow_balance(label, exponent) -> np.ndarray:
    """n_c^(−exponent) of each labelled entry, divided by their mean; 0 elsewhere."""
    label = np.asarray(label)
    labels = label[label != 255].tolist()
    raw = [0.0 if y == 255 else labels.count(y) ** -exponent for y in label.reshape(-1).tolist()]
    return np.array(raw).reshape(label.shape) * (len(labels) / sum(raw) if labels else 1.0)


def slow_balanced(student, label, exponent) -> float:
    found = entries(student, label, slow_balance(label, exponent))
    terms = [-w * math.log(softmax(z)[y]) for z, y, w in found if y != 255]
    return sum(terms) / len(terms) if terms else 0.0


def slow_consistency(student, teacher, label, normalization) -> float:
    total, count = 0.0, 0
    for (z, y), (t, _) in zip(entries(student, label), entries(teacher, label), strict=True):
        if y == 255:
            count += 1
            for p, q in zip(softmax(t), softmax(z), strict=True):
                total += p * (math.log(p) - math.log(q))
    return total / (count * (C if normalization == "elements" else 1)) if count else 0.0


def slow_share(teacher, label, threshold, over) -> float:
    counted = [max(softmax(t)) >= threshold for t, y in entries(teacher, label) if over == "all" or y == 255]
    return sum(counted) / len(counted) if counted else 0.0


def slow_cross_modal(student, label, weight, normalization) -> float:
    pairs = [(w, -math.log(softmax(z)[y])) for z, y, w in entries(student, label, weight) if y != 255]
    total = sum(w * ce for w, ce in pairs)
    divisor = {"sum": 1.0, "pairs": len(pairs), "sum_of_weights": sum(w for w, _ in pairs)}[normalization]
    return total / divisor if divisor else 0.0
