"""Modules that allocate as those of transformers 4.48 and of the fused kernels of fms-acceleration did. Used by ``published_stack.py``.

Source of what they allocate: transformers 4.48.1 (``modeling_mixtral.py``, ``modeling_gpt_bigcode.py``, ``loss_utils.py``), and the
differences between the measured rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


class Experts(torch.nn.Module):
    """Experts as three linear layers each, one expert after the other; transformers 5 has one tensor for all experts of a layer."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        count, width, hidden = experts.gate_up_proj.shape
        dtype = experts.gate_up_proj.dtype

        def linear(inputs: int, outputs: int) -> torch.nn.Module:
            return torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)

        self.experts = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {"w1": linear(hidden, width // 2), "w2": linear(width // 2, hidden), "w3": linear(hidden, width // 2)}
            )
            for _ in range(count)
        )
        self.act = experts.act_fn

    def forward(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the sum of the outputs of the chosen experts.

        Args:
            states: inputs, shape (tokens, hidden size).
            chosen: numbers of experts, shape (tokens, experts per token).
            weights: of the experts, same shape.
        """
        weights = weights.to(states.dtype)
        made = torch.zeros_like(states)
        masks = functional.one_hot(chosen, num_classes=len(self.experts)).permute(2, 1, 0)
        for mask, expert in zip(masks, self.experts, strict=True):
            rank, token = torch.where(mask)
            given = states[None, token].reshape(-1, states.shape[-1])
            inner = self.act(expert["w1"](given)) * expert["w3"](given)
            share = expert["w2"](inner) * weights[token, rank, None]
            made.index_add_(0, token, share.to(states.dtype))
        return made


def with_older_experts(network: torch.nn.Module) -> None:
    """Replace the experts of a Mixtral model."""
    for block in list(network.modules()):
        experts = getattr(block, "experts", None)
        if type(experts).__name__ == "MixtralExperts":
            block.experts = Experts(experts)


def keep_cache(network: torch.nn.Module) -> None:
    """Keep the keys and values of each layer until the end of the forward pass.

    GPT-BigCode of transformers 4.48 returns its cache under checkpointing, too. Keys and values are views of the output of ``c_attn``.
    """
    kept: list[torch.Tensor] = []

    def keep(module: Any, given: Any, made: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            kept.append(made)

    for name, module in network.named_modules():
        if name.endswith("attn.c_attn"):
            module.register_forward_hook(keep)
    network.register_forward_hook(lambda *_: kept.clear())


class FusedLoss(torch.autograd.Function):
    """A cross-entropy whose backward pass writes the gradient over the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Any) -> Any:  # noqa: D102
        ctx.save_for_backward(logits, logits.new_empty(logits.shape[0], dtype=torch.float32))
        return logits.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: D102
        return ctx.saved_tensors[0].detach()


class _FusedNorm(torch.autograd.Function):
    """The allocations of a norm that saves its input and one number per row."""

    @staticmethod
    def forward(ctx: Any, given: Any, weight: Any) -> Any:
        ctx.save_for_backward(given, weight, given.new_empty(given.shape[:-1], dtype=torch.float32))
        return torch.empty_like(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        _, weight, _ = ctx.saved_tensors
        return torch.empty_like(gradients[0]), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


def with_fused_norms(network: torch.nn.Module) -> None:
    """Replace the forward pass of root-mean-square norms."""
    for module in network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda given, norm=module: _FusedNorm.apply(given, norm.weight)
