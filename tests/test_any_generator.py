"Networks that are not the kit's: other ranges, axes, inputs and outputs, functions, and what they say in error."
from dataclasses import dataclass
import copy, pytest, torch
from torch import nn
from vemi_kit.callbacks import History
from vemi_kit.core import set_seed
from vemi_kit.data.batches import Batches, Stream
from vemi_kit.distill import distill
from vemi_kit.distiller import Distiller
from vemi_kit.deploy.folder import load_student, save_student
from vemi_kit.enhance.restorer import Restorer, load_restorer, save_restorer
from vemi_kit.enhance.tiles import enhance
from vemi_kit.ship.compress import compress
from vemi_kit.zoo.restorers import UNetRestorer

QUIET = dict(device="cpu", progress=False, cache=False)
X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))*2 - 1


def conv(width, seed=0, last=nn.Tanh):
    set_seed(seed)
    layers = nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1), last()
    return nn.Sequential(*layers)


class Bytes(nn.Module):
    "A network of another house: reads and gives (b, h, w, c), its answers from 0 to 255."
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x): return (self.net(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)+1)*127.5


def test_teacher_and_student_are_read_apart():
    "A teacher in bytes, channels last, and a student in [-1, 1]: to the same answer, with the same figures."
    teacher, how = conv(16), dict(value_range=(0, 255), layout="NHWC")
    data, kw = Batches(X, 8), dict(n_steps=12, lr=1e-2, log_every=1, **QUIET)
    plain = distill(teacher, conv(4, 1), data, "l1 + vem", **kw)
    apart = distill(Bytes(teacher), conv(4, 1), data, "l1 + vem", teacher_read=how, **kw)
    assert apart[History]["l1"] == pytest.approx(plain[History]["l1"], abs=1e-4)
    assert apart[History]["l1"][-1] < apart[History]["l1"][0]
    with pytest.raises(ValueError, match="value_range"):
        distill(Bytes(teacher), conv(4, 1), data, "l1", teacher_read=dict(layout="NHWC"), **kw)
    back = distill(teacher, Bytes(conv(4, 1)), data, "l1 + features", student_read=how, **{
        **kw, "settings": dict(features=dict(layers={"0": "net.0"}))})
    assert back[History]["l1"][-1] < back[History]["l1"][0]


def test_overshoot_is_found_in_every_batch():
    "A restorer without a last activation leaves its range at the third batch."
    gain = lambda x: x*1.06
    data = Stream([X[:8]*.5, X[8:16]*.5, X[16:]])
    go = lambda **kw: distill(gain, conv(4), data, "l1", n_steps=3, **QUIET, **kw)
    with pytest.raises(ValueError, match=r"the teacher .* got \[-1.06, 1.06\]"): go()
    for read in (dict(tolerance=.1), dict(clamp=True)): assert go(teacher_read=read).step == 3


def test_the_chain_keeps_to_the_range_that_there_is():
    def clamp(**kw):
        r = distill(conv(8, last=nn.Identity), conv(4), Batches(X, 8), "l1 + vem", n_steps=1, **QUIET, **kw)
        return r.objective.methods["vem"].vem.clamp
    assert clamp(value_range=(-9, 9)) == (-1, 1)
    assert clamp(value_range=None) is None
    assert clamp(value_range=None, settings=dict(vem=dict(clamp=(-3, 3)))) == (-3, 3)


@dataclass
class Answer:
    image: torch.Tensor
    mask: torch.Tensor


class Conditional(nn.Module):
    "`forward(z, label=None)`, and an answer with more than pictures."
    def __init__(self, width, answer=lambda y: y):
        super().__init__()
        self.emb, self.answer = nn.Embedding(10, 4), answer
        self.body = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 64), nn.Tanh())
    def forward(self, z, label=None):
        label = torch.zeros(len(z), dtype=torch.long) if label is None else label
        return self.answer(self.body(torch.cat([z, self.emb(label)], 1)).view(-1, 1, 8, 8))


class Styles(Conditional):
    "As in StyleGAN2: a list of latents."
    def forward(self, styles): return super().forward(styles[0])


Z, LABEL = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 10


@pytest.mark.parametrize("teacher, data, kw", [
    (lambda: Conditional(16), (Z, LABEL), {}),
    (lambda: Conditional(16, lambda y: Answer(y, y > 0)), (Z, LABEL), {}),
    (lambda: Conditional(16, lambda y: (y, [y, y])), (Z, LABEL), {}),
    (lambda: Conditional(16, lambda y: dict(rgb=y, aux=y*0)), (Z, LABEL), dict(teacher_read=dict(output="rgb"))),
    (lambda: Styles(16), (Z, LABEL), dict(teacher_read=dict(inputs=lambda b: (([b[0]],), {})))),
    (lambda: Conditional(16).forward, (Z, LABEL), {}),
    (lambda: lambda z, label=None: torch.sin(z.repeat(1, 16)*(1+label[:, None])).view(-1, 1, 8, 8), (Z, LABEL), {}),
], ids=["label", "dataclass", "tuple", "dict", "list", "method", "function"])
def test_kinds_of_inputs_and_answers(teacher, data, kw):
    set_seed(0)
    teacher, student = teacher(), Conditional(8)
    r = distill(teacher, student, Batches(data, 8), "l1 + vem", n_steps=12, lr=1e-2, log_every=1, **QUIET, **kw)
    assert sum(r[History]["l1"][-3:]) < sum(r[History]["l1"][:3])


def test_a_label_is_not_lost():
    "Told apart by their labels only, two answers differ, and the student learns both."
    set_seed(0)
    seen = []
    teacher = Conditional(16)
    teacher.emb.register_forward_hook(lambda m, i, o: seen.append(i[0].clone()))
    distill(teacher, Conditional(8), Stream([(Z[:4], LABEL[:4])]), "l1", n_steps=1, **QUIET)
    assert all(s.equal(LABEL[:4]) for s in seen)


def test_a_diffusers_network():
    diffusers = pytest.importorskip("diffusers")
    def net(width):
        set_seed(0)
        blocks = dict(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
        return diffusers.UNet2DModel(8, 1, 1, block_out_channels=(width,), layers_per_block=1, norm_num_groups=4, **blocks)
    data = Stream([(X[:8], torch.full((8,), 100)), (X[8:16], torch.full((8,), 500))])
    kw = dict(n_steps=6, lr=1e-2, log_every=1, value_range=None, inputs=2, **QUIET)
    r = distill(net(16), net(8), data, "l1", **kw)
    assert r[History]["l1"][-1] < r[History]["l1"][0]


@pytest.mark.parametrize("body, told", [
    (lambda m, x: m.a(x.flatten(1)), r"Odd: .*float32 \(8, 1, 8, 8\).*in layer 'a.0' \(Conv2d\).*pass inputs="),
    (lambda m, x: x.shape[9], "IndexError in line"),
    (lambda m, x: m.nothing, "AttributeError in line"),
    (lambda m, x: {}["a"], "KeyError in line"),
    (lambda m, x: int("x"), "ValueError in line"),
])
def test_an_error_of_a_foreign_network_is_told(body, told):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(1, 1, 3))
        def forward(self, x): return body(self, x)
    for pair in ((Odd(), conv(4)), (conv(4), Odd())):
        with pytest.raises(ValueError, match=told): distill(*pair, Batches(X, 8), "l1", n_steps=1, **QUIET)


def test_a_segmentation_network():
    "Logits: no range, no clamp; the divergence falls, and the energy's term goes with it."
    def net(width, seed):
        set_seed(seed)
        return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 5, 1))
    teacher, labels = net(16, 0), (X[:, 0] > 0).long()
    nn.init.normal_(teacher[2].weight, std=2.)                              # sure of itself: logits up to 8
    kw = dict(n_steps=30, lr=5e-2, log_every=1, value_range=None, **QUIET)
    r = distill(teacher, net(8, 1), Batches((X, labels), 8), "kl + 0.1*cross_entropy + 0.01*vem", **kw)
    rows = r[History]
    assert sum(rows["kl"][-5:]) < .7*sum(rows["kl"][:5]) and rows["kl/same"][-1] > rows["kl/same"][0]
    assert r.objective.methods["vem"].vem.clamp is None
    with torch.no_grad(): assert teacher(X).abs().max() > 2
    with pytest.raises(ValueError, match="value_range=None to take its values as they are"):
        distill(teacher, net(8, 1), Batches((X, labels), 8), "kl", n_steps=1, **QUIET)


class Outline(nn.Module):
    "A small network of one's own, which a folder names as module:class."
    def __init__(self, width=4, out=1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, out, 1))
        self.config = dict(width=width, out=out)
    def forward(self, x): return self.body(x)


def test_compress_reads_teacher_and_student_apart(tmp_path):
    "Bytes and channels last to a network of the kit's kind, and logits to logits, with their mean IoU."
    pytest.importorskip("onnxruntime")
    x = torch.rand(80, 1, 16, 16, generator=torch.Generator().manual_seed(1))*2 - 1
    set_seed(0)
    kw = dict(steps=20, n_held=8, recipe="l1", device="cpu")
    made = compress(Bytes(conv(8)), x, tmp_path/"bytes", student=Outline(), **kw,
                    teacher_read=dict(value_range=(0, 255), layout="NHWC"))
    assert made.verdict.figures["psnr"] > 10 and made.costs[1][1] != "?"
    with torch.no_grad(): assert made.student(x).abs().max() < 3
    kw["recipe"] = "kl + 0.01*vem"
    made = compress(Outline(16, 3), x, tmp_path/"classes", student=Outline(4, 3), **kw,
                    teacher_read=dict(value_range=None), student_read=dict(value_range=None))
    assert 0 < made.verdict.figures["mean_iou"] <= 1
    assert "mean IoU" in (tmp_path/"classes/report.md").read_text(encoding="utf-8") + str(made)


def test_any_restorer_is_tiled_and_kept(tmp_path):
    "A network of this file: found out by trying, tiled, written, and read with trust only."
    x = torch.rand(1, 1, 60, 75, generator=torch.Generator().manual_seed(0))*2 - 1
    r = Restorer(Outline(4), "noise").eval()
    assert (r.channels, r.scale, r.grid) == (1, 1, 1)
    with torch.no_grad(): assert torch.allclose(enhance(r, x, tile=32), r(x), atol=1e-6)
    path = save_restorer(tmp_path/"own.safetensors", r, half=False)
    assert load_restorer(path, "cpu", trust=True)(x).equal(r(x))
    with pytest.raises(PermissionError, match="trust=True"): load_restorer(path, "cpu")
    ours = Restorer(UNetRestorer(4, 1), "noise").eval()
    again = load_student(save_student(ours, tmp_path/"folder"))
    y = x.expand(-1, 3, -1, -1)
    assert isinstance(again, Restorer) and again.task == ours.task and again(y).equal(ours(y))


class Crops(torch.utils.data.Dataset):
    "A data set that is no tensor, of pictures of one side."
    def __init__(self, n, side): self.n, self.side = n, side

    def __len__(self): return self.n

    def __getitem__(self, i): return torch.full((3, self.side, self.side), i/self.n).clamp(-1, 1)


@pytest.mark.parametrize("n, side, n_steps, said", [
    (24, 16, 12, "answers to 24 inputs are computed once"),        # each item once, not 8,192 draws
    (24, 16, 2, "comes to few inputs twice"),
    (4000, 256, 3000, "more than 1.0"),                            # refused only where it was asked for
])
def test_recipes_remember_what_fits(n, side, n_steps, said):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
    kw = dict(n_steps=n_steps, device="cpu")
    run = Distiller(net, copy.deepcopy(net), "fast", Batches(Crops(n, side), 4), **kw)
    plain = Distiller(net, copy.deepcopy(net), "l1", Batches(Crops(n, side), 4), cache=False, **kw)
    for r in (run, plain): r.prepare()
    assert said in run.notes()["cache"]
    assert all(torch.equal(run.batch(i), plain.batch(i)) for i in range(8))
    asked = Distiller(net, copy.deepcopy(net), "fast", Batches(Crops(4000, 256), 4), cache=4000, **kw)
    with pytest.raises(ValueError, match="take 682|take 1365"): asked.prepare()
