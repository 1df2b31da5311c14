"""The batch scripts under a real Slurm of one node, which is started here: `make test-slurm`.

Debian: `apt install slurm-wlm munge`. It needs root and some minutes: Slurm counts time limits in whole minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tymbal
from tones import RATE, tone_folder
from training_setup import TINY, make_store
from tymbal.config import write_yaml
from tymbal.machine import cores

HPC = Path(__file__).parents[2] / "examples" / "hpc"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name, path=PATH) is None for name in NEEDED) or os.name == "nt" or os.geteuid() != 0,
        reason="needs Slurm and munge (Debian: apt install slurm-wlm munge), and root",
    ),
]

CONF = """
ClusterName=tymbal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobRequeue=1
KillWait=60
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A Slurm of this machine alone.

    Args:
        folder: Where its daemons write, and jobs are submitted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "TYMBAL_HPC": str(HPC),
            "TYMBAL": f"{sys.executable} -m tymbal",
            "OMP_NUM_THREADS": "1",
        }

    def call(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: str, *arguments: str | Path, options: tuple[str, ...] = ()) -> Job:
        usual = ("--gres=none", "--cpus-per-task=1", "--mem=1G", "--parsable")
        return Job(self, self.call("sbatch", *usual, *options, HPC / script, *arguments).strip())


class Job:
    """A job of the cluster.

    Args:
        cluster: The cluster.
        number: The number that it has there.
    """

    def __init__(self, cluster: Cluster, number: str) -> None:
        self.cluster = cluster
        self.number = number

    def shown(self) -> dict[str, str]:
        said = self.cluster.call("scontrol", "show", "job", "-o", self.number)
        return dict(pair.split("=", 1) for pair in said.split() if "=" in pair)

    def log(self) -> str:
        return "".join(path.read_text() for path in self.cluster.folder.glob(f"*-{self.number}.out"))

    def wait(self, until: float = 600) -> str:
        """Waits for its end; gives the state in which it ended."""
        limit = time.monotonic() + until
        while (state := self.shown()["JobState"]) in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"):
            assert time.monotonic() < limit, (state, self.log())
            time.sleep(1)
        return state


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    found = Cluster(folder)
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    host = socket.gethostname().split(".")[0]
    text = CONF.format(host=host, ports=ports, folder=folder, cpus=cores())
    (folder / "slurm.conf").write_text(text)
    munge = folder / "munge"
    places = [f"--{what}={munge / what.removesuffix('-file')}" for what in ("log-file", "pid-file", "seed-file")]
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge / 'socket'}", *places],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D"],
    ]
    running = []
    try:
        for command in daemons:
            quiet = subprocess.DEVNULL
            program = shutil.which(command[0], path=PATH) or command[0]
            running.append(subprocess.Popen([program, *command[1:]], env=found.environment, stdout=quiet, stderr=quiet))
            time.sleep(2)
        limit = time.monotonic() + 60
        while "idle" not in found.call("sinfo", "-h", "-o", "%T"):
            assert time.monotonic() < limit, (folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(1)
        yield found
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(30)


def test_prepare__makes_a_store_and_its_checksums(cluster: Cluster, tmp_path: Path) -> None:
    sounds, store = tone_folder(tmp_path / "sounds"), tmp_path / "store"
    settings = ("--window", "0.3", "--sample-rate", str(RATE), "--mel-bins", "16")
    job = cluster.submit("prepare.sbatch", sounds, store, *settings)
    assert job.wait() == "COMPLETED", job.log()
    subprocess.run(["sha256sum", "--check", "--quiet", "store.sha256"], cwd=tmp_path, check=True)
    assert (store / "store.json").is_file()


def test_pretrain__cut_by_its_time_is_queued_again_and_ends_with_the_same_weights(
    cluster: Cluster, tmp_path: Path
) -> None:
    store = make_store(tmp_path / "store").path
    settings = {**TINY, "eval_every": 2000, "log_every": 500, "epochs": 20}
    start = time.monotonic()
    tymbal.pretrain(store, tmp_path / "trial", **settings)
    settings["epochs"] = max(200, round(20 * 75 / (time.monotonic() - start)))  # longer than the job may run
    write_yaml(tmp_path / "settings.yaml", settings)
    run = tmp_path / "run"
    options = ("--time=2", "--signal=B:USR1@60")
    job = cluster.submit("pretrain.sbatch", store, run, "--config", tmp_path / "settings.yaml", options=options)
    assert job.wait(900) == "COMPLETED", job.log()
    log = job.log()
    assert int(job.shown()["Restarts"]) >= 1
    assert "Stopped by SIGUSR1 after step" in log
    assert "saved, and queued again" in log
    assert "Continuing from step" in log
    tymbal.pretrain(store, tmp_path / "whole", **settings)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole"))
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)
    sys.stderr.write(log)


def test_pretrain__cancelled_saves_and_stays_away(cluster: Cluster, tmp_path: Path) -> None:
    store, run = make_store(tmp_path / "store").path, tmp_path / "run"
    write_yaml(tmp_path / "settings.yaml", {**TINY, "epochs": 20_000, "eval_every": 90_000, "log_every": 10})
    job = cluster.submit("pretrain.sbatch", store, run, "--config", tmp_path / "settings.yaml")
    limit = time.monotonic() + 240
    while not (run / "metrics.jsonl").is_file():
        assert time.monotonic() < limit, job.log()
        time.sleep(0.5)
    cluster.call("scancel", job.number)
    assert job.wait() == "CANCELLED"
    stopped = re.search(r"Stopped by SIGTERM after step (\d+) of", job.log())
    assert stopped is not None, job.log()
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"checkpoint-{stopped[1]}"]
    assert job.shown()["Restarts"] == "0"


def test_dask__prepares_in_jobs_the_bytes_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    sounds = tone_folder(tmp_path / "sounds", clips=20)
    settings = {"window": "0.3", "sample-rate": str(RATE), "mel-bins": "16", "shard-mib": "1"}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    recipe = [sys.executable, HPC / "prepare_dask.py", "--jobs", "2", "--cores", "1", "--memory", "1GB"]
    cluster.call(*recipe, "--time", "00:10:00", "--interface", "lo", "--", sounds, "-o", tmp_path / "store", *words)
    keywords = {"window": 0.3, "sample_rate": RATE, "mel_bins": 16, "shard_mib": 1}
    tymbal.prepare(sounds, tmp_path / "here", workers=1, **keywords)
    names = sorted(path.name for path in (tmp_path / "here" / "shards").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "store" / "shards").iterdir())
    for name in names:
        assert (tmp_path / "store/shards" / name).read_bytes() == (tmp_path / "here/shards" / name).read_bytes()
    assert json.loads((tmp_path / "store" / "store.json").read_text())["count"] == 120
