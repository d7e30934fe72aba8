"""The network: a transformer over receiver columns.

Every receiver stands on a column of the map, so a token is a column: it holds the five traces recorded there and becomes
the 70 velocities below. Attention carries along the line what the traces of other columns tell. Two convolutions at the
end sharpen the map in two dimensions.

Shapes: gather (n, 5, T, 70) in, pressure as recorded, T = 1000 / every samples; velocity (n, 1, 70, 70) in m/s, predicted
absolute error (n, 1, 70, 70) in m/s and family logits (n, 10) out.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

SHOTS, RECEIVERS, DEPTH = 5, 70, 70
SOURCES = (0, 17, 34, 52, 69)
LOW, HIGH = 1500.0, 4500.0
FIRST_WAVELET_SAMPLE = -1.6444e-4
"""Of a 15 Hz Ricker wavelet that begins 73 ms before its peak; the first sample's ratio to it is the squared velocity at
the source, times dt squared."""

FAMILIES = (
    "FlatVel_A", "FlatVel_B", "CurveVel_A", "CurveVel_B", "FlatFault_A",
    "FlatFault_B", "CurveFault_A", "CurveFault_B", "Style_A", "Style_B",
)  # fmt: skip


@dataclass
class Shape:
    """Size of a network; the defaults are those of the bundled prior."""

    dim: int = 192
    depth: int = 7
    heads: int = 6
    channels: int = 16
    blocks: int = 1
    every: int = 8


def asinh(x):
    """Inverse hyperbolic sine in operators that every ONNX runtime has."""
    return torch.sign(x) * torch.log(x.abs() + torch.sqrt(x * x + 1.0))


def softsign(x):
    """x / (1 + |x|)."""
    return x / (1.0 + x.abs())


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a residual."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        n, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-1, -2) * (dim // self.heads) ** -0.5, dim=-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(n, length, dim))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Prior(nn.Module):
    """The network; `forward` takes decimated gathers, `Whole` wraps it for those with all 1000 samples."""

    GAINS = (3.0, 100.0)
    INTEGRATED_GAINS = (1.0, 30.0)

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        samples = 1000 // shape.every
        features = (len(self.GAINS) + len(self.INTEGRATED_GAINS)) * SHOTS * samples
        once = torch.triu(torch.ones(samples, samples))
        # a constant of the shape, not a weight
        self.register_buffer("twice", once @ once, persistent=False)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.embed = nn.Linear(features, shape.dim)
        self.surface = nn.Linear(SHOTS, shape.dim)
        self.position = nn.Parameter(0.02 * torch.randn(RECEIVERS, shape.dim))
        self.blocks = nn.ModuleList(Block(shape.dim, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.dim)
        self.columns = nn.Linear(shape.dim, DEPTH * shape.channels)
        convolution = lambda a, b: nn.Conv2d(a, b, 3, padding=1)
        self.refine = nn.ModuleList(
            nn.ModuleList((convolution(shape.channels, 2 * shape.channels), convolution(2 * shape.channels, shape.channels)))
            for _ in range(shape.blocks)
        )
        self.last = nn.Conv2d(shape.channels, 2, 1)
        self.family = nn.Linear(shape.dim, len(FAMILIES))

    def features(self, tokens):
        """(n, 70, 5, T) to (n, 70, features): all samples of all shots at a column, as recorded and integrated twice over
        time, each at two gains. A Ricker wavelet is the second derivative of a Gaussian: integrated, the waves of a few Hz,
        which tell velocities and not only their steps, are as loud as the others."""
        recorded = [asinh(gain * tokens) for gain in self.GAINS]
        integrated = [softsign(gain * (tokens @ self.twice)) for gain in self.INTEGRATED_GAINS]
        return torch.cat([f.flatten(2) for f in recorded + integrated], dim=2)

    @torch.no_grad()
    def standardise(self, tokens):
        """Takes the features' mean and spread from a sample of gathers, (n, 70, 5, T)."""
        features = self.features(tokens).flatten(0, 1)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1.0 / (features.std(0) + 0.1))

    def inputs(self, tokens):
        """Standardised features, and the exact velocities at the sources from the first sample: (n, 5), standardised."""
        first = torch.stack([tokens[:, column, i, 0] for i, column in enumerate(SOURCES)], dim=1)
        velocity = 1000.0 * torch.sqrt(torch.clamp(first / FIRST_WAVELET_SAMPLE, 0.0, 36.0))
        return (self.features(tokens) - self.mean) * self.scale, (velocity - 2000.0) / 500.0

    def body(self, features, surface, columns=slice(None)):
        """From the inputs to velocity and predicted error (n, 1, 70, 70), m/s, and family logits (n, 10). Features of some
        columns only, which `columns` names, give the map of those: a coarser problem at a part of the cost."""
        x = self.embed(features) + self.position[columns] + self.surface(surface).unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        n, width = x.shape[:2]
        image = self.columns(x).reshape(n, width, self.shape.channels, DEPTH).permute(0, 2, 3, 1)
        if self.training:
            # convolutions of few channels take two thirds of the time in this order
            image = image.contiguous(memory_format=torch.channels_last)
        for widen, narrow in self.refine:
            image = image + narrow(F.gelu(widen(image)))
        both = self.last(image).float()
        velocity = LOW + (HIGH - LOW) * torch.sigmoid(both[:, :1])
        error = 1000.0 * F.softplus(both[:, 1:] - 2.0)
        return velocity, error, self.family(x.mean(1)).float()

    def forward(self, gather):
        return self.body(*self.inputs(gather.permute(0, 3, 1, 2)))


class Whole(nn.Module):
    """The network for gathers as they come: (n, 5, 1000, 70)."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, gather):
        return self.prior(gather[:, :, :: self.prior.shape.every, :])
