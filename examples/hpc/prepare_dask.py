#!/usr/bin/env python3
"""Prepares on several nodes at once, as jobs of Slurm: one command, which waits until all is done.

    pip install 'tymbal[dask]' dask-jobqueue
    python prepare_dask.py --jobs 10 --account me -- manifest.csv -o pairs --views 5

What stands behind `--` goes to `tymbal prepare`. Every job is a node's share of cores with a process each; they need
the same paths as the node on which this runs (the login node, or a small job). Jobs that end, because their time is up
or a node fails, are submitted again; what they had finished stays. Stopped here, all jobs are cancelled, and the same
command continues.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time

from dask_jobqueue import SLURMCluster


def main() -> int:
    options, rest = parse()
    cluster = SLURMCluster(
        cores=options.cores,
        processes=options.cores,
        memory=options.memory,
        walltime=options.time,
        account=options.account,
        queue=options.partition,
        interface=options.interface,
        job_name="tymbal-prepare",
        # One process a core does the work; threads of each would only be in the way.
        job_script_prologue=["export OMP_NUM_THREADS=1", *options.before],
        job_extra_directives=options.directive,
        # Nobody but this scheduler's workers needs to connect to it.
        scheduler_options={"dashboard": False},
    )
    with cluster:
        if options.show:
            print(cluster.job_script())
            return 0
        tymbal = shlex.split(os.environ.get("TYMBAL", "tymbal"))
        command = [*tymbal, "prepare", *rest, "--executor", "dask", "--scheduler", cluster.scheduler_address]
        cluster.scale(jobs=options.jobs)
        seen: set[str] = set()
        with subprocess.Popen(command) as process:
            try:
                while process.poll() is None:
                    time.sleep(1)
                    renew(cluster, seen, options.jobs)
            finally:
                process.terminate()
        return process.returncode


def renew(cluster: SLURMCluster, seen: set[str], jobs: int) -> None:
    """Submits a job for each that had workers and has none left: its time was up, or its node failed."""
    # Worker 1 of the job NAME is called NAME-1; that of a job with a single one NAME.
    workers = [str(worker["name"]) for worker in cluster.scheduler_info["workers"].values()]
    alive = {job for job in cluster.worker_spec for name in workers if name == job or name.startswith(f"{job}-")}
    ended = (seen - alive) & set(cluster.worker_spec)
    seen -= ended
    seen |= alive
    for job in ended:
        del cluster.worker_spec[job]
    # Names are used again: first the old job is cleared away, a moment later another one takes its place.
    cluster.scale(jobs=len(cluster.worker_spec) if ended else jobs)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, help="jobs at once")
    parser.add_argument("--cores", type=int, default=8, help="cores, and processes, of a job")
    parser.add_argument("--memory", default="16GB", help="memory of a job, for all its processes")
    parser.add_argument("--time", default="04:00:00", help="time limit of a job")
    parser.add_argument("--account")
    parser.add_argument("--partition")
    parser.add_argument("--interface", help="network card between the nodes, such as ib0; the default is Dask's choice")
    parser.add_argument("--directive", action="append", default=[], help="one more #SBATCH line, such as --qos=low")
    parser.add_argument(
        "--before", action="append", default=[], help="a line before the start, such as 'module load …'"
    )
    parser.add_argument("--show", action="store_true", help="print the job's script and submit nothing")
    if "--" not in sys.argv:
        options = parser.parse_args()
        if not options.show:
            parser.error("what is to be prepared is missing: put it behind --")
        return options, []
    place = sys.argv.index("--")
    return parser.parse_args(sys.argv[1:place]), sys.argv[place + 1 :]


if __name__ == "__main__":
    sys.exit(main())
