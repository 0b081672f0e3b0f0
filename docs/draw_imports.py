"""Draw which packages of bough import which, from high to low, into docs/imports.svg.

python docs/draw_imports.py
"""

import tomllib
from pathlib import Path

import grimp
import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent


def main() -> None:
    contracts = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["name"] == "stages")
    graph = grimp.build_graph("bough")
    places: dict[str, tuple[float, float]] = {}
    for row, layer in enumerate(layers):
        names = [name.strip() for name in layer.split("|")]
        for column, name in enumerate(names):
            places[name] = (column - (len(names) - 1) / 2 + 0.35 * (-1) ** row, -float(row))
    figure, axes = plt.subplots(figsize=(9, 13))
    for importer, (x, y) in places.items():
        for imported, (u, v) in places.items():
            if importer != imported and graph.direct_import_exists(importer=importer, imported=imported, as_packages=True):
                assert v < y, f"{importer} imports {imported}, which is not below it"
                bend = 0.15 * (1 if x <= u else -1)
                style = {"arrowstyle": "->", "color": "#2f7d4f", "alpha": 0.35, "connectionstyle": f"arc3,rad={bend}"}
                axes.annotate("", (u, v + 0.18), (x, y - 0.18), arrowprops=style)
    for name, (x, y) in places.items():
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "#444444"}
        axes.text(x, y, name.removeprefix("bough."), ha="center", va="center", bbox=box)
    axes.set_xlim(min(x for x, _ in places.values()) - 0.8, max(x for x, _ in places.values()) + 0.8)
    axes.set_ylim(-len(layers), 1)
    axes.axis("off")
    plt.rcParams["svg.hashsalt"] = "bough"
    figure.savefig(HERE / "imports.svg", bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
