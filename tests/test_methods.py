"""Every method, with VEM and alone, on every kind of generator, through the same Distiller: small real runs. Of the
runs alone a third has its turn each day; `pytest -m slow tests/test_methods.py` makes the others.
"""
import copy, datetime
import pytest, torch, torch.nn.functional as F
from torch import nn
from vemi_kit.study.combinations import CRITIC_METHODS, KINDS, Same, critic_settings
from vemi_kit.core import set_seed
from vemi_kit.callbacks import Callback, History
from vemi_kit.distill import distill
from vemi_kit.methods.base import Objective
from vemi_kit.methods.formula import known_methods
from vemi_kit.methods.cagc import contrast_mask
from vemi_kit.pruning import prune
from vemi_kit.zoo.dcgan import SNDiscriminator


METHODS = [
    "l1", "l2", "ssim", "style", "perceptual", "tv", "vid", "vid_features", "features", "channel",
    "attention", "similarity", "crd", "cat", "cagc", "adversarial", "omgd", "relativistic", "score",
    "dcd", "moments",
]
QUIET = dict(device="cpu", progress=False)
# somebody else moves, so the student's loss need not fall
GAMES = ("adversarial", "omgd", "relativistic", "score")


@pytest.fixture(scope="module")
def task():
    made = {}
    def get(name):
        if name not in made:
            set_seed(0)
            made[name] = KINDS[name]()
            made[name]["batch"] = made[name]["data"].batch(0)
        return made[name]
    return get


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a, b))


def run(t, formula, n_steps=6, lr=2e-3, **kw):
    "A run in fresh copies; the finished run, the student as it was, and the teacher's state as it was."
    set_seed(0)
    teacher, student = t["teacher"], copy.deepcopy(t["student"])
    names = [f.split("*")[-1].strip() for f in formula.split("+")]
    settings = {**critic_settings(t), **t}
    given = ("adversarial", "omgd", "cagc", *CRITIC_METHODS)
    args = {k: settings[k] for k in given if k in names and k in settings}
    objective = Objective(formula, **args, vem=dict(n_steps=4))
    was = [copy.deepcopy(list(n.state_dict().values())) for n in (teacher, student)]
    kw = dict(n_steps=n_steps, lr=lr, log_every=n_steps-1, **QUIET, **t.get("kw", {}), **kw)
    return distill(teacher, student, Same(t["batch"]), objective, **kw), *was


def trains_the_student_alone(t, method, formula):
    "The student learns; the teacher, and what is private to a method, stay as they were."
    r, teacher_was, student_was = run(t, formula)
    assert same(r.teacher.state_dict().values(), teacher_was)
    assert all(p.grad is None and p.requires_grad for p in r.teacher.parameters())
    trainable = dict(r.student.named_parameters())
    was = [w for w, k in zip(student_was, r.student.state_dict()) if k in trainable]
    assert not same(list(r.student.parameters()), was)
    first, last = r[History].rows[0], r[History].rows[-1]
    if method not in GAMES: assert last[method] < first[method], (formula, first[method], last[method])
    assert not any(m._forward_hooks for n in (r.teacher, r.student) for m in n.modules())
    trained, methods = {id(p) for g in r.opt.param_groups for p in g["params"]}, r.objective.methods
    ids = lambda net: {id(p) for p in net.parameters()}
    assert ids(r.student) <= trained and not trained & ids(r.teacher)
    if "vem" in formula:
        vem = methods["vem"].vem
        assert vem.n_updates == 6 and not trained & ids(vem.energy)
        assert all(p.grad is None for p in vem.energy.parameters())
        assert "vem/gap" in last and "vem/drift" in last
    # what is private stays private: discriminators, online teachers, fixed features
    for m in methods.values():
        for k in ("discriminator", "teachers", "critics", "perceptual_term", "extractor", "terms"):
            assert not trained & ids(getattr(m, k, nn.Module()))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_with_vem(task, name, method): trains_the_student_alone(task(name), method, f"{method} + vem")


def cells_in_turn(day, n=3):
    "All pairs of a method and a kind; those that do not have their turn today are slow."
    pairs = [(m, k) for m in METHODS for k in KINDS]
    marks = lambda i: () if (i + day) % n == 0 else pytest.mark.slow
    return [pytest.param(*p, marks=marks(i), id="-".join(p)) for i,p in enumerate(pairs)]


@pytest.mark.parametrize("method, name", cells_in_turn(datetime.datetime.now(datetime.timezone.utc).date().toordinal()))
def test_alone(task, name, method): trains_the_student_alone(task(name), method, method)


def test_each_method_has_its_turn_alone_on_each_kind():
    turns = [{p.id for p in cells_in_turn(day) if not p.marks} for day in range(3)]
    assert set.union(*turns) == {p.id for p in cells_in_turn(0)} and len(set.union(*turns)) == sum(map(len, turns))
    # and each method, on one kind or another, every day
    assert all({i.split("-")[0] for i in t} == set(METHODS) for t in turns)


def test_every_method_is_tried():
    import vemi_kit.methods as folder, pkgutil
    # `truth` needs paired pictures; it is tried in the tests of enhancement; the other two are of logits
    ours = {k for k, v in known_methods().items() if v.__module__.startswith("vemi_kit.methods.")}
    assert ours - {"truth", "kl", "cross_entropy"} == {*METHODS, "vem"}, ours ^ {*METHODS, "vem"}
    assert len(list(pkgutil.iter_modules(folder.__path__))) >= 10


def test_one_forward_a_step(task):
    "Features cost no further pass: each network runs once a step, however many methods listen."
    t = task("paired")
    counts = {}
    for n in (3, 7):
        student, calls = copy.deepcopy(t["student"]), dict(teacher=0, student=0)
        count = lambda k: lambda m, x: calls.__setitem__(k, calls[k]+1)
        nets = dict(teacher=t["teacher"], student=student)
        hooks = [net.register_forward_pre_hook(count(k)) for k, net in nets.items()]
        formula = "l1 + features + cat + crd + attention + vem"
        distill(*nets.values(), Same(t["batch"]), formula, n_steps=n, **QUIET)
        counts[n] = dict(calls)
        for h in hooks: h.remove()
    assert {k: counts[7][k]-counts[3][k] for k in calls} == dict(teacher=4, student=4)


def test_with_pruned_students(task):
    "CAT and CAGC on students that were cut out of the teacher, StyleGAN2 included."
    cases = (
        ("unconditional", "5*l1 + cat + vem", dict(importance="scale")),
        ("stylegan2", "cagc + 0.01*adversarial + vem", dict(importance="content")),
        ("unconditional", "cagc + 0.01*adversarial", dict(importance="content")),
    )
    for name, formula, kw in cases:
        t = dict(task(name))
        t["student"] = prune(t["teacher"], macs_ratio=3, sample=t["batch"], **kw).train()
        r, *_ = run(t, formula, n_steps=8)
        key = "cat" if "cat" in formula else "cagc"
        assert r[History][key][-1] < r[History][key][0]


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """A file laid out as torchvision's VGG16 and its tensors. They are drawn at random: true weights decide
    what LPIPS sees, not how it is computed.
    """
    state, c, g = {}, 3, torch.Generator().manual_seed(0)
    at, width = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64, 64, 128, 128, 256, 256, 256, *[512]*6)
    for i, o in zip(at, width):
        state[f"features.{i}.weight"] = torch.randn(o, c, 3, 3, generator=g)*(2/(9*c))**.5
        state[f"features.{i}.bias"] = .1*torch.randn(o, generator=g)
        c = o
    path = tmp_path_factory.mktemp("vgg")/"vgg16.pth"
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, path)
    return path, state


def lpips_by_hand(state, x, y):
    "LPIPS 0.1 from the file's tensors, layer by layer (Zhang et al. 2018, section 3)."
    import torchmetrics, pathlib
    path = pathlib.Path(torchmetrics.__file__).parent/"functional/image/lpips_models/vgg.pth"
    lin = torch.load(path, map_location="cpu", weights_only=True)
    shift = torch.tensor([-.030, -.088, -.188]).view(3, 1, 1)
    scale = torch.tensor([.458, .448, .450]).view(3, 1, 1)
    a, b, total = (x-shift)/scale, (y-shift)/scale, 0.
    for level, group in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))):
        if level: a, b = (F.max_pool2d(v, 2) for v in (a, b))
        for i in group:
            weight, bias = state[f"features.{i}.weight"], state[f"features.{i}.bias"]
            a, b = (F.conv2d(v, weight, bias, padding=1).relu() for v in (a, b))
        unit = lambda v: v/(v.pow(2).sum(1, keepdim=True).sqrt()+1e-10)
        total = total + F.conv2d((unit(a)-unit(b))**2, lin[f"lin{level}.model.1.weight"]).mean((1, 2, 3))
    return total


@pytest.mark.parametrize("name", ["unconditional", "stylegan2"])
def test_cagc_with_lpips(task, vgg16, name):
    """The published recipe from end to end with VGG16's file: cut by content, then masked L1 and LPIPS next
    to the discriminator.
    """
    path, state = vgg16
    t = dict(task(name), cagc=dict(weights=path))
    cut = dict(macs_ratio=3, sample=t["batch"], importance="content", mask=contrast_mask)
    t["student"] = prune(t["teacher"], **cut).train()
    r, *_ = run(t, "cagc + 0.01*adversarial", n_steps=8)
    first, last = r[History].rows[0], r[History].rows[-1]
    assert last["cagc"] < first["cagc"] and last["cagc/perceptual"] < first["cagc/perceptual"]
    method = r.objective.methods["cagc"]
    assert "mask contrast_mask; LPIPS of VGG16" in r.objective.notes()["cagc"]
    body = method.distance.body.state_dict()
    assert all(torch.equal(v, state[f"features.{k}"]) for k, v in body.items()), "fixed features do not learn"
    with torch.no_grad():
        a = r.teacher(t["batch"])
        b = r.student(t["batch"]).clamp(-1, 1)
    mask = contrast_mask(a)
    _, figures = method.loss(None, a, b)
    by_hand = lpips_by_hand(state, *((v*mask).expand(-1, 3, -1, -1) for v in (a.clamp(-1, 1), b)))
    assert figures["perceptual"] == pytest.approx(by_hand.mean().item(), rel=1e-4)


@pytest.mark.parametrize("formula", ["cagc", "perceptual", "omgd"])
def test_fixed_features_stay_out_of_checkpoints(task, vgg16, tmp_path, formula):
    """A checkpoint says whose features were used, does not hold them, and is no checkpoint of a run with
    others.
    """
    path, state = vgg16
    t = task("paired")
    def go(weights, **kw):
        objective = Objective(formula, **{formula: {**t.get(formula, {}), "weights": weights}})
        kw = dict(n_steps=2, out=tmp_path, **QUIET, **kw)
        return distill(t["teacher"], copy.deepcopy(t["student"]), Same(t["batch"]), objective, **kw)
    go(path)
    assert (tmp_path/"checkpoint.pt").stat().st_size < path.stat().st_size/2
    go(path, resume=True)
    was = path.read_bytes()
    torch.save({k: 2*v for k, v in state.items()}, path)
    try:
        with pytest.raises(ValueError, match="is of another run"): go(path, resume=True)
    finally: path.write_bytes(was)


@pytest.mark.parametrize("formula", ["l1 + vid_features + crd + cat + vem", "omgd + vem"])
def test_resumed_runs_end_alike(task, tmp_path, formula):
    "State of adaptors, variances, embeddings, online teachers and their discriminators is in the checkpoint."
    t = task("paired")
    def go(n_cut=None, **kw):
        class Stop(Callback):
            def after_step(self, figures): self.run.stop = self.run.step == n_cut
        set_seed(0)
        student = copy.deepcopy(t["student"])
        objective = Objective(formula, **({"omgd": t["omgd"]} if "omgd" in formula else {}))
        kw = dict(n_steps=8, callbacks=[Stop()], log_every=2, **QUIET, **kw)
        try: return distill(t["teacher"], student, Same(t["batch"]), objective, **kw)
        except KeyboardInterrupt: return None
    whole = go()
    assert go(3, out=tmp_path) is None
    again = go(out=tmp_path, resume=True)
    assert same(whole.student.state_dict().values(), again.student.state_dict().values())
    assert whole[History].rows == again[History].rows


class Labelled(nn.Module):
    "Latent and label to a dict, pictures in [0, 1]."
    def __init__(self, w):
        super().__init__()
        self.emb = nn.Embedding(10, 8)
        self.body = nn.Sequential(nn.Linear(16, w), nn.ReLU(), nn.Linear(w, 64), nn.Sigmoid())
    def forward(self, z, label):
        return dict(image=self.body(torch.cat([z, self.emb(label)], 1)).view(-1, 1, 8, 8), label=label)


def test_conditional_inputs_dicts_and_other_ranges():
    set_seed(0)
    teacher, student = Labelled(32), Labelled(4)
    z, label = torch.randn(40, 8), torch.arange(40) % 10
    for batch in (dict(z=z, label=label), (z, label), dict(label=label, z=z, extra=["text"])):
        s = copy.deepcopy(student)
        kw = dict(n_steps=6, log_every=5, value_range=(0, 1), lr=1e-2)
        r = distill(teacher, s, Same(batch), "l1 + vem", **kw, **QUIET)
        assert r[History]["l1"][-1] < r[History]["l1"][0]
    with pytest.warns(UserWarning, match="value_range"):
        distill(teacher, s, Same(batch), "l1", n_steps=1, **QUIET)
    data = torch.utils.data.DataLoader([dict(z=a, label=b) for a, b in zip(z, label)], batch_size=8)
    distill(teacher, s, data, "l1", n_steps=6, value_range=(0, 1), **QUIET)


@pytest.mark.parametrize("batch, kw, message", [
    (dict(z=torch.randn(4, 8)), {}, "needs ['z', 'label'], the batch has ['z']"),
    ((torch.randn(4, 8),), {}, "needs 2 inputs (z, label), the batch has 1"),
    (
        (torch.randn(4, 8), torch.arange(4)), dict(output="picture"),
        "no output 'picture'; there are ['image', 'label']",
    ),
    ((torch.randn(4, 8), torch.arange(4)), dict(inputs=("z",)), "do not fit a batch"),
    ("words", {}, "expected a batch that is a tensor, a tuple or a dict"),
])
def test_what_does_not_fit_is_said_before_work(batch, kw, message):
    import re
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        distill(Labelled(8), Labelled(4), Same(batch), "l1", n_steps=2, **QUIET, **kw)


def test_methods_that_cannot_work_say_so(task):
    t = task("unconditional")
    def go(methods, data=Same(t["batch"])):
        return distill(t["teacher"], copy.deepcopy(t["student"]), data, methods, n_steps=1, **QUIET)
    for formula in ("cat", "crd", "similarity"):
        with pytest.raises(ValueError, match="two"): go(formula, Same(t["batch"][:1]))
    unpaired = Objective("adversarial", adversarial=dict(t["adversarial"], real="target"))
    with pytest.raises(ValueError, match="needs paired batches"): go(unpaired)
    flat = Objective("omgd", omgd=dict(discriminator=SNDiscriminator(16, 1, 8)))
    with pytest.raises(TypeError, match="no number of blocks"): go(flat)


@pytest.mark.parametrize("method", ["features", "channel", "attention", "similarity", "crd", "cat", "vid_features"])
def test_activations_in_place_change_no_feature(method):
    "The same function, its activations in place or not: the same first loss."
    x = torch.linspace(-1, 1, 12*64).view(12, 1, 8, 8)
    def first(inplace):
        set_seed(0)
        last = lambda: nn.Sequential(nn.Conv2d(4, 1, 3, padding=1), nn.Tanh())
        make = lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace), *last())
        objective = Objective(method, **{method: dict(layers=["0"])})
        r = distill(make(), make(), Same(x), objective, n_steps=1, log_every=1, device="cpu", progress=False)
        return r[History].rows[0][method]
    assert first(True) == first(False)


@pytest.mark.parametrize("formula, weights", {
    "l1 + 0.25*l2": [(1, .25), (1, .25)],
    "l1 + 0.25*l2 for 50%, then 2*l1": [(1, .25), (2, 0)],
    "l1 for 50%, then l1 + 0.25*l2": [(1, 0), (1, .25)],
}.items())
def test_a_run_takes_the_weights_of_its_formula(task, formula, weights):
    "The logged loss is the weighted sum, in the first half and in the second, in runs of one phase and of two."
    t = task("unconditional")
    kw = dict(n_steps=4, lr=1e-3, log_every=1, **QUIET, **t.get("kw", {}))
    rows = distill(t["teacher"], copy.deepcopy(t["student"]), Same(t["batch"]), formula, **kw)[History].rows
    assert len(rows) == 4
    for row,(l1,l2) in zip(rows[::2], weights):
        assert row["loss"] == pytest.approx(l1*row["l1"] + l2*row.get("l2", 0), rel=1e-5)
