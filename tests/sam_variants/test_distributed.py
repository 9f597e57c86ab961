"""Two processes over gloo: one pair of workers runs every rule, the tests compare what they saved.

A worker's answer to a job is what it computed, or the text of the exception that both must raise.
A collective that one worker alone enters ends after TIMEOUT, and the pair with it: the jobs after
it are then missing, and their tests fail instead of hanging.
"""

import datetime
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sam_variants import VARIANTS, build
from sam_variants.training.closure import batch_closure, evaluating
from sam_variants.training.sharded import load_sharded, save_sharded
from sam_variants.vector import ParameterVector

pytestmark = pytest.mark.slow

WORKERS, STEPS, ROWS, TIMEOUT = 2, 5, 8, 60
cross_entropy = nn.functional.cross_entropy

BASES = {
    None: lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam:amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd:plain": lambda p: torch.optim.SGD(p, lr=0.1),
}

# Two workers take another step than one process on the whole batch, by the rule's definition:
BY_WORKER = {
    "esam": "each worker chooses among its own rows; with gamma 1 there is no choice",
    "msam": "each worker cuts its own rows: shard i is that of all workers together",
}
SAME_AS_WHOLE = {"esam": {"gamma": 1.0}, "msam": {"shards": 1}}
KEEPS_THE_CLEAN_GRADIENT = {
    "looksam",
    "ae-looksam",
    "g-rst",
    "bsam",
    "f-sam",
    "vasso",
    "gsam",
    "gnp",
}
FREE = [name for name, entry in VARIANTS.items() if entry.policy is None]
DRAWN = ["bernoulli-0.5", "coin", "ae", "every-2"]


def net():
    """No batch norm: its statistics are each worker's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    return model.double()


def data():
    torch.manual_seed(1)
    return torch.randn(STEPS, ROWS, 6).double(), torch.randint(3, (STEPS, ROWS))


def optimizer_of(name, model, **options):
    base = BASES[VARIANTS[name].base](model.named_parameters())
    # large enough that a perturbation which went wrong is seen in five steps
    rho = {"rho": 0.3} if "rho" in VARIANTS[name].options else {}
    return build(name, base, **{"total_steps": STEPS, **rho, **options})


def whole(parameter):
    tensor = parameter.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def outcome(model, optimizer):
    return {
        "weights": torch.cat([whole(p).flatten() for p in model.parameters()]),
        "counts": vars(optimizer.counts).copy(),
        "draws": optimizer.generator.get_state(),
    }


def train(optimizer, model, rows=slice(None), *, start=0, stop=STEPS, **closure):
    x, y = data()
    for t in range(start, stop):
        optimizer.step(batch_closure(model, cross_entropy, x[t][rows], y[t][rows], **closure))


def alone(name, *, order=None, **options):
    """The same training in one process, on the whole batch."""
    model = net()
    optimizer = optimizer_of(name, model, **options)
    train(optimizer, model, slice(None) if order is None else torch.tensor(order))
    return outcome(model, optimizer)


# -- What the workers do ---------------------------------------------------------------------------


def my_rows():
    share = ROWS // WORKERS
    return slice(share * dist.get_rank(), share * (dist.get_rank() + 1))


def parallel(name, *, ddp=None, closure=None, **options):
    """A run under DistributedDataParallel."""
    model = net()
    wrapped = nn.parallel.DistributedDataParallel(model, **ddp or {})
    optimizer = optimizer_of(name, model, **options)
    train(optimizer, wrapped, my_rows(), **closure or {})
    return outcome(model, optimizer)


def sharded_net():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = net(), init_device_mesh("cpu", (WORKERS,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sharded(name, **options):
    """A run under FSDP2; 5 and 3 rows over two workers are uneven shards."""
    model = sharded_net()
    optimizer = optimizer_of(name, model, **options)
    train(optimizer, model, my_rows())
    return outcome(model, optimizer)


def sharded_arithmetic():
    """Norms, products and draws of vectors in uneven shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORKERS,))
    a, b = torch.arange(5.0), torch.arange(1.0, 4.0)  # 3 + 2 rows, and a replicated one
    vector = ParameterVector(
        [distribute_tensor(a, mesh, [Shard(0)]), distribute_tensor(b, mesh, [Replicate()])]
    )
    model, plain = sharded_net(), net()
    optimizer, reference = optimizer_of("sam", model), optimizer_of("sam", plain)
    draw, expected = optimizer.normals(), reference.normals()
    doubled = optimizer.over_workers(draw.mul(2.0))
    return {
        "norm": float(vector.norm()),
        "dot": float(vector.dot(vector)),
        "draws are the whole's": all(
            torch.equal(whole(mine), theirs) for mine, theirs in zip(draw, expected, strict=True)
        ),
        "local rows": [tensor.to_local().shape[0] for tensor in draw],
        "draw norm": float(draw.norm()),
        "its mean over workers is itself": all(
            torch.equal(whole(two), 2.0 * theirs)
            for two, theirs in zip(doubled, expected, strict=True)
        ),
    }


def sharded_forward_alone():
    """A forward pass leaves no whole weights behind that a later one would take for current."""
    model = sharded_net()
    optimizer = optimizer_of("sam", model)
    x, y = data()
    losses = []
    for factor in (1.5, 1.5, 1.0):
        for request in optimizer.passes():
            request.gradient = False  # a caller that looks at the loss alone
            with evaluating(model, request):
                losses.append(float(cross_entropy(model(x[0]), y[0])))
            break
        optimizer.come_home()
        with torch.no_grad():
            for parameter in optimizer.parameters:
                parameter.mul_(factor)
    return {"losses": losses}


def a_worker_that_overflows(name, *, wrap, scaled, bad_pass, **options):
    """One worker's loss (not its gradient) is infinite in one pass of step 2."""
    model = net() if wrap == "ddp" else sharded_net()
    wrapped = nn.parallel.DistributedDataParallel(model) if wrap == "ddp" else model
    optimizer = optimizer_of(name, model, skip_nonfinite=not scaled, **options)
    x, y = data()
    rows = my_rows()
    for t in range(STEPS):
        closure = batch_closure(wrapped, cross_entropy, x[t][rows], y[t][rows])
        scale = {"scale": 1.0} if scaled else {}
        for i, request in enumerate(optimizer.passes(num_rows=closure.num_rows, **scale)):
            loss = closure(request)
            bad = t == 2 and i == bad_pass and dist.get_rank() == 1
            request.loss = loss * math.inf if bad else loss
        nans = [bool(p.grad.isnan().any()) for p in optimizer.parameters if t == 2]
        optimizer.step()
        assert all(nans)
    return outcome(model, optimizer)


def refusal(make):
    """The text of the ValueError or RuntimeError that make() raises."""
    try:
        make()
    except (ValueError, RuntimeError) as error:
        return {"refused": str(error)}
    return {"refused": None}


def a_loop_that_syncs_everything():
    """A body which never looks at request.sync takes the global step under a local name."""
    model = net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = optimizer_of("sam", model, ascent="local")
    x, y = data()
    for request in optimizer.passes():
        loss = cross_entropy(wrapped(x[0][my_rows()]), y[0][my_rows()])
        loss.backward()
        request.loss = loss.detach()


def a_model_without_no_sync():
    model = net()
    optimizer = optimizer_of("sam", model, ascent="local")
    wrapped = nn.Sequential(nn.parallel.DistributedDataParallel(model))
    train(optimizer, wrapped, my_rows())


# Saving under torch.distributed.checkpoint


SAVED = ["sam", "ae-looksam", "f-sam", "ssam-d", "eigen-sam", "momentum-sam", "rst", "adasam"]
CYCLIC, SHORT_CYCLES = {"ssam-d", "eigen-sam"}, {"refresh_every": 2}


def saved_and_continued(name, folder):
    """Save at step 3, also from inside a loop, load into a new model, go on to the end."""
    options = SHORT_CYCLES if name in CYCLIC else {}
    model = sharded_net()
    optimizer = optimizer_of(name, model, **options)
    train(optimizer, model, my_rows(), stop=3)
    x, y = data()
    closure = batch_closure(model, cross_entropy, x[3][my_rows()], y[3][my_rows()])
    held = optimizer.passes(num_rows=closure.num_rows)
    request = next(held)
    request.loss = closure(request)
    next(held, None)
    save_sharded(f"{folder}/{name}", model, optimizer)  # weights go home first
    held.close()
    other = sharded_net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    resumed = optimizer_of(name, other, **options)
    load_sharded(f"{folder}/{name}", other, resumed)
    train(resumed, other, my_rows(), start=3)
    return outcome(other, resumed)


def loaded_onto_another_base(folder):
    """The refusal of a state whose base was SGD, and whether the model was left alone."""
    model = sharded_net()
    optimizer = optimizer_of("sam", model)
    train(optimizer, model, my_rows(), stop=2)
    save_sharded(f"{folder}/of-sgd", model, optimizer)
    other = sharded_net()
    resumed = build("sam", torch.optim.Adam(other.named_parameters()), total_steps=STEPS, rho=0.3)
    before = outcome(other, resumed)["weights"]
    found = refusal(lambda: load_sharded(f"{folder}/of-sgd", other, resumed))
    left_alone = torch.equal(outcome(other, resumed)["weights"], before)
    return {**found, "left alone": left_alone}


def jobs(folder):
    """Every job by its key, in the order in which both workers do them."""
    found = {("arithmetic",): sharded_arithmetic, ("forward alone",): sharded_forward_alone}
    for name in VARIANTS:
        found["ddp", name] = lambda name=name: parallel(name)
        found["view", name] = lambda name=name: parallel(
            name, ddp={"gradient_as_bucket_view": True}, skip_nonfinite=True
        )
        found["static", name] = lambda name=name: parallel(name, ddp={"static_graph": True})
        found["pieces", name] = lambda name=name: parallel(name, closure={"micro_batch_size": 1})
        found["local", name] = lambda name=name: parallel(name, ascent="local")
        found["fsdp", name] = lambda name=name: sharded(name)
    for name, options in SAME_AS_WHOLE.items():
        found["ddp same", name] = lambda name=name, o=options: parallel(name, **o)
        found["fsdp same", name] = lambda name=name, o=options: sharded(name, **o)
    found["msam 2",] = lambda: parallel("msam", shards=2)
    found["msam 2 local",] = lambda: parallel("msam", shards=2, ascent="local")
    for name in FREE:
        for when in DRAWN:
            found["when", name, when] = lambda name=name, when=when: parallel(
                name, when=when, seed=2, ascent="local"
            )
    for wrap in ("ddp", "fsdp"):
        for scaled in (False, True):
            for bad_pass in (0, 1):
                found["overflow", wrap, scaled, bad_pass] = lambda w=wrap, s=scaled, b=bad_pass: (
                    a_worker_that_overflows("f-sam", wrap=w, scaled=s, bad_pass=b)
                )
    found["static local",] = lambda: refusal(
        lambda: parallel("sam", ascent="local", ddp={"static_graph": True})
    )
    found["fsdp local",] = lambda: refusal(lambda: sharded("sam", ascent="local"))
    found["synced local",] = lambda: refusal(a_loop_that_syncs_everything)
    found["no no_sync",] = lambda: refusal(a_model_without_no_sync)
    found["another base",] = lambda: loaded_onto_another_base(folder)
    for name in SAVED:
        options = SHORT_CYCLES if name in CYCLIC else {}
        found["unbroken", name] = lambda name=name, o=options: sharded(name, **o)
        found["resumed", name] = lambda name=name: saved_and_continued(name, folder)
    return found


def work(rank, folder):
    """One worker: all jobs, each answer saved at the end or up to the first that went wrong."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORKERS)
    limit = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS, timeout=limit)
    answers = {}
    try:
        for key, job in jobs(folder).items():
            try:
                answers[key] = job()
            except ValueError as error:  # a refusal, which comes before any collective
                answers[key] = {"refused": str(error)}
            dist.barrier()
    except Exception as error:
        answers["stopped"] = f"{key}: {type(error).__name__}: {error}"
    finally:
        torch.save(answers, f"{folder}/answers-{rank}.pt")
        os._exit(0)  # a group that has lost its partner waits at its end, too


# -- The tests -------------------------------------------------------------------------------------


def run_pair(function, folder, *, seconds):
    """What two processes, each calling function(rank, folder) of this file, have left there."""
    root = Path(__file__).parents[2]
    code = f"import sys; from tests.sam_variants.test_distributed import {function}; "
    code += f"{function}(int(sys.argv[1]), sys.argv[2])"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(folder)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(WORKERS)
    ]
    try:
        for worker in workers:
            worker.wait(timeout=seconds)
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(Path(folder) / f"answers-{rank}.pt") for rank in range(WORKERS)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The answers of the two workers, and the folder with what they saved."""
    folder = tmp_path_factory.mktemp("workers")
    return run_pair("work", folder, seconds=500), folder


def of_both(answers, *key):
    """The first worker's answer, after a look that the second has the same to the bit."""
    first, second = answers[0]
    if key not in first or key not in second:
        pytest.fail(
            f"the workers did not get here: {first.get('stopped')}, {second.get('stopped')}"
        )
    one, other = first[key], second[key]
    if "weights" in one:
        assert torch.equal(one["weights"], other["weights"])
        assert torch.equal(one["draws"], other["draws"])
        assert one["counts"] == other["counts"]
    else:
        assert one.keys() == other.keys()
    return one


def close(one, other):
    torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-9, atol=1e-9)


def test_no_worker_stopped_early(answers):
    for found in answers[0]:
        assert "stopped" not in found, found["stopped"]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_workers_take_the_step_of_one_process_on_the_whole_batch(answers, name):
    found = of_both(answers, "ddp", name)
    expected = alone(name)
    if name in BY_WORKER:
        assert not torch.allclose(found["weights"], expected["weights"], rtol=1e-9, atol=1e-9)
        found = of_both(answers, "ddp same", name)
        expected = alone(name, **SAME_AS_WHOLE[name])
    close(found, expected)
    if name != "ssam-f":  # whose refreshes look at as many rows on each worker
        assert found["counts"] == pytest.approx(expected["counts"])


@pytest.mark.parametrize("name", VARIANTS)
def test_bucket_views_and_looking_for_overflows_change_no_bit(answers, name):
    views, plain = of_both(answers, "view", name), of_both(answers, "ddp", name)
    assert torch.equal(views["weights"], plain["weights"])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_static_graph_changes_nothing_under_the_global_ascent(answers, name):
    found = of_both(answers, "static", name)
    if name == "ssam-f":
        assert "static_graph=True" in found["refused"]
        assert "ascent" not in found["refused"]  # another one would not help
        return
    close(found, of_both(answers, "ddp", name))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_accumulated_in_pieces_are_reduced_once_and_right(answers, name):
    close(of_both(answers, "pieces", name), of_both(answers, "ddp", name))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_local_ascent_keeps_replicas_equal_or_is_refused_with_the_reason(answers, name):
    found = of_both(answers, "local", name)
    if name in KEEPS_THE_CLEAN_GRADIENT:
        assert "keeps the clean gradient" in found["refused"]
    else:
        assert torch.isfinite(found["weights"]).all()


# The rest asks for no gradient that is not synced: no local ascent, or no ascent from a gradient.
LOCAL_IS_GLOBAL = {"erm", "momentum-sam", "previous-sam"}


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in KEEPS_THE_CLEAN_GRADIENT])
def test_a_local_ascent_is_another_algorithm(answers, name):
    found, synced = of_both(answers, "local", name), of_both(answers, "ddp", name)
    equal = torch.allclose(found["weights"], synced["weights"], rtol=1e-9, atol=1e-9)
    assert equal == (name in LOCAL_IS_GLOBAL)


def test_a_local_ascent_over_m_workers_is_msam_with_m_shards(answers):
    close(of_both(answers, "local", "sam"), alone("msam", shards=WORKERS))


def test_shards_of_shards_are_msam_too(answers):
    # a shard of one worker and its like on the other have their ascent in common, or do not
    together = [0, 1, 4, 5, 2, 3, 6, 7]
    close(of_both(answers, "msam 2"), alone("msam", shards=2, order=together))
    close(of_both(answers, "msam 2 local"), alone("msam", shards=4))


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("when", DRAWN)
def test_policies_decide_alike_on_all_workers_under_a_local_ascent(answers, name, when):
    found = of_both(answers, "when", name, when)
    if "refused" in found:
        with pytest.raises(ValueError, match=r"keeps the clean|no clean evaluation") as own:
            optimizer_of(name, net(), when=when, ascent="local")
        assert found["refused"] == str(own.value)
    else:
        assert 0 < found["counts"]["perturbed"] < STEPS or when == "ae"


@pytest.mark.parametrize("name", VARIANTS)
def test_two_sharded_workers_end_where_one_process_does(answers, name):
    found = of_both(answers, "fsdp", name)
    if name == "ssam-f":
        assert "gradients averaged over the workers" in found["refused"]
        return
    expected = alone(name)
    if name in BY_WORKER:
        found = of_both(answers, "fsdp same", name)
        expected = alone(name, **SAME_AS_WHOLE[name])
    close(found, expected)
    assert found["counts"] == pytest.approx(expected["counts"])


def test_sharded_vectors_have_the_whole_vectors_norm_and_draws(answers):
    for found in (answers[0][0]["arithmetic",], answers[0][1]["arithmetic",]):
        square = sum(i * i for i in range(5)) + 1 + 4 + 9
        assert found["norm"] == pytest.approx(math.sqrt(square))
        assert found["dot"] == pytest.approx(square)
        assert found["draws are the whole's"]
        assert found["its mean over workers is itself"]
        expected = optimizer_of("sam", net()).normals()
        assert found["draw norm"] == pytest.approx(float(expected.norm()))
    first, second = (answers[0][rank]["arithmetic",]["local rows"] for rank in range(WORKERS))
    assert [a + b for a, b in zip(first, second, strict=True)] == [8, 8, 5, 5, 3, 3]
    assert first != second


def test_a_forward_alone_leaves_no_stale_weights(answers):
    losses = of_both(answers, "forward alone")["losses"]
    x, y = data()
    model, expected = net(), []
    for factor in (1.5, 1.5, 1.0):
        with torch.no_grad():
            expected.append(float(cross_entropy(model(x[0]), y[0])))
            for parameter in model.parameters():
                parameter.mul_(factor)
    assert losses == pytest.approx(expected)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad_pass", [0, 1])
def test_an_overflow_on_one_worker_skips_the_step_on_all(answers, wrap, scaled, bad_pass):
    found = of_both(answers, "overflow", wrap, scaled, bad_pass)
    assert found["counts"]["skipped"] == 1
    assert found["counts"]["steps"] == STEPS - 1
    assert found["counts"]["gradients"] == 2 * (STEPS - 1) + bad_pass + 1
    model = net()
    optimizer = optimizer_of("f-sam", model)
    for t in (0, 1, 3, 4):
        train(optimizer, model, start=t, stop=t + 1)
    close(found, outcome(model, optimizer))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("static local", "static_graph=True.*learns the graph.*build it without static_graph"),
        ("fsdp local", "sharded parameters.*cannot take ascent='local'"),
        ("synced local", r"a gradient of this worker alone, but.*request\.sync"),
        ("no no_sync", r"Sequential has no no_sync\(\)"),
    ],
)
def test_what_has_no_gradient_of_one_worker_refuses_the_local_ascent(answers, case, reason):
    with pytest.raises(ValueError, match=reason):
        raise ValueError(of_both(answers, case)["refused"])


@pytest.mark.parametrize("name", SAVED)
def test_a_sharded_run_continues_bit_for_bit_from_a_distributed_checkpoint(answers, name):
    resumed, unbroken = of_both(answers, "resumed", name), of_both(answers, "unbroken", name)
    assert torch.equal(resumed["weights"], unbroken["weights"])
    assert torch.equal(resumed["draws"], unbroken["draws"])
    assert resumed["counts"]["steps"] == STEPS


def test_a_distributed_checkpoint_of_another_base_is_refused_before_the_model_is_touched(answers):
    found = of_both(answers, "another base")
    assert "another base optimizer: Adam does not find its 'step' there" in found["refused"]
    assert found["left alone"]


@pytest.mark.filterwarnings("ignore:.*assuming.*single process")
@pytest.mark.parametrize("name", SAVED)
def test_a_distributed_checkpoint_opens_in_one_process(answers, name):
    of_both(answers, "resumed", name)
    options = SHORT_CYCLES if name in CYCLIC else {}
    model = net()
    optimizer = optimizer_of(name, model, **options)
    load_sharded(answers[1] / name, model, optimizer)
    train(optimizer, model, start=3)
    close(outcome(model, optimizer), of_both(answers, "unbroken", name))


def fall_out(rank, folder):
    """A worker that fails in the second pass, and one that waits for it there."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORKERS)
    limit = datetime.timedelta(seconds=5)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS, timeout=limit)
    model = net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = optimizer_of("sam", model)
    home, (x, y) = outcome(model, optimizer)["weights"], data()
    closure = batch_closure(wrapped, cross_entropy, x[0][my_rows()], y[0][my_rows()])
    failed = None
    try:
        for request in optimizer.passes():
            if rank == 1 and not request.first:
                raise ZeroDivisionError
            request.loss = closure(request)
    except (ZeroDivisionError, RuntimeError) as error:
        failed = type(error).__name__
    at_home = torch.equal(outcome(model, optimizer)["weights"], home)
    torch.save({"failed": failed, "at home": at_home}, f"{folder}/answers-{rank}.pt")
    if rank == 1:
        time.sleep(12)  # alive, but never coming: the partner has only its own patience
    os._exit(0)


def test_a_worker_that_waits_in_vain_raises_and_has_its_weights_home(tmp_path):
    first, second = run_pair("fall_out", tmp_path, seconds=100)
    assert first == {"failed": "RuntimeError", "at home": True}
    assert second == {"failed": "ZeroDivisionError", "at home": True}
