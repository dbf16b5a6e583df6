"""The bench on presets, with its results and figures as files in this folder's `results`.

    python benchmarks/run.py                             # smollm2-135m and qwen2.5-0.5b
    python benchmarks/run.py llama-3.2-1b --rounds 3     # flags of `hfgraph bench` are passed on

Exit status: the worst of the benches'.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hfgraph import cli
from hfgraph.bench.presets import NAMES

PRESETS = ("smollm2-135m", "qwen2.5-0.5b")
RESULTS = Path(__file__).parent / "results"


def command(preset: str, device: str, folder: Path, flags: list[str]) -> list[str]:
    """The arguments of `hfgraph` for one preset; files are named after it and the device."""
    stem = folder / f"bench-{preset}-{device}"
    return ["bench", preset, "--device", device, "--out", f"{stem}.json", "--plot", str(stem), *flags]


def main(argv: list[str]) -> int:
    """Run them one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="run.py [PRESET ...] [--folder FOLDER] [flags of hfgraph bench]"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: a GPU where there is one")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where files go (default: benchmarks/results)")
    at = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    given, flags = parser.parse_known_args(argv[at:])
    presets = argv[:at] or PRESETS
    if wrong := [name for name in presets if name not in NAMES]:
        parser.error(f"no such preset: {', '.join(wrong)}; presets: {', '.join(NAMES)}")
    if given.device is None:
        import torch

        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    given.folder.mkdir(parents=True, exist_ok=True)
    return max(cli.main(command(preset, given.device, given.folder, flags)) for preset in presets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
