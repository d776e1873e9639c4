"""Trains one epoch of feature extraction on many architectures, from weights that it writes to a file.

    python benchmarks/architectures.py [--write-docs] [NAME…]

Each architecture's network is saved with random weights and a head for 1,000 classes. A recipe names that
file; it is explained, run on five images a class of the sample at 64 pixels, and its model predicts an
image. What is shown is whether all of this works, not how well a random network sees.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import timm
import torch
import torchvision
from cases import write_sample
from commands import called
from document import write_between_marks

COMMAND = "python benchmarks/architectures.py --write-docs"
FAMILIES = {
    "ResNet": "timm/resnet18 torchvision/resnet18 torchvision/resnext50_32x4d timm/resnetv2_50",
    "EfficientNet": "timm/tf_efficientnet_lite0 torchvision/efficientnet_b0",
    "MobileNet": "timm/mobilenetv3_small_100 torchvision/mobilenet_v3_small timm/mobilenetv4_conv_small",
    "RegNet": "timm/regnety_004 torchvision/regnet_x_400mf",
    "DenseNet": "torchvision/densenet121",
    "SqueezeNet": "torchvision/squeezenet1_1",
    "ShuffleNet": "torchvision/shufflenet_v2_x1_0",
    "GhostNet": "timm/ghostnet_100",
    "RepVGG": "timm/repvgg_a0",
    "NFNet": "timm/eca_nfnet_l0",
    "ConvNeXt": "timm/convnext_atto timm/convnextv2_atto torchvision/convnext_tiny",
    "ViT": "timm/vit_tiny_patch16_224 timm/deit_tiny_distilled_patch16_224 torchvision/vit_b_16",
    "Swin": "timm/swin_tiny_patch4_window7_224 torchvision/swin_t",
    "CoAtNet": "timm/coatnet_nano_rw_224",
    "Inception": "torchvision/googlenet",
    "DLA": "timm/dla46_c",
    "XCiT": "timm/xcit_nano_12_p16_224",
    "PVT": "timm/pvt_v2_b0",
    "FastViT": "timm/fastvit_t8",
    "PoolFormer": "timm/poolformer_s12",
}
PIXELS = 64
RECIPE = """\
format = 1
name = "one-epoch"

[data]
source = "folder"
path = "images"
size = {size}
batch_size = 10
val = 0.0

[backbone]
source = "{library}"
name = "{name}"
weights = "weights.safetensors"

[[phase]]
name = "extract"
freeze = ["@backbone"]
epochs = 1
lr = 1e-3
"""


@dataclass(frozen=True)
class Tried:
    """What became of one architecture."""

    head: str
    pixels: int
    cut: str
    kilobytes: float
    trained: int


def main() -> None:
    """Try the architectures and print the table, or write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures to try, as LIBRARY/NAME; default: all")
    parser.add_argument("--write-docs", action="store_true", help="write the table into docs/backbones.md")
    options = parser.parse_args()
    lines = list(table(options.names))
    if options.write_docs:
        write_between_marks(COMMAND, "\n".join(lines))


def table(names: list[str]) -> Iterator[str]:
    """The lines of the table, each printed as soon as it is known. Raises where an architecture fails."""
    lines = [
        "| family | architecture | pixels | head | its parameters | computed once up to, kB an image |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    yield from lines
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_sample(root / "images", per_class=5)
        for family, members in FAMILIES.items():
            for member in members.split():
                if names and member not in names:
                    continue
                library, _, name = member.partition("/")
                tried = try_out(root, library, name)
                line = (
                    f"| {family} | `{name}` of {library} | {tried.pixels} | `{tried.head}` | "
                    f"{tried.trained:,} | `{tried.cut}`, {tried.kilobytes:,.1f} |"
                )
                print(line, flush=True)
                yield line


def try_out(root: Path, library: str, name: str) -> Tried:
    """Explain, train and predict with one architecture; an exception says what does not work."""
    torch.manual_seed(0)
    if library == "timm":
        network = timm.create_model(name)
    else:
        network = torchvision.models.get_model(name, weights=None)
    safetensors.torch.save_model(network, str(root / "weights.safetensors"))
    recipe = root / "recipe.toml"
    recipe.write_text(RECIPE.format(library=library, name=name, size=PIXELS))
    plan = json.loads(called("explain", recipe, "--json"))
    (phase,) = plan["phases"]
    with tempfile.TemporaryDirectory(dir=root) as runs:
        run = json.loads(called("run", recipe, "--json", "--device", "cpu", "--run-dir", f"{runs}/run"))
        said = json.loads((Path(runs) / "run/model/bundle.json").read_text())
        image = next((root / "images/test").rglob("*.png"))
        rows = called("predict", f"{runs}/run", image).splitlines()
    assert run["status"] == "complete"
    assert run["phases"][0]["steps"] == 5
    assert len(rows) == 2
    return Tried(
        head=", ".join(said["heads"]),
        pixels=phase["size"],
        cut=", ".join(dict.fromkeys(phase["computed_once"]["cut"])) or "nothing",
        kilobytes=phase["computed_once"]["bytes_per_image"] / 1000,
        trained=run["phases"][0]["trainable_params"],
    )


if __name__ == "__main__":
    main()
