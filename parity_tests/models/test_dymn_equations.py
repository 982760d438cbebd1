"""DyMN computes its equations, written once more, a sample at a time."""

import numpy as np
import torch
import torch.nn.functional as F

import dynconv_torch
from parity_tests.parity import as_torch
from parity_tests.tolerances import assert_close
from parity_tests.tools import networks
from parity_tests.tools.narrow_dymn import BUILD, lively


class PlainDyMN:
    """The network from its equations, of a state dict, a sample at a time."""

    def __init__(self, state, blocks, temperature):
        self.state, self.blocks, self.temperature = state, blocks, temperature

    def norm(self, x, key):
        """Of evaluation; x is (C, ...)."""
        weight, bias, mean, var = (
            self.state[f"{key}.{part}"].reshape(-1, *(1,) * (x.ndim - 1))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / torch.sqrt(var + 1e-3) * weight + bias

    def linear(self, x, key):
        return self.state[f"{key}.weight"].flatten(1) @ x + self.state[f"{key}.bias"]

    def conv(self, x, h, key, shape, stride=1, groups=1):
        logits = self.linear(h, f"{key}.residuals.0") / self.temperature
        weights = torch.exp(logits) / torch.exp(logits).sum()
        experts = self.state[f"{key}.weight"][0, 0].reshape(-1, *shape)
        kernel = torch.zeros(shape).to(x)
        for weight, expert in zip(weights, experts, strict=True):
            kernel = kernel + weight * expert
        padding = shape[-1] // 2
        return F.conv2d(x[None], kernel, None, stride, padding, 1, groups)[0]

    def sequence(self, s, stride):
        if stride == 1:
            return s
        return F.avg_pool1d(s[None], 3, stride, 1, count_include_pad=True)[0]

    def block(self, x, key, side, stride, is_hard_swish):
        width, rows = x.shape[0], x.shape[1]
        s = torch.cat([x.mean(2), x.mean(1)], 1)
        s = self.state[f"{key}.context_gen.joint_conv.weight"][:, :, 0, 0] @ s
        s = F.hardswish(self.norm(s, f"{key}.context_gen.joint_norm"))
        h = s.mean(1)
        y, wide = x, self.state[f"{key}.depth_norm.weight"].numel()
        if wide != width:
            y = self.conv(y, h, f"{key}.exp_conv", (wide, width, 1, 1))
            y = self.norm(y, f"{key}.exp_norm")
            y = F.hardswish(y) if is_hard_swish else F.relu(y)
        shape = wide, 1, side, side
        y = self.conv(y, h, f"{key}.depth_conv", shape, stride, wide)
        y = self.norm(y, f"{key}.depth_norm")
        theta = 2 * torch.sigmoid(self.linear(h, f"{key}.depth_act.coef_net.0")) - 1
        a1, a2, b1, b2 = theta.reshape(wide, 4).T[:, :, None, None]
        y = torch.maximum((1 + a1) * y + 0.5 * b1, a2 * y + 0.5 * b2)
        for axis, part in (("f", s[:, :rows]), ("t", s[:, rows:])):
            part = self.sequence(part, stride)
            weight = self.state[f"{key}.context_gen.conv_{axis}.weight"][:, :, 0, 0]
            bias = self.state[f"{key}.context_gen.conv_{axis}.bias"]
            gates = torch.sigmoid(weight @ part + bias[:, None])
            y = y * (gates[:, :, None] if axis == "f" else gates[:, None])
        out = self.state[f"{key}.proj_norm.weight"].numel()
        y = self.conv(y, h, f"{key}.proj_conv", (out, wide, 1, 1))
        y = self.norm(y, f"{key}.proj_norm")
        return x + y if stride == 1 and width == out else y

    def __call__(self, x):
        rows = []
        for sample in x:
            y = F.conv2d(sample[None], self.state["in_c.0.weight"], None, 2, 1)[0]
            y = F.hardswish(self.norm(y, "in_c.1"))
            for number, (side, _, _, stride, is_hard_swish) in enumerate(self.blocks):
                y = self.block(y, f"layers.{number}", side, stride, is_hard_swish)
            y = F.conv2d(y[None], self.state["out_c.0.weight"])[0]
            y = F.hardswish(self.norm(y, "out_c.1")).mean((1, 2))
            y = F.hardswish(self.linear(y, "classifier.2"))
            rows.append(self.linear(y, "classifier.5"))
        return torch.stack(rows)


def test_net_computes_the_equations(rng):
    blocks = ((3, 32, 32, 1, False), (5, 64, 32, 2, True), (3, 48, 32, 1, True))
    net = BUILD[1](7, blocks=blocks, width_mult=0.5, dtype=torch.float64)
    images = rng.normal(size=(3, 26, 19, 1))
    networks.enliven(net, images, rng)
    lively(net, rng)
    dynconv_torch.set_temperature(net, 2.0)
    x = as_torch(np.moveaxis(images, -1, 1)).requires_grad_()
    state = dict(net.eval().named_parameters()) | dict(net.named_buffers())
    leaves = {"input": x, **dict(net.named_parameters())}

    def results(outputs, cotangent):
        found = torch.autograd.grad(outputs, [*leaves.values()], cotangent)
        named = zip(leaves, found, strict=True)
        gradients = {f"of {name}": value.numpy() for name, value in named}
        return {"output": outputs.detach().numpy(), **gradients}

    actual, expected = net(x), PlainDyMN(state, blocks, 2.0)(x)
    cotangent = torch.randn_like(actual)
    assert_close(
        results(actual, cotangent),
        results(expected, cotangent),
        dtype="float64",
        floor=1e-6,
    )
