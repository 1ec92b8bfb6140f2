"""What a user may bring: an energy, a term, an optimiser, a method that returns a bare scalar.

Each goes through a whole run, and a run that stops and is resumed ends as one that does not.
"""
import pytest, torch
from torch import nn
from vemi_kit.core import set_seed
from vemi_kit.callbacks import Callback
from vemi_kit.data.batches import Latents
from vemi_kit.distill import distill
from vemi_kit.energy import EnergyNet
from vemi_kit.methods.base import Method
from vemi_kit.methods.l1 import L1
from vemi_kit.methods.vem import VEMethod
from vemi_kit.nats.bases import LocalBase
from vemi_kit.nats.energies import Experts
from vemi_kit.nats.tilted import TiltedModel
from vemi_kit.nats.vem import TiltedVEM
from vemi_kit.phases import Phase
from vemi_kit.vem import VEM
from vemi_kit.zoo.dcgan import SNGenerator


class Energy(nn.Module):
    "A small energy: two convolutions over both pictures."
    def __init__(self, width=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, width, 3, 2, 1), nn.SiLU(), nn.Conv2d(width, 1, 3, 2, 1))
    def forward(self, t, s): return self.layers(torch.cat([t, s], 1)).mean((1,2,3))


class StopAt(Callback):
    "Ends a run after a step, as Ctrl-C would."
    def __init__(self, step): self.at = step
    def after_step(self, figures):
        if self.run.step == self.at: self.run.stop = True


def go(methods, out=None, stop=None, steps=6, **kw):
    "A run of the same teacher and student; with `stop` it ends there, as by Ctrl-C."
    set_seed(0)
    nets = SNGenerator(16, 1, 4), SNGenerator(16, 1, 2)
    args = dict(progress=False, guard=False, every=100, device="cpu", log_every=1, out=out)
    args |= dict(n_steps=steps, callbacks=[StopAt(stop)] if stop else [])
    if not stop: return distill(*nets, Latents(64, 4), methods, **args, **kw)
    with pytest.raises(KeyboardInterrupt): distill(*nets, Latents(64, 4), methods, **args, **kw)


def same(a, b):
    "Have two runs the same student and the same state of their methods?"
    for x,y in ((a.student, b.student), (a.objective.methods, b.objective.methods)):
        x, y = dict(x.named_parameters()), dict(y.named_parameters())
        assert list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x)


def made():
    "An energy with the same weights each time."
    set_seed(5)
    return Energy()


ENERGIES = {
    "a function": lambda: dict(energy=lambda t, s: Energy()),
    "a module": lambda: dict(energy=made()),
    "a tilted model": lambda: dict(preset="tilted", n_chains=4, energy=lambda t, s: TiltedModel(
        LocalBase(1, 4), Experts(1))),
    "the kit's tilted one": lambda: dict(preset="tilted", n_chains=4),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_energy_of_ones_own_is_trained_saved_and_resumed(name, tmp_path):
    ask = lambda: dict(settings=dict(vem=ENERGIES[name]()))
    whole = go("l1 + vem", **ask())
    term = whole.objective.methods["vem"].vem
    assert term.n_updates > 0 and isinstance(term, TiltedVEM if "tilted" in name else VEM)
    assert isinstance(term.energy, TiltedModel if "tilted" in name else Energy)
    go("l1 + vem", tmp_path, 3, **ask())
    same(whole, go("l1 + vem", tmp_path, resume=True, **ask()))
    assert "vem/gap" in whole.callbacks[0].rows[-1]


def test_resumed_in_one_process_with_the_energy_that_was_trained(tmp_path):
    whole, energy = go("l1 + vem", settings=dict(vem=dict(energy=made()))), made()
    go("l1 + vem", tmp_path, 3, settings=dict(vem=dict(energy=energy)))
    assert not torch.equal(energy.layers[0].weight, made().layers[0].weight)
    same(whole, go("l1 + vem", tmp_path, resume=True, settings=dict(vem=dict(energy=energy))))
    with pytest.raises(ValueError, match="of another run.*Energy"):
        go("l1 + vem", tmp_path, resume=True, settings=dict(vem=dict(energy=Energy(5))))


def assigned(**kw):
    "A method with a term of one's own."
    m = VEMethod()
    m.vem = VEM(made(), step_size=20., **kw)
    return m


@pytest.mark.parametrize("phases", [False, True])
def test_assigned_term_is_used_and_resumed(phases, tmp_path):
    asked = lambda m: [Phase("l1", .5), Phase([m])] if phases else [L1(), m]
    method = assigned()
    term = method.vem
    whole = go(asked(method))
    assert whole.objective.methods["vem"].vem is term and term.n_updates == (3 if phases else 6)
    go(asked(assigned()), tmp_path, 4)
    same(whole, go(asked(assigned()), tmp_path, resume=True))
    with pytest.raises(ValueError, match="of another run.*term.*0.5"):
        go(asked(assigned(lambda_mi=.5)), tmp_path, resume=True)


def test_what_an_assigned_term_would_not_hear_of_is_refused():
    m = assigned()
    m.settings = dict(step_size=3.)
    with pytest.raises(ValueError, match="'step_size'.*unheard"): go([m])
    m = VEMethod(preset="tilted")
    m.vem = VEM(made())
    with pytest.raises(ValueError, match="'preset'.*unheard"): go([m])
    m = VEMethod()
    m.vem = made()
    with pytest.raises(TypeError, match="expected a term such as VEM"): go([m])
    with pytest.raises(TypeError, match="expected a TiltedModel"):
        go("vem", settings=dict(vem=dict(preset="tilted", energy=made())))


def test_a_built_term_is_built_anew_for_another_run():
    m = VEMethod(width=2)
    first = go([m]).objective.methods["vem"].vem
    again = go([m]).objective.methods["vem"].vem
    assert again is not first and isinstance(again.energy, EnergyNet)
    assert again.n_updates == 6 and not any("made" in k for k in m.state_dict())


def momentum(groups): return torch.optim.SGD(groups, .05, momentum=.9)


def test_optimiser_of_ones_own_through_phases_and_a_resumed_run(tmp_path):
    line = "l1 for 50%, then l1 + 0.1*vem"
    whole = go(line, optimizer=momentum)
    assert isinstance(whole.opt.optimizer, torch.optim.SGD) and whole.lr == .05
    assert whole.callbacks[0].rows[0]["student.lr"] == .05
    assert go("l1", steps=1, optimizer=momentum, lr=.02).lr == .02
    go(line, tmp_path, 4, optimizer=momentum)
    same(whole, go(line, tmp_path, resume=True, optimizer=momentum))
    with pytest.raises(ValueError, match="of another run.*optimizer"): go(line, tmp_path, resume=True, lr=.05)


def test_an_optimiser_descends_as_it_does_by_hand():
    run = go("l2", steps=3, optimizer=momentum, plan={"student.lr": .05})
    set_seed(0)
    teacher, student = SNGenerator(16, 1, 4).eval(), SNGenerator(16, 1, 2)
    opt, data = momentum(student.parameters()), Latents(64, 4)
    for i in range(3):
        z = data.batch(i)
        with torch.no_grad(): t = teacher(z)
        opt.zero_grad()
        (student(z)-t).square().mean().backward()
        opt.step()
    for a,b in zip(run.student.parameters(), student.parameters()): torch.testing.assert_close(a, b)


def test_a_method_may_return_a_bare_scalar():
    class Bare(Method):
        name = "bare_scalar"
        def loss(self, batch, t, s, features=None): return (s-t).abs().mean()
    try:
        run, usual = go("bare_scalar"), go("l1")
        assert run.callbacks[0].rows[-1]["bare_scalar"] == usual.callbacks[0].rows[-1]["l1"]
    finally: del Method.registry["bare_scalar"]
