"""Odd arguments at the doors that users call: each gives a right result, or an error that names the argument.

Hypothesis draws the arguments. No call may hang, none of the classes that matter may pass silently, and at
most 2 % of the calls may end in an error that does not say which argument was wrong.
"""
import functools, math, re, signal, tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from vemi_kit.callbacks import History
from vemi_kit.cache import TeacherCache
from vemi_kit.callbacks import Guard
from vemi_kit.chains import langevin
from vemi_kit.costs import count_macs, count_params, layer_costs
from vemi_kit.data.batches import Batches, Latents
from vemi_kit.data.pictures import photo_crops, resize
from vemi_kit.data.folders import load_image
from vemi_kit.distill import distill
from vemi_kit.energy import EnergyNet
from vemi_kit.enhance.degrade import SuperResolution, degradation
from vemi_kit.enhance.restorer import load_restorer
from vemi_kit.enhance.tiles import enhance
from vemi_kit.deploy.folder import load_student, save_student
from vemi_kit.deploy.int8 import quantise
from vemi_kit.deploy.package import deploy
from vemi_kit.deploy.runtime import export_onnx
from vemi_kit.files import load_nets
from vemi_kit.methods.base import Objective
from vemi_kit.methods.perceptual import PerceptualFeatures
from vemi_kit.methods.reader import Reader
from vemi_kit.metrics.distances import FrechetDistance
from vemi_kit.metrics.fidelity import fidelity
from vemi_kit.metrics.coin import coin_nats
from vemi_kit.nats.bounds import conditional_bound
from vemi_kit.nats.vem import TiltedVEM
from vemi_kit.phases import read_phases
from vemi_kit.pruning import prune
from vemi_kit.schedules import alternate, constant, cosine, exponential, linear, student_plan, warmup
from vemi_kit.ship.compress import compress
from vemi_kit.show import show_images
from vemi_kit.students import shrink
from vemi_kit.teachers import load_teacher
from vemi_kit.timing import latency
from vemi_kit.versions import split_view
from vemi_kit.vem import VEM
from vemi_kit.zoo.dcgan import SNDiscriminator, SNGenerator, digits_teacher, train_gan
from vemi_kit.zoo.restorers import SRResNet, UNetRestorer
from vemi_kit.zoo.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator, prune_channels
from vemi_kit.zoo.translators import PatchGAN, ResNetGenerator, UNetGenerator
from vemi_kit.zoo.weights import load_basicsr, load_cyclegan, load_stylegan2

SECONDS, EXAMPLES, OBSCURE = 20, 25, .02


# Arguments: a value that fits, and strategies for values that do not. A strategy gives (what it is,
# value, refuse): with `refuse` a call that goes through is silent.
@dataclass
class Arg:
    good: object                                # a value, or a function without arguments that makes one
    odd: st.SearchStrategy
    names: str = ""                             # what else a message may call the argument, as a pattern

    def value(self): return self.good() if callable(self.good) else self.good


def case(what, refuse=True): return lambda value: (what, value, refuse)
def cases(**values): return st.sampled_from([(k.replace("_", " "), v, True) for k,v in values.items()])


OTHERS = cases(none=None, string="x", list=[1.], number=3, dict={}, complex=2j)


def pictures(*shape, low=-1, high=1, paired=False, names="", size=True, empty=True, scaled=True,
    channels=True, seed=0, finite=True, halves=True):
    "A batch of pictures, with what people give in its place."
    def good(): return torch.rand(shape, generator=torch.Generator().manual_seed(seed))*(high-low) + low
    def spoilt(value):
        def spoil(at):
            x = good()
            x.view(-1)[at % x.numel()] = value
            return x
        return spoil
    place = st.integers(0, math.prod(shape)-1)
    odd = [
        st.sampled_from([torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64]).map(
            lambda d: (str(d), good().to(d), True)),
        st.builds(lambda k: good().flatten(0, k), st.integers(1, 2)).map(case("too few dimensions")),
        st.just(("too many dimensions", good()[None], True)),
        st.just(("a numpy array", good().numpy(), True)), OTHERS.filter(lambda c: c[0] != "list"),
        st.just(("nested lists", good().tolist(), True)),
    ]
    if halves: odd += [st.just((str(d), good().to(d), False)) for d in (torch.float64, torch.float16,
        torch.bfloat16)]
    if finite:
        odd += [st.just(("no data", good().to("meta"), False)), st.just(("sparse", good().to_sparse(), False))]
        for v in (math.nan, math.inf,
            -math.inf): odd.append(place.map(spoilt(v)).map(case(f"a value of {v}")))
    if scaled: odd.append(st.floats(20, 127).map(lambda k: (f"values times {k:.3g}", (good()-low)*k + 1,
        True)))
    if empty: odd.append(st.just(("no pictures", good()[:0], True)))
    if channels: odd.append(st.sampled_from([2, 4, 7]).map(lambda c: ("other channels",
        good()[:,:1].repeat(1,c,1,1), True)))
    if paired: odd.append(st.integers(1, max(1, shape[0]-1)).map(lambda n: ("fewer", good()[:n], True)))
    if size: odd.append(st.integers(1, 3).map(lambda k: ("another size", good()[...,k:], True)))
    return Arg(good, st.one_of(odd), names)


def latents(b, n, names=""):
    "A batch of latents."
    good = lambda: torch.randn(b, n, generator=torch.Generator().manual_seed(0))
    odd = [st.integers(1, n-1).map(lambda k: ("another length", good()[:,:k], True)), OTHERS,
        st.just(("one dimension", good()[0], True)), st.just(("int64", good().long(), True)),
        st.just(("complex", good().to(torch.complex64), True)), st.just(("a numpy array", good().numpy(),
            True))]
    return Arg(good, st.one_of(odd), names)


def whole(good, low=None, names="", none=False, rest=False):
    "A whole number from `low`; with `rest`, other types are none of its business."
    odd = [st.sampled_from([1.5, math.nan, math.inf, 1j, "3", "x", [2], {}]).map(lambda v: (repr(v), v,
        True))]
    odd.append(st.just(("more than 64 bits", 10**30, True)))
    if low is not None: odd.append(st.integers(-3, low-1).map(case(f"below {low}")))
    if not none: odd.append(st.just(("None", None, True)))
    return Arg(good, st.one_of(odd), names)


def pair(good, *odd): return Arg(good, cases(number=.5, words=("a","b"), one=(.5,), three=(0,1,2), text="x",
    **{f"case {i}": v for i,v in enumerate(odd)}))


def real(good, low=None, open_low=False, high=None, names="", none=False):
    "A finite number from `low` (or above it) to `high`."
    odd = [st.sampled_from([math.nan, math.inf, -math.inf, 1j, "0.5", [1.]]).map(lambda v: (repr(v), v,
        True))]
    if low is not None: odd.append(st.floats(-1e3, low-1e-6).map(case(f"below {low}")))
    if open_low: odd.append(st.just((f"{low}", low, True)))
    if high is not None: odd.append(st.floats(high+1e-6, 1e3).map(case(f"above {high}")))
    if not none: odd.append(st.just(("None", None, True)))
    return Arg(good, st.one_of(odd), names)


def network(good, names=""):
    return Arg(good, st.one_of(OTHERS, st.just(("a tensor", torch.zeros(2), True)), st.just(("a class",
        nn.Linear, True))), names)


def choice(good, names="", none=False):
    odd = [("a word", "nonsense", True), ("an empty word", "", True), ("a number", 3.5, True), ("a list",
        [good], True)]
    return Arg(good, st.sampled_from(odd + ([] if none else [("None", None, True)])), names)


@functools.cache
def garbage():
    "A file of text in place of weights."
    path = Path(tempfile.mkdtemp())/"garbage.pt"
    path.write_text("no weights")
    return path


@functools.cache
def kept():
    "A folder for what doors write."
    return Path(tempfile.mkdtemp())


@functools.cache
def kept_student(): return save_student(SNGenerator(8, 1, 4), kept()/"student")


def weights(good=None, names=""):
    "A file of weights."
    odd = [("no such file", "nowhere.pt", True), ("a folder", "/", True), ("not weights", garbage(), True)]
    odd += [("an empty dict", {}, True), ("a list", [1], True), ("a dict of numbers", {"a": 1}, True),
        ("a number", 3, True)]
    return Arg(good, st.sampled_from(odd), names or "file|weights|state|folder|garbage|nowhere|source")


@functools.cache
def kept_onnx(): return export_onnx(SNGenerator(8, 1, 2, 4).eval(), kept()/"g.onnx", torch.zeros(2, 4), seconds=None).path


def fresh_folder():
    "A folder that is not there yet."
    return Path(tempfile.mkdtemp())/"new"


def small_compress(teacher, data, out, **kw):
    if isinstance(teacher, nn.Module): teacher = teacher.eval()
    return compress(teacher, data, out, device="cpu", verbose=False, **kw)


# Doors: a function and its arguments by name.
conv = lambda c=1, o=1: nn.Conv2d(c, o, 3, padding=1)
t16 = lambda **kw: pictures(4, 1, 16, 16, paired=True, **kw)


def tamed(): return nn.Sequential(conv(), nn.Tanh())


def tighten(cls):
    def call(t, s, energy_steps=1):
        vem = cls.like(torch.zeros(4,1,16,16), torch.zeros(4,1,16,16), width=2, **(dict(n_steps=2)))
        step = vem.tighten(t, s, energy_steps=energy_steps)
        return dict(step)
    return call


def step_loss(s):
    t = torch.zeros(4,1,16,16)
    return VEM.like(t, t, width=2, n_steps=2).tighten(t, t).loss(s)


def like(cls):
    def call(**kw):
        cls.like(**kw)
    return call


def set_later(cls, **small):
    "A setting that changes in somebody's loop."
    def call(**kw):
        t = torch.zeros(4, 1, 8, 8)
        term = cls.like(t, t, width=2, **small)
        for k,v in kw.items(): setattr(term, k, v)
        return term.tighten(t, t).loss(t)
    return call


def distil(data, **kw):
    if torch.is_tensor(data): data = [data]
    distill(**{**dict(n_steps=1, device="cpu", progress=False, data=data), **kw})
def objective(t, s): return Objective("l1 + l2").loss(t, t, s)[0]
def read(batch): return Reader()(conv(), batch)
def frechet(reference, x): return FrechetDistance(reference, "noise", extractor=nn.Flatten())(x).value
def frechet_of(x): return FrechetDistance(torch.rand(80,1,4,4)*2 - 1, "noise",
    extractor=nn.Flatten())(x).value
def train(net_g, net_d, n_steps, lr): train_gan(net_g, net_d, Batches(torch.zeros(8,1,8,8), 4), n_steps, lr,
    device="cpu")
def schedule(make): return lambda **kw: [make(**kw)(k) for k in range(4)]


@functools.cache
def small_style(): return StyleGAN2Generator(8, 1, width=2, z_dim=4, n_mapping=1).eval()


def forward(make, **kw):
    net = make(**kw).eval()
    def call(x):
        with torch.no_grad(): return net(x)
    return call


@functools.cache
def teacher(): return ResNetGenerator(4, 1, 1, 1).eval()


zoo = dict(width=whole(4, 1))
DOORS = {
    "VEM.like": (like(VEM), dict(t=t16(channels=False), s=t16(channels=False), width=whole(2, 1), seed=whole(0))),
    "VEM settings": (like(VEM), dict(t=Arg(lambda: torch.zeros(2,1,8,8), None),
        s=Arg(lambda: torch.zeros(2,1,8,8), None),
        n_steps=whole(2, 0), step_size=real(1., 0), lr=real(1e-4, 0), l2=real(.1, 0), lambda_mi=real(.1),
        noise_std=real(.005, 0, none=True), energy_limit=real(1e3, 0, True))),
    "VEM settings later": (set_later(VEM, n_steps=2), dict(n_steps=whole(2, 0), energy_steps=whole(1, 0),
        step_size=real(1., 0), lr=real(1e-4, 0), l2=real(.1, 0), lambda_mi=real(.1),
        noise_std=real(.005, 0, none=True), energy_limit=real(1e3, 0, True),
        clamp=pair((-1,1), (1,-1), (math.nan,1)), betas=pair((0.,.9), (0.,1.), (-.1,.9)))),
    "TiltedVEM settings later": (set_later(TiltedVEM, n_chains=4), dict(n_steps=whole(2, 1),
        energy_steps=whole(1, 0), every=whole(1, 1), n_chains=whole(4, 1), noise_floor=real(.1, 0),
        lr=real(1e-3, 0), lambda_mi=real(.1), trust=real(.5, 0, True))),
    "EnergyNet": (EnergyNet, dict(size=whole(8, 4), channels_t=whole(1, 1), channels_s=whole(1, 1, none=True),
        width=whole(2, 1), n_blocks=whole(1, 1, none=True), precision=choice("float32"))),
    "EnergyNet()": (lambda t, s: EnergyNet(16, 1, 1, width=2)(t, s), dict(t=t16(scaled=False, finite=False),
        s=t16(scaled=False, finite=False))),
    "distill settings": (lambda **kw: distil(teacher=tamed(), student=tamed(), data=torch.zeros(4,1,8,8), **kw),
        dict(betas=pair((.5,.99), (.5,1.), (math.nan,.9)), value_range=pair((-1,1), (1,-1), (math.nan,1)),
        callbacks=Arg(list, cases(number=3, text="x", dict={"a": 1})),
        plan=Arg(None, cases(number=3, text="x", list=[1], words={"nonsense": 1})),
        out=Arg(None, cases(number=3, list=[1], dict={}, bytes=b"x")))),
    "langevin": (lambda s, **kw: langevin(EnergyNet(16, 1, 1, width=2), s, **kw)[0], dict(s=pictures(4, 1, 16, 16,
        scaled=False, size=False, channels=False, empty=False, names="expected t"), n_steps=whole(2, 1),
        step_size=real(1., 0, True), clamp=pair((-1,1), (1,-1), (math.nan,1)))),
    "PerceptualFeatures()": (lambda x: PerceptualFeatures(3, 16)(x), dict(x=pictures(2, 3, 16, 16,
        scaled=False, size=False, empty=False, finite=False))),
    "Guard": (Guard, dict(patience=whole(3, 1), explode=real(10., 1), collapse=real(.01, 0))),
    "load_image": (load_image, dict(path=Arg(None, cases(none=None, number=3, list=["a.png"],
        missing="nowhere.png"), "path|nowhere"))),
    "VEM.tighten": (tighten(VEM), dict(t=t16(), s=t16(), energy_steps=whole(1, none=True))),
    "step.loss": (step_loss, dict(s=t16())),
    "TiltedVEM.like": (like(TiltedVEM), dict(t=t16(), s=t16(channels=False), width=whole(2, 1),
        seed=whole(0))),
    "TiltedVEM.tighten": (tighten(TiltedVEM), dict(t=t16(), s=t16())),
    "distill": (distil, dict(teacher=network(tamed), student=network(tamed), methods=choice("l1",
        "method|formula|term"),
        data=pictures(4, 1, 8, 8, size=False, names="batch|input|picture|s |t ", empty=True, scaled=False),
            n_steps=whole(1, 1), lr=real(1e-3, 0, none=True),
        seed=whole(0), device=choice("cpu", none=True), mixed_precision=choice("no", "precision"),
            log_every=whole(1, 1))),
    "Reader": (read, dict(batch=pictures(2, 1, 8, 8, scaled=False, size=False, finite=False, empty=False,
        names="input|picture|Reader|net"))),
    "Objective.loss": (objective, dict(t=t16(), s=t16())),
    "fidelity": (fidelity, dict(t=t16(), s=t16(seed=1))),
    "FrechetDistance": (lambda reference: frechet(reference, torch.zeros(40,1,4,4)),
        dict(reference=pictures(40, 1, 4, 4, names="picture|batch", size=False, channels=False))),
    "FrechetDistance()": (frechet_of, dict(x=pictures(40, 1, 4, 4, names="picture|batch|generated"))),
    "conditional_bound": (conditional_bound, dict(t=pictures(64, 1, 2, 2, paired=True, scaled=False,
        size=False, channels=False),
        s=pictures(64, 1, 2, 2, paired=True, scaled=False, size=False, channels=False), noise_floor=real(.1,
            0), seed=whole(0))),
    "prune": (prune, dict(teacher=network(teacher), macs_ratio=real(2., 1, names="ratio"), sample=pictures(1,
        1, 8, 8, scaled=False, size=False),
        importance=choice("norm"), least=whole(1, 1))),
    "shrink": (shrink, dict(teacher=network(teacher), macs_ratio=real(2., 0, True, names="ratio"),
        sample=pictures(1, 1, 8, 8, scaled=False, size=False))),
    "shrink width": (shrink, dict(teacher=network(teacher), width=whole(2, 1))),
    "count_macs": (lambda net, x, convention: count_macs(net, x, convention=convention),
        dict(net=network(conv), x=pictures(1, 1, 8, 8, scaled=False, size=False, empty=False,
            names="input|sample"), convention=choice("input"))),
    "layer_costs": (lambda net, x: layer_costs(net, x), dict(net=network(conv), x=pictures(1, 1, 8, 8,
        scaled=False, size=False, empty=False, names="input|sample"))),
    "count_params": (count_params, dict(net=network(conv))),
    "latency": (lambda net, x, **kw: latency(net, x, **kw).ms, dict(net=network(conv), x=pictures(1, 1, 8, 8,
        scaled=False, size=False, names="input|sample"),
        seconds=real(.001, 0), warmup=whole(1, 0), threads=whole(1, 1, none=True), batch=whole(1, 1,
            none=True))),
    "resize": (resize, dict(x=pictures(2, 3, 8, 8, scaled=False, size=False, empty=False, channels=False),
        size=whole(4, 1))),
    "Batches": (Batches, dict(items=Arg(lambda: torch.zeros(8,1,4,4), OTHERS), batch_size=whole(2, 1),
        seed=whole(0))),
    "Latents": (Latents, dict(shape=whole(4, 1), batch_size=whole(2, 1), seed=whole(0))),
    "photo_crops": (photo_crops, dict(size=whole(8, 1), n=whole(2, 1), split=choice("train"), scale=real(.5,
        0, True, 1), seed=whole(0))),
    "TeacherCache": (TeacherCache, dict(teacher=network(conv), pool=pictures(4, 1, 8, 8, scaled=False,
        size=False), batch_size=whole(2, 1))),
    "constant": (schedule(constant), dict(value=real(1.))),
    "linear": (schedule(linear), dict(a=real(1.), b=real(0.), n_steps=whole(3, 1))),
    "cosine": (schedule(cosine), dict(a=real(1.), b=real(0.), n_steps=whole(3, 1))),
    "exponential": (schedule(exponential), dict(a=real(1., 0, True), b=real(.1, 0, True), n_steps=whole(3,
        1))),
    "warmup": (schedule(warmup), dict(n_steps=whole(2, 0), schedule=real(1.), before=real(0.))),
    "alternate": (schedule(alternate), dict(n_energy=whole(1, 0), n_student=whole(1, 0))),
    "student_plan": (lambda **kw: student_plan(**kw)(3), dict(n_steps=whole(9, 1), lambda_mi=real(.1),
        warm=real(.2, 0, high=1), ramp=choice("cosine"),
        ramp_share=real(.3, 0, high=1), energy_steps=whole(1, 0))),
    "SuperResolution": (SuperResolution, dict(scale=whole(2, 1, none=True))),
    "degradation": (degradation, dict(spec=choice("x2", "degradation|damage"))),
    "enhance": (lambda x, **kw: enhance(load_restorer("x2", "cpu"), x, **kw), dict(x=pictures(1, 3, 9, 9,
        size=False, names="picture|enhance:"),
        tile=whole(64, 1, none=True), batch_size=whole(2, 1), overlap=whole(8, 0, none=True))),
    "show_images": (lambda x, n_cols: show_images(x, n_cols) and None, dict(x=pictures(4, 1, 8, 8,
        scaled=False, size=False), n_cols=whole(2, 1))),
    "split_view": (split_view, dict(before=pictures(1, 1, 8, 8, scaled=False), after=pictures(1, 1, 8, 8, scaled=False),
        position=real(.5, 0, high=1))),
    "SNGenerator": (SNGenerator, dict(size=whole(8, 8), channels=whole(1, 1), z_dim=whole(4, 1), **zoo)),
    "SNDiscriminator": (SNDiscriminator, dict(size=whole(8, 8), channels=whole(1, 1), **zoo)),
    "ResNetGenerator": (ResNetGenerator, dict(n_blocks=whole(1, 0), c_in=whole(1, 1), c_out=whole(1, 1),
        norm=choice("batch"),
        dropout=real(.1, 0, high=1), **zoo)),
    "UNetGenerator": (UNetGenerator, dict(n_downs=whole(2, 2), c_in=whole(1, 1), c_out=whole(1, 1),
        norm=choice("batch"),
        dropout=real(.1, 0, high=1), level_blocks=whole(0, 0), **zoo)),
    "PatchGAN": (PatchGAN, dict(n_layers=whole(1, 1), channels=whole(1, 1), norm=choice("batch"), **zoo)),
    "SRResNet": (SRResNet, dict(n_blocks=whole(1, 0), scale=whole(2, 1), channels=whole(1, 1), **zoo)),
    "UNetRestorer": (UNetRestorer, dict(n_downs=whole(1, 1), channels=whole(1, 1), level_blocks=whole(0, 0),
        **zoo)),
    "StyleGAN2Generator": (StyleGAN2Generator, dict(size=whole(8, 8), channels=whole(1, 1), width=whole(2, 1,
        none=True), z_dim=whole(4, 1),
        n_mapping=whole(1, 0), lr_mapping=real(.01, 0, True), multiplier=whole(2, 1), noise=choice("auto"),
        widths=Arg(lambda: [2]*4, OTHERS.filter(lambda c: c[0] not in ("none",)) | cases(zero=[0]*4,
            half=[1.5]*4, nan=[math.nan]*4, words=["a"]*4)))),
    "StyleGAN2Discriminator": (StyleGAN2Discriminator, dict(size=whole(8, 8), channels=whole(1, 1),
        width=whole(2, 1, none=True),
        multiplier=whole(2, 1), group=whole(4, 1))),
    "SNGenerator()": (forward(SNGenerator, size=8, width=2, z_dim=4), dict(x=latents(2, 4, "latent"))),
    "SNDiscriminator()": (forward(SNDiscriminator, size=8, width=2), dict(x=pictures(2, 1, 8, 8,
        scaled=False, finite=False, names="Discriminator", empty=False))),
    "ResNetGenerator()": (forward(ResNetGenerator, width=2, n_blocks=1, c_in=1), dict(x=pictures(2, 1, 8, 8,
        scaled=False, finite=False, names="Generator", empty=False))),
    "UNetGenerator()": (forward(UNetGenerator, width=2, n_downs=2, c_in=1), dict(x=pictures(2, 1, 8, 8,
        scaled=False, finite=False, names="Generator", empty=False))),
    "PatchGAN()": (forward(PatchGAN, width=2, n_layers=1, channels=1), dict(x=pictures(2, 1, 8, 8,
        scaled=False, finite=False, names="PatchGAN", size=False, empty=False))),
    "SRResNet()": (forward(SRResNet, width=2, n_blocks=1, channels=1), dict(x=pictures(2, 1, 8, 8,
        scaled=False, finite=False, names="SRResNet", size=False, empty=False))),
    "UNetRestorer()": (forward(UNetRestorer, width=2, channels=1), dict(x=pictures(2, 1, 8, 8, scaled=False,
        finite=False, names="Restorer", size=False, empty=False))),
    "StyleGAN2Generator()": (lambda z, truncation: small_style()(z, truncation, w_mean=torch.zeros(4)),
        dict(z=latents(2, 4, "latent"), truncation=real(.5))),
    "StyleGAN2Discriminator()": (forward(StyleGAN2Discriminator, size=8, channels=1, width=2),
        dict(x=pictures(2, 1, 8, 8, scaled=False, finite=False, names="Discriminator",
        empty=False))),
    "mean_w": (lambda n: small_style().mean_w(n), dict(n=whole(4, 1))),
    "mix": (lambda cut: small_style().mix(torch.zeros(2,4), torch.ones(2,4), cut), dict(cut=whole(1, 0))),
    "prune_channels": (lambda keep: prune_channels(small_style(), keep) and None,
        dict(keep=Arg(lambda: {0: [0]}, OTHERS.filter(lambda c: c[0] != "dict") |
        cases(negative={0: [-1]}, empty={0: []}, half={0: [.5]}, words={0: "ab"}, twice={0: [0,0]},
            short=[None], far={9: [0]}), "keep|channels|places"))),
    "train_gan": (train, dict(net_g=network(lambda: SNGenerator(8, 1, 2, 4)),
        net_d=network(lambda: SNDiscriminator(8, 1, 2)), n_steps=whole(1, 0), lr=real(1e-4, 0))),
    "digits_teacher": (lambda path: digits_teacher(path) and None, dict(path=weights(None,
        "weights|file|path"))),
    "load_cyclegan": (load_cyclegan, dict(source=weights())),
    "load_stylegan2": (load_stylegan2, dict(source=weights())),
    "load_basicsr": (load_basicsr, dict(source=weights())),
    "load_nets": (lambda path: load_nets(path, net=conv()), dict(path=weights(names="file|path|weights"))),
    "load_teacher": (lambda source, **kw: str(load_teacher(source, **kw)), dict(source=weights(conv, "source|student|weights|file|garbage|nowhere"),
        latents=whole(None, 1, none=True), channels=whole(1, 1, none=True))),
    "save_student": (lambda student: save_student(student, kept()/"saved") and None,
        dict(student=network(lambda: SNGenerator(8, 1, 4)))),
    "load_student": (lambda folder, **kw: load_student(folder, **kw) and None, dict(folder=weights(kept_student,
        "file|config|folder|student|garbage|nowhere"), device=choice("cpu"))),
    "compress": (lambda **kw: small_compress(**kw) and None, dict(teacher=weights(lambda: SNGenerator(8, 1, 4),
        "source|student|weights|file|garbage|nowhere|teacher"), data=Arg("latents", cases(number=3, none=None,
            words="nonsense", missing="no_such:thing", dict={}, pair=(1, 2)), "folder|nonsense"),
        recipe=choice("l1", "method|formula|phase|term"), steps=whole(1, 1, "n_steps", none=True),
        n_held=whole(8, 8), batch_size=whole(2, 1), seed=whole(0), width=whole(2, 1),
        teacher_read=Arg(None, cases(number=3, words="NCHW", dict={"nonsense": 1}, layout=dict(layout="x")), "layout"),
        out=Arg(lambda: fresh_folder(), cases(number=3, list=[1], bytes=b"x")))),
    "deploy": (lambda student, samples, **kw: deploy(student, fresh_folder(), samples, **kw) and None, dict(
        student=network(lambda: SNGenerator(8, 1, 2, 4).eval()), samples=latents(4, 4, "latent|input|SNGenerator"),
        int8=Arg(False, None), keep=Arg((), cases(number=3, text="body", list=[1])), seconds=real(None, 0, none=True),
        tolerance=real(1e-4, 0), multiple=whole(0, 0, none=True), noise=choice("stored"),
        value_range=pair((-1,1), (1,-1), (math.nan,1), None))),
    "export_onnx": (lambda student, sample, path=None, **kw: export_onnx(student, path or fresh_folder(), sample,
        **kw) and None, dict(student=network(lambda: SNGenerator(8, 1, 2, 4).eval()),
        sample=latents(2, 4, "latent|input|SNGenerator"), seconds=real(None, 0, none=True), tolerance=real(1e-4, 0),
        path=Arg(None, cases(number=3, list=[1])), multiple=whole(0, 0, none=True), noise=choice("stored"),
        value_range=pair((-1,1), (1,-1), (math.nan,1), None))),
    "quantise": (lambda **kw: len(quantise(**kw)), dict(source=weights(kept_onnx, "source"),
        inputs=Arg(lambda: list(torch.randn(4, 4).split(1)), cases(none=None, number=3, empty=[], numbers=[1., 2.],
            batch=[torch.zeros(2, 4)], other=[torch.zeros(1, 5)], nan=[torch.full((1, 4), math.nan)])),
        keep=Arg((), cases(number=3, text="body", list=[1], unknown=("nothing",))))),
    "coin_nats": (lambda t, s, **kw: coin_nats(t, s, n_steps=2, **kw) and None, dict(t=pictures(64, 1, 4, 4,
        paired=True, scaled=False, size=False, channels=False, halves=False), s=Arg(lambda: pictures(64, 1, 4, 4, seed=1).good(), None), seed=whole(0),
        clip=real(4., 0, True), confidence=real(.95, 0, True, 1))),
    "read_phases": (lambda text: read_phases(text) and None, dict(text=Arg("l1 for 80%, then l1",
        cases(none=None, number=3, list=["l1"], empty="", share="l1 for 200%, then l1"), "phase|formula"))),
    "load_restorer": (lambda source: load_restorer(source, "cpu") and None, dict(source=weights("x2",
        "file|student|source"))),
}
SEEN = []           # (door, argument, what it was, verdict, message) of all calls


class Hang(BaseException): pass


@contextmanager
def time_limit(seconds):
    "Raise `Hang` in the main thread after so long."
    def stop(*_): raise Hang()
    was = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, was)


def finite(x):
    "Is nothing in a result NaN or infinite?"
    if torch.is_tensor(x): return bool(torch.isfinite(x).all())
    if isinstance(x, float): return math.isfinite(x)
    if isinstance(x, dict): return all(map(finite, x.values()))
    return all(map(finite, x)) if isinstance(x, (list, tuple)) else True


def verdict(call, args, name, names, refuse):
    "One of right, told, obscure, silent, hang; and the message."
    clear = (ValueError, TypeError, FloatingPointError, FileNotFoundError)
    try:
        with time_limit(SECONDS): result = call(**args)
    except Hang: return "hang", f"over {SECONDS} s"
    except Exception as e:
        named = re.search(rf"(?<![a-z_]){name}(?![a-z_])" + (f"|{names}" if names else ""), str(e))
        return "told" if isinstance(e, clear) and named else "obscure", f"{type(e).__name__}: {e}"[:160]
    if refuse: return "silent", "went through"
    return ("right", "") if finite(result) else ("silent", "a result that is not finite")


@pytest.mark.parametrize("cls, small", [(VEM, dict(n_steps=2)), (TiltedVEM, dict(n_chains=4))])
def test_a_weight_that_overflows_is_an_error(cls, small):
    t = pictures(4, 1, 8, 8).good()
    term = cls.like(t, -t, width=2, **small)
    step = term.tighten(t, -t)
    term.lambda_mi = 1e308
    with pytest.raises(FloatingPointError, match="Lower lambda_mi"): step.loss(-t)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", DOORS)
def test_odd_arguments(door):
    call, args = DOORS[door]
    free = [n for n,a in args.items() if a.odd is not None]
    drawn = st.one_of([st.tuples(st.just(n), args[n].odd) for n in free])
    found = {}

    @settings(max_examples=EXAMPLES*max(1, len(free)//3), derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck))
    @given(drawn)
    def try_one(odd):
        name, (what, value, refuse) = odd
        if (name, what) in found: return
        given_ = {n: a.value() for n,a in args.items()} | {name: value}
        found[name, what] = verdict(call, given_, name, args[name].names, refuse)

    if all(a.good is not None for a in args.values()):
        fits = verdict(call, {n: a.value() for n,a in args.items()}, "", "", False)
        assert fits[0] == "right", f"the example that fits: {fits}"
    try_one()
    SEEN.extend((door, *k, *v) for k,v in found.items())
    bad = [f"{door}({n}: {what}): {v}: {told}" for (n, what),(v,
        told) in found.items() if v in ("silent","hang")]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("term", [VEM, TiltedVEM])
def test_whole_numbers_of_numpy_are_whole_numbers(term):
    x = torch.rand(4, 1, 16, 16)*2 - 1
    makes = [term.like(x, x, width=kind(2), seed=kind(3)) for kind in (int, np.int64, np.int32)]
    energies = [m.tighten(x, x.flip(0)).energy_neg for m in makes]
    assert energies[0] == energies[1] == energies[2]


@pytest.mark.parametrize("callbacks, told", [
    (3, "callbacks: expected list or tuple, got 3"), ([3], "callbacks: expected Callback, got 3"),
    ([History(), History], "callbacks: expected Callback, got <class"),
])
def test_what_is_no_callback(callbacks, told):
    x = torch.zeros(4,1,8,8)
    with pytest.raises(TypeError, match=told): distil(teacher=tamed(), student=tamed(), data=x, callbacks=callbacks)


def test_few_errors_are_obscure():
    "Runs after the doors, in this file's order."
    if not SEEN: pytest.skip("no door was tried")
    bad = [f"{door}({n}: {what}): {told}" for door,n,what,v,told in SEEN if v == "obscure"]
    print(f"{len(SEEN)} odd arguments, {len(bad)} obscure errors")
    assert len(bad) <= OBSCURE*len(SEEN), f"{len(bad)} of {len(SEEN)}:\n" + "\n".join(bad)
