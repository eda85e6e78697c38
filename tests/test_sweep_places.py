"""Workers of a sweep that a cluster starts: a machine of Ray dies in the middle, a batch system's time is up; the bits are those of one worker.

Those on Ray run with `--flags slow`; what they came to last is in tests/ray_results.json."""

import json
import os
import signal
import sys

import pytest
from test_sweeps import same_bits, small
from tiny import plan, within

from lottery_nb.cli import main
from lottery_nb.core import LotteryError
from lottery_nb.engine.recipes import Recipe
from lottery_nb.files import RunFolder
from lottery_nb.pruning.schedules import geometric
from lottery_nb.results.sweep_plots import axis_plot, cost_plot, gain_table, parallel_plot, point_table
from lottery_nb.runs.log import Tail
from lottery_nb.sweeps.axes import SweepPlan
from lottery_nb.sweeps.folders import best, ranked, Settings, write_sweep
from lottery_nb.sweeps.leases import Queue
from lottery_nb.sweeps.running import sweep
from lottery_nb.sweeps.slurm import Job
from lottery_nb.sweeps.working import logged_work, placed, PLACES

TWO = SweepPlan(small(), {"recipe.lr": (0.05, 0.1)})


def seconds_each():
    "Three points of a second or so."
    base = plan(recipe=Recipe(lr=0.05, epochs=40, batch_size=16), schedule=geometric(0.4, 1))
    return SweepPlan(base, {"recipe.lr": (0.03, 0.05, 0.08)})


@pytest.fixture(autouse=True)
def often(monkeypatch):
    "Who waits for workers looks more often, so that points may be short."
    for module in ("ray", "slurm"):
        monkeypatch.setattr(f"lottery_nb.sweeps.{module}.PAUSE", 0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "These points by one worker that nobody disturbed."
    there = write_sweep(seconds_each(), tmp_path_factory.mktemp("alone") / "s")
    assert logged_work(str(there.path)) == {"done": 3}
    return there


def begun(found, epochs):
    "Points that are being worked on, and have as many epochs behind them."
    names = [name for name, claim in found.claims.items() if not claim.end]
    logs = {name: RunFolder(found.folder.run(name)).log for name in names}
    return [n for n, log in logs.items() if sum(1 for _ in Tail(log, only=["EpochDone"]).stream()) > epochs]


def test_every_picture_of_a_real_sweep_marks_the_point_that_validation_chooses(alone):
    number = best(alone).number
    assert list(point_table(alone)["point"]) == list(ranked(alone)["point"])
    for fig in (axis_plot(alone, "recipe.lr"), parallel_plot(alone), cost_plot(alone)):
        assert f"best on validation data: point {number} (recipe.lr=" in fig.layout.title.subtitle.text
    assert list(point_table(alone, "dense")["n"]) == [1, 1, 1]
    assert gain_table(alone)["epochs"].tolist() == [80, 80, 80]  # a dense network and a ticket, 40 epochs each


@pytest.mark.parametrize("on, package", [("ray:2", "ray"), ("slurm:2", "submitit")])
def test_a_place_whose_library_is_missing_is_refused_before_anything_is_written(
    on, package, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LotteryError, match=rf"pip install 'lottery_nb\[{on.partition(':')[0]}\]'"):
        sweep(TWO, on=on, out=tmp_path / "s", show=False)
    assert not (tmp_path / "s").exists() and placed("local:2") == ("local", 2)


def test_a_worker_that_cannot_begin_says_so_in_the_sweeps_log(tmp_path):
    there = write_sweep(TWO, tmp_path / "s", Settings("mps"))
    with pytest.raises(LotteryError, match="is not on this machine"):
        logged_work(str(there.path))
    assert "is not on this machine" in there.folder.worker_log.read_text()


# --- Ray ---


@pytest.fixture(scope="module")
def cluster(request):
    "A Ray cluster of two machines, here, and the second of them; nothing of it is left behind."
    if "slow" not in request.config.getoption("--flags"):
        pytest.skip("a Ray cluster takes half a minute to start: run with --flags slow")
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'lottery_nb[ray]'")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80_000_000}
    there = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        second = there.add_node(**size)
        ray.init(address=there.address, log_to_driver=False)
        yield there, second
    finally:
        ray.shutdown()
        there.shutdown()


def test_the_shell_trains_on_a_cluster_that_is_there(cluster, tmp_path, capsys):
    there = write_sweep(TWO, tmp_path / "s")
    with within(120):
        assert main(["sweep", str(there.path), "--on", "ray:2", "--quiet"]) == 0
    assert "2 of 2 points done" in capsys.readouterr().out
    assert there.folder.worker_log.read_text().count(": done") == 2


def test_why_a_task_could_not_begin_is_told(cluster, tmp_path):
    there = write_sweep(TWO, tmp_path / "s", Settings("mps"))
    with within(120), pytest.raises(LotteryError, match="is not on this machine"):
        sweep(there.path, on="ray:1", show=False)
    there = write_sweep(TWO, tmp_path / "t", Settings(threads=64))
    with pytest.raises(LotteryError, match="no machine of the Ray cluster has more than 1 cores"):
        sweep(there.path, on="ray:1", show=False)
    assert there.claims == {}


def test_who_interrupts_a_sweep_on_ray_gets_its_points_back(cluster, tmp_path):
    there = write_sweep(seconds_each(), tmp_path / "s")

    def look():
        if begun(there, 2):
            raise KeyboardInterrupt

    with within(120), pytest.raises(KeyboardInterrupt):
        PLACES["ray"](there, 1, look)
    (name,) = [name for name, claim in there.claims.items() if not claim.end]
    lease, _ = Queue(there.folder.leases, [name]).take()
    assert lease and not lease.fenced


def test_a_sweep_on_ray_outlives_a_machine(cluster, tmp_path, alone):
    there, killed = write_sweep(seconds_each(), tmp_path / "s"), []

    def look():
        if not killed and len(names := begun(there, 5)) == 2:
            killed.extend(names)
            cluster[0].remove_node(cluster[1], allow_graceful=False)

    with within(200):
        PLACES["ray"](there, 2, look)
    assert there.done and killed
    assert sorted(claim.number for claim in there.claims.values()) == [1, 1, 2]
    assert same_bits(there, alone)


# --- Slurm ---


@pytest.fixture
def submitit(monkeypatch):
    "Submitit's local executor: processes of this machine with what a job has."
    monkeypatch.setenv("LOTTERY_SLURM", "cluster=local timeout_min=5")
    return pytest.importorskip("submitit", reason="submitit is not installed: pip install 'lottery_nb[slurm]'")


def test_a_job_whose_time_is_up_hands_the_same_folder_back(submitit, tmp_path, alone):
    there, told = write_sweep(seconds_each(), tmp_path / "s"), []

    def look():
        if not told and (names := begun(there, 5)):
            lease = there.folder.leases / f"{names[0]}.{there.claims[names[0]].number}"
            os.kill(int(json.loads(lease.read_bytes())["worker"].split()[0]), signal.SIGUSR2)
            told.append(names[0])

    with within(200):
        PLACES["slurm"](there, 1, look)
    assert there.done and there.claims[told[0]].number == 2
    assert sorted(claim.number for claim in there.claims.values()) == [1, 1, 2]
    (said,) = there.folder.jobs.glob("*/*_0_log.err")
    assert "this job is timed-out" in said.read_text() and str(said) in there.folder.worker_log.read_text()
    assert same_bits(there, alone)


def test_a_job_is_handed_over_as_a_folder(submitit, tmp_path):
    job = Job()
    handed = job.__submitit_checkpoint__("somewhere", ("tiny",))
    assert handed.function is job and handed.args == ("somewhere", ("tiny",)) and not handed.kwargs


def test_submitits_debug_executor_trains_here(submitit, tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_SLURM", "cluster=debug")
    done = sweep(TWO, on="slurm:2", out=tmp_path / "s", device="cpu", show=False)
    assert done.done and os.stat(next(done.folder.jobs.iterdir())).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "said, why",
    [
        ("", "this machine has no Slurm"),
        ("cluster=local timeout_min", "is no NAME=VALUE"),
        ("cluster=local timeout_min=soon", "timeout_min"),
        ("cluster=local slurm_partitoin=gpu", "partitoin"),
        ("cluster=moon", "moon"),
        ("cluster=local nodes=2", "one node"),
    ],
)
def test_what_jobs_cannot_ask_for_is_refused_and_nothing_is_trained(submitit, said, why, tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_SLURM", said)
    monkeypatch.setenv("PATH", "/nowhere")
    there = write_sweep(TWO, tmp_path / "s")
    with pytest.raises(LotteryError, match=why):
        sweep(there.path, on="slurm:2", show=False)
    assert there.claims == {}
