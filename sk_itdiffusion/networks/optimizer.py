"""Muon for hidden matrices and AdamW for all other parameters, as one optimiser.

skorch runs the closure once for each optimiser, so that two would need two gradients; and
`torch.optim.Muon` computes in bfloat16, for which many processors have no instructions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["MuonAdamW"]

#: Rate of AdamW relative to Muon's, steps of the orthogonalisation, and its polynomial.
ADAMW_RATE, NEWTON_SCHULZ_STEPS = 0.15, 4
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM, BETAS, EPS = 0.95, (0.9, 0.98), 1e-8


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices (n, r, c) whose singular values are about one, by Newton-Schulz steps."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear
        )
    return x.mT if is_tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW.

    Parameters
    ----------
    params : iterable
        Parameter groups; those with ``hidden=True`` hold matrices for Muon.
    lr : float, default=0.03
        Learning rate of Muon; AdamW's is 0.15 times as large.
    weight_decay : float, default=0.0
        Decoupled weight decay of the hidden matrices.
    """

    # The decorated ones import the compiler, which takes longer than a small fit.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(self, params: Any, lr: float = 0.03, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "hidden": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the closure runs once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            if not members:
                continue
            if group["hidden"]:
                self._muon(members, group)
            else:
                self._adamw(members, group)
        return loss

    def _muon(self, members: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in members:
            by_shape.setdefault(parameter.shape, []).append(parameter)
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        for shape, parameters in by_shape.items():
            gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
            moments = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_lerp_(moments, list(gradients.unbind()), 1.0 - MOMENTUM)
            steps = orthogonalized(gradients.lerp(torch.stack(moments), MOMENTUM))
            rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
            torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(steps.unbind()), alpha=-rate)

    def _adamw(self, members: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in members:
            if "step" not in self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), dtype=torch.float32)
                for name in ("mean", "square"):
                    self.state[parameter][name] = torch.zeros_like(parameter)
        columns = {
            name: [self.state[p][name] for p in members] for name in ("mean", "square", "step")
        }
        torch._foreach_add_(columns["step"], 1.0)
        torch._fused_adamw_(
            members,
            [p.grad for p in members if p.grad is not None],
            columns["mean"],
            columns["square"],
            [],
            columns["step"],
            lr=ADAMW_RATE * group["lr"],
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )
