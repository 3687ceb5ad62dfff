"""Public definitions in torch, for the tests: Inception v3 of FID, and the feature stacks of VGG16 and AlexNet."""

import torch
from torch import nn
from torch.nn import functional


class BasicConv(nn.Module):
    def __init__(self, inputs, outputs, **options):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


def average(x):
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    def __init__(self, inputs, pooled):
        super().__init__()
        self.branch1x1 = BasicConv(inputs, 64, kernel_size=1)
        self.branch5x5_1 = BasicConv(inputs, 48, kernel_size=1)
        self.branch5x5_2 = BasicConv(48, 64, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = BasicConv(inputs, 64, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv(96, 96, kernel_size=3, padding=1)
        self.branch_pool = BasicConv(inputs, pooled, kernel_size=1)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(average(x))], 1
        )


class BlockB(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch3x3 = BasicConv(inputs, 384, kernel_size=3, stride=2)
        self.branch3x3dbl_1 = BasicConv(inputs, 64, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv(96, 96, kernel_size=3, stride=2)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    def __init__(self, inputs, c):
        super().__init__()
        wide, high = {"kernel_size": (1, 7), "padding": (0, 3)}, {"kernel_size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = BasicConv(inputs, 192, kernel_size=1)
        self.branch7x7_1 = BasicConv(inputs, c, kernel_size=1)
        self.branch7x7_2 = BasicConv(c, c, **wide)
        self.branch7x7_3 = BasicConv(c, 192, **high)
        self.branch7x7dbl_1 = BasicConv(inputs, c, kernel_size=1)
        self.branch7x7dbl_2 = BasicConv(c, c, **high)
        self.branch7x7dbl_3 = BasicConv(c, c, **wide)
        self.branch7x7dbl_4 = BasicConv(c, c, **high)
        self.branch7x7dbl_5 = BasicConv(c, 192, **wide)
        self.branch_pool = BasicConv(inputs, 192, kernel_size=1)

    def forward(self, x):
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = x
        for i in range(1, 6):
            double = getattr(self, f"branch7x7dbl_{i}")(double)
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average(x))], 1)


class BlockD(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch3x3_1 = BasicConv(inputs, 192, kernel_size=1)
        self.branch3x3_2 = BasicConv(192, 320, kernel_size=3, stride=2)
        self.branch7x7x3_1 = BasicConv(inputs, 192, kernel_size=1)
        self.branch7x7x3_2 = BasicConv(192, 192, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv(192, 192, kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv(192, 192, kernel_size=3, stride=2)

    def forward(self, x):
        long = x
        for i in range(1, 5):
            long = getattr(self, f"branch7x7x3_{i}")(long)
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, functional.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    def __init__(self, inputs, pool):
        super().__init__()
        self.pool = pool
        self.branch1x1 = BasicConv(inputs, 320, kernel_size=1)
        self.branch3x3_1 = BasicConv(inputs, 384, kernel_size=1)
        self.branch3x3_2a = BasicConv(384, 384, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv(384, 384, kernel_size=(3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv(inputs, 448, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv(448, 384, kernel_size=3, padding=1)
        self.branch3x3dbl_3a = BasicConv(384, 384, kernel_size=(1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv(384, 384, kernel_size=(3, 1), padding=(1, 0))
        self.branch_pool = BasicConv(inputs, 192, kernel_size=1)

    def forward(self, x):
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(self.pool(x)),
            ],
            1,
        )


class InceptionV3ForFid(nn.Module):
    """The network behind pt_inception-2015-12-05, on images already resized to 299 and scaled by (x - 128) / 128."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv(80, 192, kernel_size=3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a, self.Mixed_7b = BlockD(768), BlockE(1280, average)
        self.Mixed_7c = BlockE(2048, lambda x: functional.max_pool2d(x, 3, stride=1, padding=1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        """(pool features (B, 2048), logits without bias (B, 1008), the output of every stage by name)."""
        stages = {}
        for name in (
            "Conv2d_1a_3x3",
            "Conv2d_2a_3x3",
            "Conv2d_2b_3x3",
            "pool",
            "Conv2d_3b_1x1",
            "Conv2d_4a_3x3",
            "pool",
        ):
            x = functional.max_pool2d(x, 3, stride=2) if name == "pool" else getattr(self, name)(x)
        for name in [f"Mixed_{n}" for n in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")]:
            x = stages[name] = getattr(self, name)(x)
        pooled = x.mean((2, 3))
        return pooled, pooled @ self.fc.weight.T, stages


def vgg16_features():
    layers, inputs = [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=False)]
            inputs = width
    return nn.Sequential(*layers)


def alexnet_features():
    relu, pool = (lambda: nn.ReLU(inplace=False)), (lambda: nn.MaxPool2d(3, 2))
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), relu(), pool(),
        nn.Conv2d(64, 192, 5, padding=2), relu(), pool(),
        nn.Conv2d(192, 384, 3, padding=1), relu(),
        nn.Conv2d(384, 256, 3, padding=1), relu(),
        nn.Conv2d(256, 256, 3, padding=1), relu(), pool(),
    )  # fmt: skip


def randomise(module, seed, gain=1.0):
    """Weights that keep activations near 1 through the layers, and batch statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var") or name.endswith("bn.weight"):
                value.copy_(1 + 0.3 * torch.tanh(drawn))
            elif value.ndim > 1:
                value.copy_(gain * drawn * (2 / value[0].numel()) ** 0.5)
            else:
                value.copy_(0.1 * drawn)
    return module.eval()
