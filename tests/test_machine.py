from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from tymbal.machine import tune_malloc

layers = torch.nn.Sequential(torch.nn.Linear(4, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 4))
batch = torch.randn(10_000, 4)  # activations of 40 MB: above 32 MB, glibc always asks the kernel

def faults_of_a_step():
    # The fewest of some: the heap grows for a few steps, until there is room for all blocks of a step side by side.
    faults = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        layers(batch).sum().backward()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults)

print(faults_of_a_step(), tune_malloc(), faults_of_a_step())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is about glibc")
def test_tune_malloc__spares_a_training_step_its_page_faults():
    # Dask leaves a threshold of its own behind in a process in which it has started workers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    seen = []
    for _ in range(3):  # where the heap cannot grow, since something lies behind it by chance, glibc asks the kernel on
        words = [sys.executable, "-c", FAULTS]
        run = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        before, took_effect, after = run.stdout.split()
        if took_effect != "True":
            pytest.skip("this is not glibc")
        assert float(before) > 1000
        seen.append(float(after) / float(before))
        if seen[-1] < 0.1:
            break
    assert min(seen) < 0.1
