"""Causal attention: grouped queries, rotary positions, windows, soft caps.

Queries, keys and values may be bfloat16: then angles, rotations and the softmax are float32 still,
and so are scores under a soft cap. (PyTorch's fused attention sums scores in float32.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from strucprune_core.models.rope import rotate


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    rotations: tuple[Tensor, Tensor] | None,
    scale: float,
    soft_cap: float | None,
    window: int | None,
) -> Tensor:
    """Mix values by attention.

    Args:
        query: (b, n, heads, head_dim).
        key: (b, n, kv_heads, head_dim).
        value: The same.
        rotations: Cosines and sines of the first dimensions of a head, each (n x dims).
        scale: Attention logits are multiplied by it.
        soft_cap: Logits z become cap * tanh(z / cap).
        window: Most tokens that a position sees, its own included.

    Returns:
        (b, n, heads * head_dim), of the values' dtype.
    """
    length, shared = query.shape[1], query.shape[2] != key.shape[2]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if rotations is not None:
        query, key = (rotate_first(x, rotations) for x in (query, key))
    mask = None if window is None or window >= length else _window(length, window, query.device)
    if soft_cap is None:
        mixed = functional.scaled_dot_product_attention(
            query.to(value.dtype),  # Rotated in float32.
            key.to(value.dtype),
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=shared,
        )
    else:
        seen = _window(length, length, query.device) if mask is None else mask
        mixed = _capped(query, key, value, scale, soft_cap, seen)
    return mixed.transpose(1, 2).flatten(2)


def attend_last(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, soft_cap: float | None
) -> Tensor:
    """Attention of the last position to all positions.

    Args:
        query: (b, 1, heads, head_dim), rotated.
        key: (b, kv_heads, n, head_dim), rotated.
        value: (b, kv_heads, n, head_dim), of the keys' dtype.
        scale: Attention logits are multiplied by it.
        soft_cap: Logits z become cap * tanh(z / cap).

    Returns:
        (b, 1, heads * head_dim).
    """
    query = query.transpose(1, 2).to(value.dtype)
    if soft_cap is None:
        shared = query.shape[1] != key.shape[1]
        mixed = functional.scaled_dot_product_attention(
            query, key, value, scale=scale, enable_gqa=shared
        )
    else:
        seen = torch.ones(1, key.shape[2], dtype=torch.bool, device=query.device)
        mixed = _capped(query, key, value, scale, soft_cap, seen)
    return mixed.transpose(1, 2).flatten(2)


def rotate_first(x: Tensor, rotations: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate as many dimensions of each head as there are angles; the others stay."""
    dims = rotations[0].shape[-1]
    if dims == x.shape[-1]:
        return rotate(x, *rotations)
    return torch.cat([rotate(x[..., :dims], *rotations), x[..., dims:]], dim=-1)


def _window(length: int, window: int, device: torch.device) -> Tensor:
    """True where a position (row) sees another (column), (n x n)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril_().triu_(1 - window)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, scale: float, cap: float, seen: Tensor
) -> Tensor:
    """One head at a time, since the logits of all positions, (b, n, n), are held, in float32."""
    shared = query.shape[1] // key.shape[1]
    mixed = []
    for head in range(query.shape[1]):
        keys, values = key[:, head // shared].float(), value[:, head // shared].float()
        logits = cap * torch.tanh(query[:, head].float() @ keys.transpose(1, 2) * scale / cap)
        weighted = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ values
        mixed.append(weighted.to(value.dtype))
    return torch.stack(mixed, dim=1)
