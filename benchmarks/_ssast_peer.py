"""Steps of SSAST itself, one for each line on standard input, whose seconds go to standard output.

`ssast_step.py` runs it with the interpreter of an environment that SSAST works in: timm 0.4.5, and a PyTorch of its
time. It is therefore written for an old Python and imports nothing of Tymbal.
"""

from __future__ import annotations

import contextlib
import sys
import time

import torch


def main() -> None:
    device, path, size, clock = sys.argv[1:5]
    frames, mels, batch, masked, threads = (int(text) for text in sys.argv[5:])
    now = getattr(time, clock)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sys.path.insert(0, path + "/src")
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what SSAST prints is no answer
        from models import ASTModel

        model = ASTModel(
            fshape=16,
            tshape=16,
            fstride=16,
            tstride=16,
            input_fdim=mels,
            input_tdim=frames,
            model_size=size,
            pretrain_stage=True,
        )
    # As its run.py does.
    model = torch.nn.DataParallel(model).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-4, weight_decay=5e-7, betas=(0.95, 0.999))
    spectrogram = torch.randn(batch, frames, mels).to(device)
    for _ in sys.stdin:
        start = now()
        accuracy, contrastive = model(spectrogram, "pretrain_mpc", mask_patch=masked)
        accuracy, contrastive = accuracy.mean(), contrastive.mean()
        loss = contrastive + 10 * model(spectrogram, "pretrain_mpg", mask_patch=masked).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy.detach().cpu().item()
        loss.detach().cpu().item()
        loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        print(now() - start, file=answers, flush=True)


if __name__ == "__main__":
    main()
