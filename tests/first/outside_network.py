"""What a user might keep outside the package: a small network, of layers as torch makes them."""

import torch

from sk_itdiffusion._first.denoisers import NetworkFamily


class SmallBackbone(torch.nn.Module):
    """One hidden layer."""

    def __init__(self, n_inputs, n_outputs, width, dropout):
        super().__init__()
        self.sizes = {
            "n_inputs": n_inputs,
            "n_outputs": n_outputs,
            "width": width,
            "dropout": dropout,
        }
        self.inlet = torch.nn.Linear(n_inputs + 1, width)
        self.dropout = torch.nn.Dropout(dropout)
        self.outlet = torch.nn.Linear(width, n_outputs)
        torch.nn.init.zeros_(self.outlet.weight)
        torch.nn.init.zeros_(self.outlet.bias)

    def forward(self, inputs, logsnr):
        inputs = torch.cat([inputs, 0.1 * logsnr[:, None]], dim=1)
        return self.outlet(self.dropout(torch.tanh(self.inlet(inputs))))

    def config(self):
        return dict(self.sizes)

    @classmethod
    def from_config(cls, **config):
        return cls(**config)


class SmallFamily(NetworkFamily):
    """Networks of one hidden layer, whose width is a parameter."""

    def __init__(self, width=16):
        self.width = width

    def build(self, plan):
        return SmallBackbone(plan.n_inputs, plan.n_outputs, self.width, plan.dropout)
