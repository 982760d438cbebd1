"""Dynamic convolution once more, written from its equations and nothing else.

A loop over samples in plain PyTorch that imports neither package. It is slow and meant
to be read; the tests hold both packages against it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PlainDynamicConv(nn.Module):
    """y_i = conv(x_i, Σ_k a_ik W_k) + Σ_k a_ik b_k, a = softmax(MLP(mean x) / T)."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        kernel: tuple[int, int] = (3, 3),
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
        experts: int = 4,
        temperature: float = 1.0,
    ):
        """Draws all parameters at random, the biases too."""
        super().__init__()
        self.stride, self.padding, self.groups = stride, padding, groups
        self.temperature = temperature
        shape = (experts, outputs, channels // groups, *kernel)
        self.weight = nn.Parameter(0.1 * torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(experts, outputs)) if bias else None
        hidden = max(1, channels // 4)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, experts)

    def routing(self, x: Tensor) -> Tensor:
        """The attention, sample by sample."""
        rows = []
        for sample in x:
            pooled = sample.mean(dim=(1, 2))
            hidden = self.fc1.weight @ pooled + self.fc1.bias
            hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
            scaled = (self.fc2.weight @ hidden + self.fc2.bias) / self.temperature
            exponentials = torch.exp(scaled - scaled.max().detach())
            rows.append(exponentials / exponentials.sum())
        return torch.stack(rows)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes a kernel for each sample and convolves that sample with it."""
        outputs = []
        for sample, weights in zip(x, self.routing(x), strict=True):
            kernel = torch.zeros_like(self.weight[0])
            for weight, expert in zip(weights, self.weight, strict=True):
                kernel = kernel + weight * expert
            y = functional.conv2d(
                sample[None],
                kernel,
                stride=self.stride,
                padding=self.padding,
                groups=self.groups,
            )
            if self.bias is not None:
                mixed = torch.zeros_like(self.bias[0])
                for weight, bias in zip(weights, self.bias, strict=True):
                    mixed = mixed + weight * bias
                y = y + mixed[None, :, None, None]
            outputs.append(y)
        return torch.cat(outputs)


class PlainBlock(nn.Module):
    """Dynamic convolution, batch norm, ReLU."""

    def __init__(self, channels: int, outputs: int, experts: int, temperature: float):
        """A 3×3 convolution of stride 2 and padding 1."""
        super().__init__()
        self.dyn = PlainDynamicConv(
            channels, outputs, (3, 3), 2, 1, experts=experts, temperature=temperature
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the three in order."""
        return torch.relu(self.bn(self.dyn(x)))


class PlainNet(nn.Module):
    """The reference network: stem, three blocks, pooled head."""

    def __init__(self, channels: int, classes: int, experts: int, temperature: float):
        """Builds the network under the published key names."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.stage1 = PlainBlock(32, 64, experts, temperature)
        self.stage2 = PlainBlock(64, 128, experts, temperature)
        self.stage3 = PlainBlock(128, 256, experts, temperature)
        self.fc = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.fc(x.mean(dim=(2, 3)))


def sorted_frequencies(rows: int, columns: int) -> list[int]:
    """The flat indices of a real spectrum by radius, as PyTorch has it in float32."""
    axes = torch.fft.fftfreq(rows), torch.fft.rfftfreq(columns)
    radii = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).norm(dim=-1)
    return torch.sort(radii.flatten(), stable=True).indices.tolist()
