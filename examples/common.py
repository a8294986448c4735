"""What the examples share: the command line, and how their pictures look."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

BLUE, RED, GREEN, GREY = "#2b6cb0", "#c53030", "#2f855a", "#a0aec0"

plt.rcParams.update(
    {
        "figure.dpi": 150,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "legend.frameon": False,
        "lines.linewidth": 1.8,
    }
)


def options(description: str) -> argparse.Namespace:
    """The command line: `out`, the folder for the picture, and `quick`, for a short run."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    parser.add_argument("--quick", action="store_true", help="a few training steps only")
    return parser.parse_args()


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write the picture and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name)
    print(f"picture: {folder / name}")
