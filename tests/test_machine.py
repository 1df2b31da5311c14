from __future__ import annotations

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
    output = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    before, took_effect, after = float(output[0]), output[1] == "True", float(output[2])
    if not took_effect:
        pytest.skip("this is not glibc")
    assert before > 1000
    assert after < before / 10
