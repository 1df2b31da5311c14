"""The batch scripts without Slurm: made-up `srun` and `scontrol`, and once the real `tymbal`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training_setup import TINY, make_store
from tymbal.config import write_yaml

HPC = Path(__file__).parents[2] / "examples" / "hpc"
BASH = shutil.which("bash") or "bash"

pytestmark = pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="needs bash")

# Forgets its options and starts the tasks; signals reach them as they do under Slurm.
SRUN = """
while [[ $1 == --* ]]; do shift; done
echo step >> "$CALLS"
if (( ${TASKS:-1} == 1 )); then exec env SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 "$@"; fi
for ((i = 0; i < TASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=$TASKS "$@" & done
worst=0
for job in $(jobs -p); do wait "$job" || worst=$?; done
exit "$worst"
"""

SCONTROL = """
if [[ $1 == show ]]; then echo node1; echo node2; exit; fi
echo "scontrol $*" >> "$CALLS"
exit "${REQUEUE_FAILS:-0}"
"""

# Stands in for tymbal: says so when it runs, and ends as told, or with 75 when it is asked to.
TYMBAL = """
asked() {
    echo asked >> "$CALLS"
    if [[ -n ${SAVES-yes} ]]; then mkdir -p "$1/checkpoints/checkpoint-7"; fi
    exit "${ON_USR1:-75}"
}
trap 'asked "$4"' USR1
echo "tymbal $* rank=${RANK:-} of ${WORLD_SIZE:-} at ${MASTER_ADDR:-} threads=$OMP_NUM_THREADS" >> "$CALLS"
if [[ -n ${ENDS:-} ]]; then exit "$ENDS"; fi
for i in {1..200}; do sleep 0.05; done
"""


class Job:
    """A job that is about to run: a folder of made-up programs, and an environment as Slurm gives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        (folder / "bin").mkdir()
        for name, script in (("srun", SRUN), ("scontrol", SCONTROL), ("tymbal", TYMBAL)):
            self.add(name, script)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "CALLS": str(self.calls),
            "HOME": str(folder),
            "SLURM_SUBMIT_DIR": str(HPC),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "3",
        }

    def add(self, name: str, script: str) -> None:
        program = self.folder / "bin" / name
        program.write_text(f"#!{BASH}\n{script}\n")
        program.chmod(0o755)

    def start(self, script: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        self.calls.unlink(missing_ok=True)
        return subprocess.Popen(
            [BASH, HPC / script, *arguments],
            env={**self.environment, **environment},
            cwd=self.folder,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str | Path, **environment: str) -> tuple[int, str]:
        process = self.start(script, *arguments, **environment)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def signal_when(self, process: subprocess.Popen[str], file: Path, word: str, *numbers: int) -> tuple[int, str]:
        """Sends signals to the batch shell, as Slurm does, once a file has a word in it."""
        until = time.monotonic() + 240
        while not (file.exists() and word in file.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        _, said = process.communicate(timeout=240)
        return process.returncode, said


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_step__asked_to_stop_is_queued_again(job: Job):
    process = job.start("pretrain.sbatch", "store", "run", "--size", "tiny")
    status, said = job.signal_when(process, job.calls, "tymbal", signal.SIGUSR1)
    assert (status, job.called()[-2:]) == (0, ["asked", "scontrol requeue 4711"])
    assert "job 4711: saved, and queued again" in said


def test_step__that_saves_nothing_is_queued_again_a_few_times_only(job: Job, tmp_path: Path):
    for idle in range(1, 4):
        process = job.start("pretrain.sbatch", "store", "runs/first", SAVES="")
        status, said = job.signal_when(process, job.calls, "tymbal", signal.SIGUSR1)
        assert "saved, and" not in said
        if idle < 3:
            assert (status, job.called()[-1]) == (0, "scontrol requeue 4711")
            assert "nothing was saved before the time was up; queued again" in said
    assert (status, job.called()[-1]) == (75, "asked")
    assert "the time was up 3 times before anything was saved: ask for more (--time)" in said
    process = job.start("pretrain.sbatch", "store", "runs/first")
    status, said = job.signal_when(process, job.calls, "tymbal", signal.SIGUSR1)
    assert (status, "saved, and queued again" in said) == (0, True)
    assert not list((tmp_path / "runs").glob("*.idle-*"))


def test_step__that_ends_by_itself_gives_its_status(job: Job):
    for status in (0, 2):
        assert job.run("finetune.sbatch", "labelled", "run", ENDS=str(status))[0] == status
        assert job.called()[1:] == ["tymbal finetune labelled -o run rank= of  at node1 threads=3"]


def test_step__killed_by_the_signal_while_it_starts_or_ends_is_queued_again(job: Job):
    job.add("tymbal", 'echo tymbal >> "$CALLS"; exec sleep 30')
    process = job.start("pretrain.sbatch", "store", "run")
    status, said = job.signal_when(process, job.calls, "tymbal", signal.SIGUSR1)
    assert (status, job.called()[-1]) == (0, "scontrol requeue 4711")
    assert "nothing was saved before the time was up; queued again" in said


def test_step__cancelled_is_not_queued_again(job: Job):
    # It saves because Slurm sends SIGTERM to the step, too; here it ends with 75 by itself.
    assert job.run("pretrain.sbatch", "store", "run", ENDS="75")[0] == 75
    assert not any("requeue" in call for call in job.called())


def test_step__the_shell_outlives_sigterm_to_see_how_it_ends(job: Job):
    process = job.start("pretrain.sbatch", "store", "run")
    status, _ = job.signal_when(process, job.calls, "tymbal", signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM)
    assert (status, job.called()[-1]) == (0, "scontrol requeue 4711")


def test_step__that_fails_when_asked_to_stop_is_not_queued_again(job: Job):
    process = job.start("pretrain.sbatch", "store", "run", ON_USR1="1")
    status, _ = job.signal_when(process, job.calls, "tymbal", signal.SIGUSR1)
    assert (status, job.called()[-1]) == (1, "asked")


def test_requeue__has_an_end(job: Job):
    process = job.start("pretrain.sbatch", "store", "run", SLURM_RESTART_COUNT="3", TYMBAL_MAX_RESTARTS="3")
    status, said = job.signal_when(process, job.calls, "tymbal", signal.SIGUSR1)
    assert (status, job.called()[-1]) == (75, "asked")
    assert "queued again 3 times already" in said


def test_requeue__that_the_cluster_refuses(job: Job):
    process = job.start("pretrain.sbatch", "store", "run", REQUEUE_FAILS="1")
    status, said = job.signal_when(process, job.calls, "tymbal", signal.SIGUSR1)
    assert status == 75
    assert "does not let a job queue itself again" in said


def test_step__several_tasks_know_of_each_other(job: Job):
    assert job.run("pretrain.sbatch", "store", "run", TASKS="2", ENDS="0")[0] == 0
    assert sorted(job.called()[1:]) == [
        f"tymbal pretrain store -o run rank={rank} of 2 at node1 threads=3" for rank in (0, 1)
    ]


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_scratch__a_store_is_copied_once(job: Job, tmp_path: Path):
    store = tmp_path / "store"
    (store / "shards").mkdir(parents=True)
    (store / "store.json").write_text("{}")
    (store / "shards" / "00000.npy").write_bytes(b"spectrograms")
    job.add("rsync", 'echo "rsync $*" >> "$CALLS"; cp -a "$4." "$5"')
    for _ in range(2):
        assert job.run("pretrain.sbatch", store, "run", ENDS="0", TYMBAL_SCRATCH=str(tmp_path / "disk"))[0] == 0
        copies = [path for path in (tmp_path / "disk" / "tymbal").iterdir() if path.is_dir()]
        assert len(copies) == 1
        assert (copies[0] / "shards" / "00000.npy").read_bytes() == b"spectrograms"
        assert f"rsync -a --partial --delete {store}/ {copies[0]}/" in job.called()
        assert f"tymbal pretrain {copies[0]} -o run" in job.called()[-1]


def test_scratch__time_up_before_training_is_not_queued_again(job: Job, tmp_path: Path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text("{}")
    job.add("rsync", 'echo copying >> "$CALLS"; sleep 0.5')
    process = job.start("pretrain.sbatch", "store", "run", SLURM_TMPDIR=str(tmp_path / "disk"))
    status, said = job.signal_when(process, job.calls, "copying", signal.SIGUSR1)
    assert status == 1
    assert "the time was up before the step began" in said
    assert not any("requeue" in call or call.startswith("tymbal") for call in job.called())


def test_prepare__writes_checksums(job: Job, tmp_path: Path):
    store = tmp_path / "far" / "my store"
    store.mkdir(parents=True)
    (store / "store.json").write_text("{}")
    assert job.run("prepare.sbatch", "recordings", store, "--window", "5", ENDS="0")[0] == 0
    assert f"tymbal prepare recordings -o {store} --window 5" in job.called()[1]
    assert "threads=1" in job.called()[1]
    written = (tmp_path / "far" / "my store.sha256").read_text()
    assert written == f"{hashlib.sha256(b'{}').hexdigest()}  my store/store.json\n"
    subprocess.run(["sha256sum", "--check", "--quiet", "my store.sha256"], cwd=store.parent, check=True)


def test_prepare__time_up_while_checksums_are_added_goes_on_with_them(job: Job, tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    for name in ("a", "b", "c"):
        (store / name).write_text(name)
    job.add(
        "sha256sum", 'echo "hash $*" >> "$CALLS"; [[ $1 != store/b || -e go ]] || sleep 2; exec /usr/bin/sha256sum "$@"'
    )
    process = job.start("prepare.sbatch", "recordings", store, ENDS="0")
    status, said = job.signal_when(process, job.calls, "hash store/b", signal.SIGUSR1)
    assert (status, job.called()[-1]) == (0, "scontrol requeue 4711")
    assert "saved, and queued again" in said
    with (tmp_path / "store.sha256.partial").open("a") as file:
        file.write("0123 cut")
    (tmp_path / "go").touch()
    assert job.run("prepare.sbatch", "recordings", store, ENDS="0")[0] == 0
    assert [call for call in job.called() if call.startswith("hash")] == ["hash store/c"]
    assert not (tmp_path / "store.sha256.partial").exists()
    subprocess.run(["sha256sum", "--check", "--quiet", "store.sha256"], cwd=tmp_path, check=True)
    assert len((tmp_path / "store.sha256").read_text().splitlines()) == 3


@pytest.mark.parametrize("script", sorted(path.name for path in HPC.glob("*.sbatch")))
def test_scripts__parse_and_ask_for_what_requeueing_needs(script: str, job: Job):
    subprocess.run([BASH, "-n", HPC / script], check=True)
    text = (HPC / script).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert re.fullmatch(r"B:USR1@\d{3}", options["signal"])
    assert {"requeue", "time", "output"} <= options.keys()
    assert options["open-mode"] == "append"
    status, said = job.run(script)
    assert (status, said.startswith("sbatch ")) == (2, True)


def test_pretrain__for_real(job: Job, tmp_path: Path):
    """Asked to stop, the job is queued again with a checkpoint; started again, it finishes."""
    store = make_store(tmp_path / "store").path
    write_yaml(tmp_path / "settings.yaml", {**TINY, "epochs": 100, "eval_every": 100, "log_every": 1})
    job.add("tymbal", f'exec {sys.executable} -m tymbal "$@"')
    paths = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    run = tmp_path / "run"
    arguments = (store, run, "--config", tmp_path / "settings.yaml")
    process = job.start("pretrain.sbatch", *arguments, **paths)
    status, said = job.signal_when(process, run / "metrics.jsonl", '"step": 3', signal.SIGUSR1)
    assert status == 0, said
    stopped = re.search(r"Stopped by SIGUSR1 after step (\d+) of 463. The same command continues.", said)
    assert stopped is not None
    assert job.called()[-1] == "scontrol requeue 4711"
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"checkpoint-{stopped[1]}"]
    assert not (run / "result.json").exists()
    status, said = job.run("pretrain.sbatch", *arguments, SLURM_RESTART_COUNT="1", **paths)
    assert status == 0, said
    assert f"Continuing from step {stopped[1]} of 463" in said
    assert json.loads((run / "result.json").read_text())["steps"] == 463
    assert not any("requeue" in call for call in job.called())
