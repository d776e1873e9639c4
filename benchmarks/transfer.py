"""Does a model trained on some classes help with few images of others, more than its own start does?

    python benchmarks/transfer.py [--seeds N] [--write-docs]

Five classes of the sample (every second one by name) train a first model from the ImageNet weights, with
all 100 images a class. Then recipes with ten images a class of the five other classes start once from the
ImageNet weights and once from that model (``source = "bundle"``), each as feature extraction and as hybrid
training, and are tested on the 500 test images of these classes. Everything is done anew with each seed:
the first model, which ten images, and the training. Both starts of a seed see the same images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from cases import write_sample
from commands import called
from document import write_between_marks

COMMAND = "python benchmarks/transfer.py --write-docs"
PER_CLASS = 10
COMMON = """\
format = 1
name = "{name}"
seed = {seed}

[data]
source = "folder"
path = "{data}"
size = 64
batch_size = {batch}
val = 0.0
crop_pct = 1.0
{more}

[backbone]
{backbone}

[optimizer]
name = "adamw"
weight_decay = 0.02

[[phase]]
name = "extract"
freeze = ["@backbone"]
epochs = {epochs}
lr = 1e-3
label_smoothing = 0.1
schedule = {{ name = "cosine", warmup = 0.1 }}
augment = {{ hflip = true }}
"""
FINETUNE = """\

[[phase]]
name = "finetune"
freeze = ["@stage:0..4"]
epochs = {epochs}
lr = 5e-4
norm = "frozen"
label_smoothing = 0.1
schedule = {{ name = "cosine", warmup = 0.1 }}
augment = {{ hflip = true }}
"""
IMAGENET = 'source = "timm"\nname = "tf_efficientnet_lite0"\nweights = "pretrained"'
# t quantile for a two-sided 95 % interval, by degrees of freedom.
T95 = {2: 4.30, 4: 2.78, 9: 2.26}


def main() -> None:
    """Train all models and print the table, or write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, choices=[3, 5, 10], default=5)
    parser.add_argument("--write-docs", action="store_true", help="write the table into docs/backbones.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options.seeds)
    text = "\n".join(lines(found))
    print(text)
    if options.write_docs:
        write_between_marks(COMMAND, text)


def measured(root: Path, seeds: int) -> dict[str, list[tuple[float, float]]]:
    """Test accuracies by strategy: for each seed from the ImageNet weights and from the first model."""
    split_classes(root)
    found: dict[str, list[tuple[float, float]]] = {"feature extraction": [], "hybrid": []}
    for seed in range(seeds):
        first = root / f"first-{seed}"
        accuracy = trained(root, first, seed, "known", IMAGENET, hybrid=True)
        print(f"seed {seed}: the first model has {accuracy:.1%} on its own classes", flush=True)
        starts = {"imagenet": IMAGENET, "bundle": f'source = "bundle"\npath = "{first}"'}
        for strategy, values in found.items():
            pair = [
                trained(root, root / f"{strategy}-{name}-{seed}", seed, "new", start, strategy == "hybrid")
                for name, start in starts.items()
            ]
            values.append((pair[0], pair[1]))
            print(f"seed {seed}: {strategy}, {pair[0]:.1%} and {pair[1]:.1%}", flush=True)
    return found


def split_classes(root: Path) -> None:
    """The sample as two folders of five classes each."""
    write_sample(root / "all", per_class=100)
    for split in ("train", "test"):
        for index, folder in enumerate(sorted((root / "all" / split).iterdir())):
            target = root / ("known" if index % 2 == 0 else "new") / split
            target.mkdir(parents=True, exist_ok=True)
            folder.rename(target / folder.name)


def trained(root: Path, run: Path, seed: int, data: str, backbone: str, hybrid: bool) -> float:
    """Test accuracy of a recipe that is written, and run in the folder ``run``."""
    few = data == "new"
    text = COMMON.format(
        name=run.name.replace(" ", "-"),
        seed=seed,
        data=data,
        batch=10 if few else 32,
        more=f"per_class = {PER_CLASS}" if few else "",
        backbone=backbone,
        epochs=30 if few else 15,
    )
    recipe = root / "recipe.toml"
    recipe.write_text(text + (FINETUNE.format(epochs=10 if few else 6) if hybrid else ""))
    result = json.loads(called("run", recipe, "--json", "--device", "cpu", "--run-dir", run))
    return float(result["metrics"]["test"]["accuracy"])


def lines(found: dict[str, list[tuple[float, float]]]) -> list[str]:
    """The table, with the mean difference of the starts over the seeds and its 95 % interval."""
    rows = [
        "| strategy | from the ImageNet weights | from the first model | difference, 95 % interval |",
        "| --- | --- | --- | --- |",
    ]
    for strategy, pairs in found.items():
        plain, ours = zip(*pairs, strict=True)
        gains = [b - a for a, b in pairs]
        half = T95[len(gains) - 1] * statistics.stdev(gains) / len(gains) ** 0.5
        mean = statistics.mean(gains)
        rows.append(
            f"| {strategy} | {statistics.mean(plain):.1%} ({min(plain):.1%} to {max(plain):.1%}) "
            f"| {statistics.mean(ours):.1%} ({min(ours):.1%} to {max(ours):.1%}) "
            f"| {100 * mean:+.1f} points ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f}) |"
        )
    return [*rows, "", f"Means over {len(pairs)} seeds, in brackets the lowest and highest."]


if __name__ == "__main__":
    main()
