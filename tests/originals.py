"Small generators in the layouts of their original projects, written from those layouts and not from the kit."
import torch, torch.nn.functional as F
from torch import nn
from vemi_kit.core import generator


# --- pytorch-CycleGAN-and-pix2pix, and the mobile ResNet of GAN Compression
class Separable(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(c, c, 3, groups=c), nn.InstanceNorm2d(c), nn.Conv2d(c, c, 1))

    def forward(self, x): return self.conv(x)


class ResnetBlock(nn.Module):
    def __init__(self, c, mobile):
        super().__init__()
        conv = lambda: Separable(c) if mobile else nn.Conv2d(c, c, 3)
        first = [nn.ReflectionPad2d(1), conv(), nn.InstanceNorm2d(c), nn.ReLU(True)]
        self.conv_block = nn.Sequential(*first, nn.ReflectionPad2d(1), conv(), nn.InstanceNorm2d(c))

    def forward(self, x): return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    def __init__(self, width=16, n_blocks=2, mobile=False):
        super().__init__()
        norm = lambda c: [nn.InstanceNorm2d(c), nn.ReLU(True)]
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), *norm(width)]
        for c in (width, 2*width): layers += [nn.Conv2d(c, 2*c, 3, stride=2, padding=1), *norm(2*c)]
        layers += [ResnetBlock(4*width, mobile) for _ in range(n_blocks)]
        up = lambda c: nn.ConvTranspose2d(2*c, c, 3, stride=2, padding=1, output_padding=1)
        for c in (2*width, width): layers += [up(c), *norm(c)]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x): return self.model(x)


class UnetSkip(nn.Module):
    def __init__(self, outer, inner, c_in=None, sub=None, outermost=False):
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(c_in or outer, inner, 4, 2, 1, bias=False)
        twice = 2 if sub else 1
        up = nn.ConvTranspose2d(twice*inner, outer, 4, 2, 1, bias=outermost)
        if outermost: layers = [down, sub, nn.ReLU(True), up, nn.Tanh()]
        elif sub:
            before = [nn.LeakyReLU(.2, True), down, nn.BatchNorm2d(inner), sub]
            layers = [*before, nn.ReLU(True), up, nn.BatchNorm2d(outer)]
        else: layers = [nn.LeakyReLU(.2, True), down, nn.ReLU(True), up, nn.BatchNorm2d(outer)]
        self.model = nn.Sequential(*layers)

    def forward(self, x): return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        inner = UnetSkip(4*width, 8*width)
        inner = UnetSkip(2*width, 4*width, sub=inner)
        inner = UnetSkip(width, 2*width, sub=inner)
        self.model = UnetSkip(3, width, 3, inner, outermost=True)

    def forward(self, x): return self.model(x)


# --- BasicSR
class ResidualBlockNoBN(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(c, c, 3, 1, 1) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x): return x + self.conv2(self.relu(self.conv1(x)))


class MSRResNet(nn.Module):
    def __init__(self, c=16, n_blocks=2):
        super().__init__()
        self.conv_first = nn.Conv2d(3, c, 3, 1, 1)
        self.body = nn.Sequential(*[ResidualBlockNoBN(c) for _ in range(n_blocks)])
        self.upconv1, self.upconv2 = (nn.Conv2d(c, 4*c, 3, 1, 1) for _ in range(2))
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.conv_hr, self.conv_last = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(.1, inplace=True)

    def forward(self, x):
        h = self.body(self.lrelu(self.conv_first(x)))
        h = self.lrelu(self.pixel_shuffle(self.upconv1(h)))
        h = self.lrelu(self.pixel_shuffle(self.upconv2(h)))
        return self.conv_last(self.lrelu(self.conv_hr(h))) + F.interpolate(x, scale_factor=4, mode="bilinear")


class RDB(nn.Module):
    def __init__(self, c, grow):
        super().__init__()
        for i in range(1, 6): setattr(self, f"conv{i}", nn.Conv2d(c+(i-1)*grow, c if i == 5 else grow, 3, 1, 1))

    def forward(self, x):
        xs = [x]
        for i in range(1, 5): xs.append(F.leaky_relu(getattr(self, f"conv{i}")(torch.cat(xs, 1)), .2))
        return self.conv5(torch.cat(xs, 1))*.2 + x


class RRDB(nn.Module):
    def __init__(self, c, grow):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (RDB(c, grow) for _ in range(3))

    def forward(self, x): return self.rdb3(self.rdb2(self.rdb1(x)))*.2 + x


class RRDBNet(nn.Module):
    "ESRGAN and Real-ESRGAN, x4."
    def __init__(self, c=16, n_blocks=1, grow=8):
        super().__init__()
        self.conv_first, self.conv_last = nn.Conv2d(3, c, 3, 1, 1), nn.Conv2d(c, 3, 3, 1, 1)
        self.body = nn.Sequential(*[RRDB(c, grow) for _ in range(n_blocks)])
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (nn.Conv2d(c, c, 3, 1, 1) for _ in range(4))

    def forward(self, x):
        act, twice = lambda x: F.leaky_relu(x, .2), lambda x: F.interpolate(x, scale_factor=2, mode="nearest")
        h = self.conv_first(x)
        h = h + self.conv_body(self.body(h))
        return self.conv_last(act(self.conv_hr(act(self.conv_up2(twice(act(self.conv_up1(twice(h)))))))))


class SRVGGNetCompact(nn.Module):
    "The small Real-ESRGAN, x4."
    def __init__(self, c=16, n_convs=4):
        super().__init__()
        layers = [nn.Conv2d(3, c, 3, 1, 1), nn.PReLU(c)]
        for _ in range(n_convs): layers += [nn.Conv2d(c, c, 3, 1, 1), nn.PReLU(c)]
        self.body, self.upsampler = nn.ModuleList([*layers, nn.Conv2d(c, 48, 3, 1, 1)]), nn.PixelShuffle(4)

    def forward(self, x):
        h = x
        for layer in self.body: h = layer(h)
        return self.upsampler(h) + F.interpolate(x, scale_factor=4, mode="nearest")


# --- generators that are no translators
class Conditional(nn.Module):
    "Latents and a class to pictures of 16x16."
    def __init__(self, c=16, z_dim=16, n_classes=10):
        super().__init__()
        self.embed, self.first = nn.Embedding(n_classes, z_dim), nn.Linear(z_dim, 4*4*2*c)
        up = lambda i, o: [nn.ConvTranspose2d(i, o, 4, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.body = nn.Sequential(*up(2*c, 2*c), *up(2*c, c), nn.Conv2d(c, 1, 3, 1, 1), nn.Tanh())

    def forward(self, z, label):
        h = self.first(z*self.embed(label))
        return self.body(h.reshape(h.shape[0], -1, 4, 4))


class Segmenter(nn.Module):
    "Pictures to logits of classes."
    def __init__(self, c=16, n_classes=5):
        super().__init__()
        conv = lambda i, o, s=1: [nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.encoder = nn.Sequential(*conv(3, c, 2), *conv(c, 2*c, 2), *conv(2*c, 2*c))
        self.classifier = nn.Conv2d(2*c, n_classes, 1)

    def forward(self, x):
        h = self.classifier(self.encoder(x))
        return F.interpolate(h, size=x.shape[2:], mode="bilinear", align_corners=False)


class Branching(nn.Module):
    "A translator that decides by its pictures' values, which no trace can follow."
    def __init__(self, c=8):
        super().__init__()
        self.config = dict(c=c)
        self.a, self.b = nn.Conv2d(3, c, 3, 1, 1), nn.Conv2d(c, 3, 3, 1, 1)

    def forward(self, x):
        h = self.a(x).relu()
        return self.b(h if h.mean() > .1 else h*2).tanh()


# --- StyleGAN2 in the layout that most PyTorch checkpoints have: names and shapes, with random values
def stylegan2_state(size=16, width=16, z_dim=16, n_mapping=2):
    g = generator(0)
    r = lambda *shape: torch.randn(shape, generator=g)
    taps = torch.tensor([1., 3., 3., 1.])
    blur, n = (taps[:, None]*taps)/16, size.bit_length()-3
    modulated = lambda key, i, o, k: {
        f"{key}.conv.weight": r(1, o, i, k, k), f"{key}.conv.modulation.weight": r(i, z_dim),
        f"{key}.conv.modulation.bias": torch.ones(i)}
    s = {"input.input": r(1, width, 4, 4)}
    for i in range(1, n_mapping+1): s |= {f"style.{i}.weight": r(z_dim, z_dim)*100, f"style.{i}.bias": r(z_dim)}
    for k in range(2*n+1):
        key, side = f"convs.{k-1}" if k else "conv1", 4*2**((k+1)//2)
        s |= modulated(key, width, width, 3)
        s |= {f"{key}.noise.weight": r(1)/10, f"{key}.activate.bias": r(width)/10}
        s[f"noises.noise_{k}"] = r(1, 1, side, side)
        if k % 2: s[f"{key}.conv.blur.kernel"] = blur
    for k in range(n+1):
        key = f"to_rgbs.{k-1}" if k else "to_rgb1"
        s |= modulated(key, width, 3, 1) | {f"{key}.bias": torch.zeros(1, 3, 1, 1)}
        s[f"{key}.conv.weight"] /= 10
        if k: s[f"{key}.upsample.kernel"] = blur
    return s
