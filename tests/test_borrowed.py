"What belongs to the user of a process is left as it was found: random numbers, settings of libraries, signals."
import gc, locale, logging, os, random, signal, sys, warnings
import matplotlib, numpy as np, pytest, torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image, ImageFile
from vemi_kit.data.batches import Batches
from vemi_kit.data.pictures import digits
from vemi_kit.denoisers import trained_denoiser
from vemi_kit.enhance.command import vemi_enhance
from vemi_kit.enhance.restorer import load_restorer
from vemi_kit.enhance.train import Enhancer
from vemi_kit.files import save_nets
from vemi_kit.metrics.distances import FrechetDistance
from vemi_kit.metrics.features import train_digit_classifier
from vemi_kit.methods.perceptual import PerceptualFeatures
from vemi_kit.nats.measure import load_saved
from vemi_kit.pruning import load_pruned, prune
from vemi_kit.study.chain_quality import sharp_energy, student_energy
from vemi_kit.timing import latency
from vemi_kit.vem import VEM
from vemi_kit.zoo.dcgan import SNDiscriminator, SNGenerator, digits_teacher, train_digits_teacher, train_gan
from vemi_kit.zoo.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from vemi_kit.zoo.stylegan2_training import train_stylegan2
from vemi_kit.zoo.translators import ResNetGenerator

# set by pytest, torch and sklearn for themselves
OTHERS = "PYTEST_", "TORCHINDUCTOR_", "KMP_"
X = torch.linspace(-1, 1, 16*64).view(16, 1, 8, 8)


def surroundings():
    "What a library can change in a process, by name."
    name, keys, *rest = np.random.get_state()
    cudnn = torch.backends.cudnn
    return dict(
        python=random.getstate(), numpy=(name, keys.tobytes(), *rest), torch=torch.get_rng_state().tolist(),
        threads=(torch.get_num_threads(), torch.get_num_interop_threads()), grad=torch.is_grad_enabled(),
        deterministic=(torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()),
        cudnn=(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        precision=(torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.get_default_device()),
        sharing=torch.multiprocessing.get_sharing_strategy(), errors=np.geterr(),
        printing=(str(torch._tensor_str.PRINT_OPTS), str(np.get_printoptions())),
        warnings=[repr(f) for f in warnings.filters], style={k: str(v) for k,v in matplotlib.rcParams.items()},
        pillow=(Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES), folder=os.getcwd(), path=list(sys.path),
        environment={k: v for k,v in os.environ.items() if not k.startswith(OTHERS)},
        signals={s: signal.getsignal(s) for s in signal.valid_signals()},
        blocked=signal.pthread_sigmask(signal.SIG_BLOCK, []), locale=locale.setlocale(locale.LC_ALL),
        logging=(logging.root.level, len(logging.root.handlers)), hooks=(sys.excepthook, sys.displayhook),
        streams=[(s.errors, s.encoding) for s in (sys.__stdout__, sys.__stderr__)], gc=gc.isenabled(),
        accelerate=[dict(c.__dict__["_shared_state"]) for c in (AcceleratorState, GradientState, PartialState)],
    )


def changed(before, after):
    short = lambda k: (str(before[k])[:200], str(after[k])[:200])
    return {k: short(k) for k in before if before[k] != after[k]}


def gan(): return SNGenerator(8, 1, 2, 4), SNDiscriminator(8, 1, 2)


def style():
    made = StyleGAN2Generator(8, 1, width=2, z_dim=4, n_mapping=1)
    return made, StyleGAN2Discriminator(8, 1, width=2, group=4)


def saved(folder):
    save_nets(folder/"g.safetensors", net=gan()[0])
    return folder/"g.safetensors"


def picture(folder):
    (folder/"in").mkdir()
    for i in range(10): Image.fromarray(np.full((48,48,3), 20*i, np.uint8)).save(folder/f"in/{i}.png")
    return folder/"in"


def restore(folder):
    args = "apply", "x2", folder/"0.png", "--out", folder/"out", "--threads", "2", "--device", "cpu"
    return vemi_enhance([str(a) for a in args])


def wrong_usage():
    with pytest.raises(SystemExit): vemi_enhance(["apply", "--nonsense"])


# {name: (what is made first, from a folder, and draws as it likes; what is called with it)}
BORROWERS = dict(
    train_gan=(lambda _: gan(), lambda nets: train_gan(*nets, Batches(X, 4), 2, device="cpu")),
    train_stylegan2=(lambda _: style(), lambda nets: train_stylegan2(*nets, Batches(X, 4), 2, device="cpu")),
    train_digits_teacher=(None, lambda: train_digits_teacher(n_steps=1, width=2, device="cpu")),
    train_digit_classifier=(None, lambda: train_digit_classifier(1)),
    trained_denoiser=(None, lambda: trained_denoiser(X, n_steps=2)),
    sharp_energy=(None, lambda: sharp_energy(2, 8, 2)),
    student_energy=(None, lambda: student_energy(2, 16, 8, 2)),
    build_teacher=(picture, lambda f: Enhancer("x2", f, crop=16, device="cpu").build_teacher(4)),
    prune=(lambda _: ResNetGenerator(4, 1, 1, 1), lambda net: prune(net, macs_ratio=2, sample=X[:1])),
    latency=(lambda _: ResNetGenerator(2, 1, 1, 1), lambda net: latency(net, X[:1], seconds=.01, threads=2)),
    vem=(None, lambda: VEM.like(X[:4], X[4:8], width=2).tighten(X[:4], X[4:8])),
    frechet=(lambda _: digits(16)[0][:80], lambda x: FrechetDistance(x, "digits")(x)),
    digits_teacher=(None, lambda: digits_teacher()),
    load_restorer=(None, lambda: load_restorer("x2", "cpu")), load_saved=(saved, load_saved),
    load_pruned=(saved, lambda path: load_pruned(path, "net", SNGenerator)),
    perceptual=(None, lambda: PerceptualFeatures(3, 64)),
    command=(picture, restore), wrong_usage=(None, wrong_usage),
)


@pytest.mark.parametrize("name", BORROWERS)
def test_the_users_process_is_left_as_it_was(tmp_path, name):
    first, call = BORROWERS[name]
    given = [] if first is None else [first(tmp_path)]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    for draw in (torch.rand, np.random.rand): draw(3)
    before = surroundings()
    call(*given)
    assert not changed(before, surroundings())


def test_the_same_seed_repeats_and_the_users_numbers_go_on():
    torch.manual_seed(3)
    starts, ends = [], []
    for _ in range(2):
        starts.append(gan()[0].state_dict())
        ends.append(train_digits_teacher(n_steps=1, width=2, device="cpu")[0].state_dict())
    assert not all(torch.equal(v, starts[1][k]) for k,v in starts[0].items())
    assert all(torch.equal(v, ends[1][k]) for k,v in ends[0].items())
