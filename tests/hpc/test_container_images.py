"""Containers without an engine: the entry point, what is installed, what is asked of an engine, how images are made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(os.name == "nt" or BASH is None, reason="needs a POSIX shell")

MOUNTS = ("/data/audio:ro", "/data/spectrograms", "/data/runs")
SAFE = ("--rm", "--init", "--stop-timeout 180", "--shm-size 2g", "-e OMP_NUM_THREADS")


@pytest.fixture
def programs(tmp_path: Path):
    """A folder of made-up programs that say how they were called, and an environment in which they come first."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name: str, script: str = 'echo "$(basename "$0") $*"') -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return folder, add


def run(
    command: list[str | Path], path: Path, *, cwd: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{path}:/usr/bin:/bin", "HOME": str(cwd), **environment}
    return subprocess.run(command, env=variables, cwd=cwd, check=check, capture_output=True, text=True, timeout=60)


def entrypoint(programs, tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder, _ = programs
    return run(["sh", CONTAINERS / "entrypoint.sh", *arguments], folder, cwd=tmp_path, **environment)


def test_entrypoint__becomes_tymbal(programs, tmp_path: Path):
    _, add = programs
    # The number of the process stays the same: it is `exec`, so signals reach tymbal.
    add("tymbal", 'echo "$PPID $* $MALLOC_MMAP_MAX_ $MALLOC_TRIM_THRESHOLD_ $HOME"')
    said = entrypoint(programs, tmp_path, "pretrain", "my store", "-o", "run").stdout
    assert said == f"{os.getpid()} pretrain my store -o run 0 100000000000 {tmp_path}\n"


def test_entrypoint__other_programs_as_they_are_and_settings_from_outside(programs, tmp_path: Path):
    _, add = programs
    add("torchrun", 'echo "torchrun $* $MALLOC_MMAP_MAX_"')
    said = entrypoint(programs, tmp_path, "torchrun", "-m", "tymbal", MALLOC_MMAP_MAX_="65536").stdout
    assert said == "torchrun -m tymbal 65536\n"


def test_entrypoint__a_home_and_a_name_for_whoever_has_none(programs, tmp_path: Path):
    _, add = programs
    add("tymbal", 'touch "$HOME/cache" && echo "$HOME $USER $LOGNAME"')
    add("id", '[ "$1" = -un ] && exit 1; echo 4711')
    home, *names = entrypoint(programs, tmp_path, HOME="/nowhere", TMPDIR=str(tmp_path)).stdout.split()
    assert Path(home).parent == tmp_path
    assert names == ["user4711", "user4711"]


@pytest.fixture
def install(programs, tmp_path: Path):
    """Runs install.sh with a made-up Python; gives what was asked of it."""
    folder, add = programs
    add(
        "python",
        'mkdir -p "$3/bin"; printf "#!/bin/sh\\necho pip \\"\\$@\\"\\n" > "$3/bin/python"; chmod +x "$3/bin/python"',
    )
    (tmp_path / "constraints.txt").write_text("toolz==1\ntorch==2.13.0\n")

    def install(*arguments: str) -> str:
        command: list[str | Path] = ["sh", CONTAINERS / "install.sh", *arguments]
        return run(command, folder, cwd=tmp_path, TYMBAL_HOME=str(tmp_path / "home")).stdout

    return install


def test_install__torch_from_the_usual_index_or_another(install):
    pinned = "-m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt"
    assert install("torch", "") == install("torch", "usual") == f"pip {pinned} torch==2.13.0\n"
    assert install("torch", "URL") == f"pip {pinned} --no-deps --index-url URL torch==2.13.0\n"
    assert install("tymbal", "cpu").startswith(f"pip {pinned} .\n")


@pytest.mark.parametrize(("there", "cuda"), [("cpu", None), ("cuda", "13.0")])
def test_install__fails_where_torch_is_another_build(there: str, cuda: str | None, tmp_path: Path):
    check = re.search(r"-c '\n(.*?)\n' \"\$2\"", (CONTAINERS / "install.sh").read_text(), re.DOTALL)
    assert check is not None
    (tmp_path / "torch.py").write_text(f"__version__ = '2.13.0'\nclass version:\n    cuda = {cuda!r}\n")
    command = [sys.executable, "-c", check[1]]
    assert subprocess.run([*command, there], check=False, cwd=tmp_path).returncode == 0
    other = {"cpu": "cuda", "cuda": "cpu"}[there]
    failed = subprocess.run([*command, other], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert f"TORCH={other} was asked for, but PyTorch 2.13.0 is a build for {there}." in failed.stderr


@pytest.mark.parametrize(("engine", "gpu"), [("docker", "--gpus all"), ("podman", "--device nvidia.com/gpu=all")])
def test_run__docker_and_podman(engine: str, gpu: str, programs, tmp_path: Path):
    folder, add = programs
    add(engine)
    command = [BASH, CONTAINERS / "run.sh", "pretrain", "spectrograms/my store"]
    said = run(command, folder, cwd=tmp_path, TYMBAL_ENGINE=engine, TYMBAL_GPU="no").stdout
    assert said.endswith(" tymbal:cpu pretrain spectrograms/my store\n")
    assert [part for part in SAFE if part not in said] == []
    assert f"-v {tmp_path}/audio:/data/audio:ro -v {tmp_path}/spectrograms:/data/spectrograms" in said
    assert f"-v {tmp_path}/runs:/data/runs" in said
    assert ("--userns keep-id" if engine == "podman" else f"--user {os.getuid()}:{os.getgid()}") in said
    assert gpu not in said
    said = run(command, folder, cwd=tmp_path, TYMBAL_ENGINE=engine, TYMBAL_GPU="yes", TYMBAL_IMAGE="mine:1").stdout
    assert gpu in said
    assert " mine:1 pretrain" in said


def test_run__apptainer_and_folders_elsewhere(programs, tmp_path: Path):
    folder, add = programs
    add("apptainer")
    add("nvidia-smi", "exit 0")
    command = [BASH, CONTAINERS / "run.sh", "scan", "audio"]
    said = run(command, folder, cwd=tmp_path, TYMBAL_AUDIO="far/away", TYMBAL_ENGINE="apptainer").stdout
    binds = f"{tmp_path}/far/away:/data/audio:ro,{tmp_path}/spectrograms:/data/spectrograms,{tmp_path}/runs:/data/runs"
    assert said == f"apptainer run --pwd /data --bind {binds} --nv tymbal.sif scan audio\n"


def test_run__no_engine(programs, tmp_path: Path):
    folder, _ = programs
    failed = run([str(BASH), CONTAINERS / "run.sh", "scan"], folder, cwd=tmp_path, check=False, TYMBAL_ENGINE="none")
    assert failed.returncode == 2
    assert "none of docker, podman and apptainer" in failed.stderr


@pytest.mark.parametrize("script", ["run.ps1", "run.cmd"])
def test_run__windows_asks_for_the_same(script: str):
    text = (CONTAINERS / script).read_text().replace("', '", " ").replace("'", "")
    assert [part for part in (*SAFE, *MOUNTS, "--gpus") if part not in text] == []
    for name in ("AUDIO", "SPECTROGRAMS", "RUNS", "IMAGE", "ENGINE", "GPU"):
        assert f"TYMBAL_{name}" in text
    # The exit status is that of tymbal: 75 says that the same command continues.
    assert re.search(r"exit (/b )?(\$LASTEXITCODE|%ERRORLEVEL%)\s*$", text)


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined]


def test_dockerfile__is_pinned_and_not_root():
    found = instructions(CONTAINERS / "Dockerfile")
    values = {name: [value for key, value in found if key == name] for name, _ in found}
    base = next(value for value in values["ARG"] if value.startswith("BASE=")).removeprefix("BASE=")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert values["FROM"] == ["${BASE} AS build", "${BASE}"]
    # Whatever runs in the image runs after USER, which names a number.
    last = [name for name, _ in found][-3:]
    assert last == ["USER", "ENTRYPOINT", "CMD"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", values["USER"][0])
    assert not re.search(r"https?://|:latest|ADD ", (CONTAINERS / "Dockerfile").read_text())


def test_images__copy_what_is_there_and_lets_through():
    """What Dockerfile and definition copy exists, and .dockerignore lets it through."""
    copies = [value.split() for name, value in instructions(CONTAINERS / "Dockerfile") if name == "COPY"]
    sources = {source for value in copies if not value[0].startswith("--from") for source in value[:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == allowed
    definition = (CONTAINERS / "tymbal.def").read_text()
    files = re.search(r"%files\n(.*?)\n\n", definition, re.DOTALL)
    assert files is not None
    assert {line.split()[0] for line in files[1].splitlines()} == allowed
    assert [name for name in allowed if not (ROOT / name).exists()] == []


def test_definition__has_the_arguments_of_the_dockerfile():
    definition = (CONTAINERS / "tymbal.def").read_text()
    defaults = dict(re.findall(r"^    (\w+)=(.*)$", definition, re.MULTILINE))
    dockerfile = dict(value.split("=", 1) for name, value in instructions(CONTAINERS / "Dockerfile") if name == "ARG")
    assert defaults.keys() == dockerfile.keys()
    assert (defaults["BASE"], defaults["TORCH"]) == (dockerfile["BASE"], dockerfile["TORCH"])
    assert set(re.findall(r"{{ (\w+) }}", definition)) == defaults.keys()
