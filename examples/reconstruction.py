"""reconstruction.yaml in Python: python reconstruction.py recordings run."""

import sys

import tymbal


def main(recordings: str, run: str) -> None:
    result = tymbal.pretrain(
        recordings,
        run,
        objective="reconstruction",
        size="tiny",
        window=1.0,
        group_pattern="(site_[a-z]+)/",
        validation=0.1,
        time_masks=2,
        time_mask_width=24,
        frequency_masks=2,
        frequency_mask_width=24,
    )
    print(result.summary())


if __name__ == "__main__":
    main(*sys.argv[1:])
