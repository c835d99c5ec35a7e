"""The optimiser of the denoisers: Muon for hidden matrices, AdamW for all else."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "MuonAdamW",
    "OneCallAdamW",
    "SinglePrecisionMuon",
    "clip_norm",
    "optimizer_settings",
    "orthogonalized",
]

#: Rate of AdamW, for biases, embeddings and outlet, relative to Muon's, for hidden matrices.
ADAMW_RATE = 0.15
#: PyTorch takes five; validation bounds of tables are no worse with four.
NEWTON_SCHULZ_STEPS = 4


def orthogonalized(
    matrices: Tensor, coefficients: tuple[float, float, float], n_steps: int, eps: float
) -> Tensor:
    """Return matrices with their singular values taken to about one, by Newton-Schulz steps.

    Parameters
    ----------
    matrices : Tensor of shape (n, rows, columns)
        Matrices of one size.
    coefficients : tuple of float
        Those of the odd polynomial of fifth degree that a step applies to the singular values.
    n_steps : int
        Steps.
    eps : float
        Norm below which matrices are divided by it instead of their norm.

    Returns
    -------
    Tensor of shape (n, rows, columns)
        The matrices; no singular value is above some 1.2.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    linear, cubic, quintic = coefficients
    for _ in range(n_steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, polynomial, x, beta=linear)
    return x.mT if is_tall else x


@torch.no_grad()
def clip_norm(gradients: list[Tensor], most: float) -> None:
    """Scale gradients, in place, so that their common Euclidean norm is at most a number.

    It is `torch.nn.utils.clip_grad_norm_` in few calls, however many gradients there are.  Networks
    that are trained in threads hinder each other by each call, for which a thread has to have the
    interpreter's lock.

    Parameters
    ----------
    gradients : list of Tensor
        Gradients on one device, at least one.
    most : float
        The greatest norm.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))


class _WithoutCompiler(torch.optim.Optimizer):
    """Optimiser whose bookkeeping is not marked for PyTorch's compiler.

    The mark makes PyTorch import the compiler, during the first fit of each process.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class _GroupByGroup(_WithoutCompiler):
    """Optimiser whose step is that of each of its parameter groups."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the closure runs once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_of_group(group)
        return loss

    def _step_of_group(self, group: dict[str, Any]) -> None:
        raise NotImplementedError


class OneCallAdamW(_GroupByGroup, torch.optim.AdamW):
    """AdamW on a CPU whose step is one call for all parameters, and little else."""

    def _step_of_group(self, group: dict[str, Any]) -> None:
        members = [p for p in group["params"] if p.grad is not None]
        if not members:
            return
        states = [self._state_of(parameter) for parameter in members]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0)
        torch._fused_adamw_(
            members,
            [p.grad for p in members],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class SinglePrecisionMuon(_GroupByGroup, torch.optim.Muon):
    """Muon whose steps are computed in the precision of the parameters, all of a size at once.

    PyTorch's own computes them in bfloat16, for which many processors have no instructions: there
    it takes more time than all the rest of a step of a small network.  It also rounds to eight
    bits, so that two fits that differ by rounding drift apart.
    """

    def _step_of_group(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for parameters in by_shape.values():
            self._step_of_a_shape(parameters, group)

    def _step_of_a_shape(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        moments = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        momentum = group["momentum"]
        torch._foreach_lerp_(moments, gradients, 1.0 - momentum)
        moved = torch._foreach_lerp(gradients, moments, momentum) if group["nesterov"] else moments
        steps = orthogonalized(
            torch.stack(list(moved)), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        n_rows, n_columns = steps.shape[1:]
        rate = group["lr"] * math.sqrt(max(1.0, n_rows / n_columns))
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(steps.unbind()), alpha=-rate)


class MuonAdamW(_WithoutCompiler):
    """Muon for hidden matrices and AdamW for all other parameters, as one optimiser.

    Parameters
    ----------
    params : list of dict
        Parameter groups; those with ``hidden=True`` hold matrices for Muon.
    lr : float, default=0.02
        Learning rate of Muon; AdamW's is 0.15 times that.
    weight_decay : float, default=0.0
        Decoupled weight decay of the hidden matrices; without any, of all matrices and kernels.
    """

    def __init__(self, params: Any, lr: float = 0.02, weight_decay: float = 0.0) -> None:
        learned: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for group in params:
            members = [p for p in group["params"] if p.requires_grad]
            learned[bool(group.get("hidden", False))].extend(members)
        hidden, rest = learned[True], learned[False]
        on_cpu = all(p.device.type == "cpu" for p in rest)
        adamw = OneCallAdamW if on_cpu else torch.optim.AdamW
        self._parts: list[torch.optim.Optimizer] = [
            # A denoiser that is only evaluated may have no parameters at all.
            adamw(
                decayed_groups(rest, 0.0 if hidden else weight_decay),
                lr=ADAMW_RATE * lr,
                betas=(0.9, 0.98),
            )
        ]
        if hidden:
            self._parts.append(
                SinglePrecisionMuon(
                    hidden, lr=lr, weight_decay=weight_decay, ns_steps=NEWTON_SCHULZ_STEPS
                )
            )
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__(groups, {})
        # The schedulers change the groups that the parts hold.
        self.param_groups = groups

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with each part; the closure runs once."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both parts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of both parts over."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_parts": self._parts}

    def clear_state(self) -> None:
        """Forget the moments, which are as large as the parameters."""
        self.state.clear()
        for part in self._parts:
            part.state.clear()


def optimizer_settings(learning_rate: float, weight_decay: float) -> dict[str, Any]:
    """Return how skorch is told of the optimiser."""
    return {
        "optimizer": MuonAdamW,
        "lr": learning_rate,
        "optimizer__weight_decay": weight_decay,
        "optimizer__param_groups": [
            ("denoiser.*.expand.weight", {"hidden": True}),
            ("denoiser.*.contract.weight", {"hidden": True}),
        ],
    }


def decayed_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices and kernels that decay, and the others.

    Without decay they are one group.
    """
    if weight_decay == 0.0:
        return [{"params": parameters, "weight_decay": 0.0}]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
