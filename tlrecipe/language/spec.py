"""The grammar of a recipe, format 1: frozen, strict models, one per table of the file.

Types are not coerced (``epochs = true`` is not 1), unknown keys are errors, ``nan`` and ``inf`` are
refused. Checks that need the network's parameters or the data belong to :mod:`tlrecipe.planning`.
The JSON Schema and the reference in ``docs/recipe.md`` are generated from these models.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AdamSpec",
    "AdamWSpec",
    "Augment",
    "BackboneSpec",
    "BundleBackbone",
    "ColorJitter",
    "ComputeSpec",
    "ConstantSchedule",
    "CosineSchedule",
    "CrossEntropyLoss",
    "DataSpec",
    "FocalLoss",
    "FolderData",
    "GroupSpec",
    "HeadSpec",
    "HuggingFaceData",
    "LibraryBackbone",
    "LinearSchedule",
    "LoraAdapter",
    "LossSpec",
    "ManifestData",
    "Metric",
    "OneCycleSchedule",
    "OptimizerSpec",
    "PhaseSpec",
    "RMSpropSpec",
    "RandAugment",
    "RandomErasing",
    "Recipe",
    "ResizedCrop",
    "SGDSpec",
    "SampleData",
    "ScheduleSpec",
    "StepSchedule",
    "StopRule",
    "TimmBackbone",
    "TorchvisionBackbone",
    "TorchvisionData",
]


class Table(BaseModel):
    """What all tables of a recipe share: frozen, strict, no unknown keys, finite numbers only."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


# A number below the smallest normal float32 would train nothing and hide a typo such as 1e-320.
Rate = Annotated[float, Field(ge=1e-12, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Pattern = Annotated[str, Field(min_length=1, max_length=500)]
# TOML knows arrays only; the tuple keeps the models hashable. Elements stay strict.
Patterns = Annotated[tuple[Pattern, ...], Field(strict=False)]
Warmup = Annotated[int, Field(ge=0, le=10**9)] | Annotated[float, Field(ge=0, lt=1)]
Channel = Annotated[int, Field(ge=0, le=255)]


# --------------------------------------------------------------------------- data


class DataTable(Table):
    """Keys that every data source takes."""

    size: Annotated[int, Field(ge=8, le=4096)] | None = Field(default=None, examples=[224])
    """Height and width in pixels that the backbone sees. Default: what the weights were trained at."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = Field(default=64, examples=[128])
    """Images per forward pass."""
    val: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, examples=[0.2])
    """Stratified share of the training images that becomes the validation split, where the source
    brings no split of its own. 0 leaves validation out."""
    per_class: Count | None = Field(default=None, examples=[25])
    """Train on a stratified subset of at most this many images per class (few-shot work)."""
    on_bad: Literal["error", "skip"] = Field(default="error", examples=["skip"])
    """What to do with files that are no usable image: stop and name them all, or leave them out,
    counted and listed. No image is ever replaced by another."""
    background: Annotated[tuple[Channel, Channel, Channel], Field(strict=False)] = Field(
        default=(255, 255, 255), examples=[[0, 0, 0]]
    )
    """Red, green and blue of what transparent pixels lie on."""
    max_pixels: Annotated[int, Field(ge=1, le=10**9)] = Field(default=89_478_485, examples=[50_000_000])
    """Images with more pixels than this are refused before they are decoded."""
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] | None = Field(default=None, examples=[1.0])
    """Share of the resized side that the centre crop keeps; 1.0 cuts no border off.
    Default: what the weights were evaluated with."""
    crop_mode: Literal["center", "squash", "border"] | None = Field(default=None, examples=["squash"])
    """How images become square: `"center"` loses the ends of the longer side, `"squash"` changes the
    image's shape, `"border"` puts the whole image on the mean colour. Default: what the weights were
    evaluated with."""


class SampleData(DataTable):
    """The small real data set that ships in the package: no download, no folder."""

    source: Literal["sample"]
    """Chooses this data source."""
    name: Literal["cifar10"] = Field(default="cifar10", examples=["cifar10"])
    """`cifar10`: 100 training and 100 test images of each of ten classes, 32 by 32 pixels."""


class FolderData(DataTable):
    """Class folders, with or without `train/`, `val/`, `test/` above them; or one zip of such a tree."""

    source: Literal["folder"]
    """Chooses this data source."""
    path: Annotated[str, Field(min_length=1)] = Field(examples=["photos"])
    """The folder or the zip file, relative to the recipe's own folder."""


class ManifestData(DataTable):
    """A table of images and their labels: CSV, JSON lines or parquet. The columns `file_name` and `label`
    are needed; `split` (train, val, test) and `group` (such as a patient) are used where they are there.
    A group is never in two splits."""

    source: Literal["manifest"]
    """Chooses this data source."""
    path: Annotated[str, Field(min_length=1)] = Field(examples=["labels.csv"])
    """The table, relative to the recipe's own folder: `.csv`, `.jsonl`, `.ndjson` or `.parquet` (which needs
    `pip install tlrecipe[parquet]`)."""
    root: Annotated[str, Field(min_length=1)] | None = Field(default=None, examples=["images"])
    """The folder that file names start from, relative to the recipe's own folder. Default: the folder
    of the table."""


TorchvisionName = Literal[
    "Caltech101",
    "Caltech256",
    "CIFAR10",
    "CIFAR100",
    "CLEVRClassification",
    "Country211",
    "DTD",
    "EMNIST",
    "EuroSAT",
    "FashionMNIST",
    "FER2013",
    "FGVCAircraft",
    "Flowers102",
    "Food101",
    "GTSRB",
    "ImageNet",
    "Imagenette",
    "INaturalist",
    "KMNIST",
    "LFWPeople",
    "MNIST",
    "Omniglot",
    "OxfordIIITPet",
    "PCAM",
    "Places365",
    "QMNIST",
    "RenderedSST2",
    "SEMEION",
    "StanfordCars",
    "STL10",
    "SUN397",
    "SVHN",
    "USPS",
]


class TorchvisionData(DataTable):
    """A classification data set of torchvision, in the files that torchvision reads."""

    source: Literal["torchvision"]
    """Chooses this data source."""
    name: TorchvisionName = Field(examples=["MNIST", "FashionMNIST"])
    """The data set, as torchvision calls it."""
    root: Annotated[str, Field(min_length=1)] = Field(examples=["data"])
    """torchvision's `root`: the folder below which it keeps the data set's files, relative to the recipe's
    own folder."""
    download: bool = Field(default=False, examples=[True])
    """Let torchvision fetch the files where they are not there. Without it the network is never used."""
    variant: Annotated[str, Field(min_length=1)] | None = Field(default=None, examples=["letters"])
    """Which of several variants: `EMNIST`, its split (`balanced`); `QMNIST`, its test images (`test10k`);
    `FGVCAircraft`, the annotation level (`variant`); `DTD`, the partition (`1`); `Imagenette`, the size
    (`full`); `INaturalist`, the version (`2021_train`); `Omniglot`, `background` or `evaluation`;
    `LFWPeople`, the image set (`funneled`); `Places365`, `small` or `large`. In brackets is the default,
    or it is the first."""


class HuggingFaceData(DataTable):
    """A data set of the `datasets` library, which `pip install tlrecipe[huggingface]` brings: a folder that
    `save_to_disk` wrote, or a name on the hub."""

    source: Literal["huggingface"]
    """Chooses this data source."""
    path: Annotated[str, Field(min_length=1)] | None = Field(default=None, examples=["beans"])
    """The folder that `save_to_disk` wrote, relative to the recipe's own folder. Give this or `name`."""
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, examples=["AI-Lab-Makerere/beans"]
    )
    """The name on the hub. Files that are not in the cache are fetched, unless `HF_HUB_OFFLINE` is set."""
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, examples=["5d3e5f1"]
    )
    """Branch, tag or commit of a data set on the hub."""
    train: Annotated[str, Field(min_length=1)] = Field(default="train", examples=["train"])
    """The name of the training split."""
    validation: Annotated[str, Field(min_length=1)] | None = Field(default=None, examples=["validation"])
    """The name of the validation split. Default: `validation`, `valid` or `val`, where there is one."""
    test: Annotated[str, Field(min_length=1)] | None = Field(default=None, examples=["test"])
    """The name of the test split. Default: `test`, where there is one."""
    image: Annotated[str, Field(min_length=1)] = Field(default="image", examples=["img"])
    """The column of images."""
    label: Annotated[str, Field(min_length=1)] = Field(default="label", examples=["labels"])
    """The column of labels: a class label, a whole number or a text."""


DataSpec = Annotated[
    SampleData | FolderData | ManifestData | TorchvisionData | HuggingFaceData,
    Field(discriminator="source"),
]


# --------------------------------------------------------------------------- network


# No network has a width or a depth beyond, and a constructor counts to the number that it is given.
ArgumentInteger = Annotated[int, Field(ge=-100_000, le=100_000)]
ArgumentNumber = Annotated[float, Field(ge=-100_000, le=100_000)]
ArgumentScalar = bool | ArgumentInteger | ArgumentNumber | Annotated[str, Field(max_length=100)]
ArgumentList = Annotated[tuple[ArgumentScalar, ...], Field(strict=False, max_length=64)]
Arguments = Annotated[dict[str, ArgumentScalar | ArgumentList], Field(max_length=64)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LoraAdapter(Table):
    """Small matrices that train beside layers that stand still: a layer with the weights W computes with
    W + alpha / rank · B A, and A and B train instead of W (LoRA, https://arxiv.org/abs/2106.09685). B
    starts at zero, so training starts from the pretrained network. The finished model has the sums as its
    weights, and no adapters."""

    name: Literal["lora"]
    """Chooses this adapter."""
    match: Annotated[Patterns, Field(min_length=1)] = Field(
        examples=[["blocks.*.attn.{qkv,proj}"], ["@stage:3..4"]]
    )
    """Patterns of the layers that get an adapter: linear layers, and convolutions that are not grouped, of
    the backbone. Others that a pattern matches are left out, and `explain` counts them."""
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(default=8, examples=[8])
    """Rows of A and columns of B: an adapter has this many times the inputs and outputs of its layer as
    parameters."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = Field(default=16.0, examples=[16.0])
    """What the adapter adds is multiplied by `alpha / rank`, so that another rank asks for no other rate."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, examples=[0.1])
    """Dropout probability in front of A, while the adapter trains."""


class BackboneTable(Table):
    """Keys that every backbone takes."""

    sha256: Digest | None = Field(
        default=None, examples=["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
    )
    """Expected SHA-256 of the weights file, checked before it is parsed."""
    args: Arguments = Field(default={}, examples=[{"drop_path_rate": 0.1}])
    """Further arguments of the network's constructor, under the library's own names: numbers, texts, `true`
    and `false`, or lists of them. They are checked against what the constructor takes."""
    adapter: LoraAdapter | None = Field(
        default=None, examples=[{"name": "lora", "match": ["blocks.*.attn.{qkv,proj}"], "rank": 8}]
    )
    """Small matrices that train instead of some of the backbone's layers. They are `@adapter` in patterns."""


class LibraryBackbone(BackboneTable):
    """Keys of the networks that a library builds."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        examples=["tf_efficientnet_lite0", "resnet18"]
    )
    """Architecture name in that library: see `tlrecipe list backbones`."""
    weights: Annotated[str, Field(min_length=1)] = Field(
        examples=["pretrained", "a1_in1k", "weights/best.safetensors", "none"]
    )
    """`"pretrained"`, a weights tag of the library, a path to a safetensors or state-dict file
    (relative to the recipe's folder), or `"none"` for random weights. Always written: random weights
    are never a fallback."""


class TimmBackbone(LibraryBackbone):
    """An image classifier of timm under a new head with one output per class."""

    source: Literal["timm"]
    """Chooses this library."""


class TorchvisionBackbone(LibraryBackbone):
    """An image classifier of torchvision under a new head with one output per class."""

    source: Literal["torchvision"]
    """Chooses this library."""


class BundleBackbone(BackboneTable):
    """The model of an earlier run without its head: transfer of a transfer. Architecture, weights and
    preprocessing are the bundle's."""

    source: Literal["bundle"]
    """Chooses an earlier model."""
    path: Annotated[str, Field(min_length=1)] = Field(examples=["runs/hybrid/first", "model"])
    """The run directory, or its folder `model`, relative to the recipe's own folder."""


BackboneSpec = Annotated[TimmBackbone | TorchvisionBackbone | BundleBackbone, Field(discriminator="source")]


class HeadSpec(Table):
    """The new classifier on top of the backbone."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, examples=[0.2])
    """Dropout probability in front of the head, where the architecture has a place for it."""
    init: Literal["default", "zeros"] = Field(default="zeros", examples=["zeros"])
    """`"default"`: the library's own initialisation; `"zeros"`: weights and biases of the last layer
    start at zero, so that training starts from equal probabilities."""


# --------------------------------------------------------------------------- optimizers


class OptimizerTable(Table):
    """Keys that every optimizer takes."""

    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(default=0.0, examples=[0.02])
    """Weight decay. An axis of its own: no learning-rate rule changes it."""
    no_decay: Patterns = Field(default=("@norm", "@bias"), examples=[["@norm", "@bias", "pos_embed"]])
    """Patterns of parameters without weight decay."""


Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
Epsilon = Annotated[float, Field(gt=0, le=1)]


class SGDSpec(OptimizerTable):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    """Chooses this optimizer."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, examples=[0.9])
    """Momentum factor."""
    nesterov: bool = Field(default=False, examples=[True])
    """Use Nesterov momentum."""


class AdamSpec(OptimizerTable):
    """Adam (https://arxiv.org/abs/1412.6980)."""

    name: Literal["adam"]
    """Chooses this optimizer."""
    betas: Betas = Field(default=(0.9, 0.999), examples=[[0.9, 0.98]])
    """Decay rates of the two running averages."""
    eps: Epsilon = Field(default=1e-8, examples=[1e-6])
    """Added to the denominator."""


class AdamWSpec(OptimizerTable):
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

    name: Literal["adamw"]
    """Chooses this optimizer."""
    betas: Betas = Field(default=(0.9, 0.999), examples=[[0.9, 0.98]])
    """Decay rates of the two running averages."""
    eps: Epsilon = Field(default=1e-8, examples=[1e-6])
    """Added to the denominator."""


class RMSpropSpec(OptimizerTable):
    """RMSprop (Hinton, Coursera lecture 6e)."""

    name: Literal["rmsprop"]
    """Chooses this optimizer."""
    alpha: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.99, examples=[0.9])
    """Smoothing constant."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, examples=[0.9])
    """Momentum factor."""
    eps: Epsilon = Field(default=1e-8, examples=[1e-3])
    """Added to the denominator."""


OptimizerSpec = Annotated[SGDSpec | AdamSpec | AdamWSpec | RMSpropSpec, Field(discriminator="name")]


# --------------------------------------------------------------------------- schedules


class ScheduleTable(Table):
    """Keys that every schedule takes. A schedule is a factor of each group's own rate."""

    warmup: Warmup = Field(default=0, examples=[0.1, 200])
    """Linear warm-up: a whole number of steps, or a fraction of the phase."""


Final = Annotated[float, Field(ge=0, le=1)]


class ConstantSchedule(ScheduleTable):
    """The base rate throughout, after the warm-up."""

    name: Literal["constant"] = "constant"
    """Chooses this schedule."""


class LinearSchedule(ScheduleTable):
    """From the base rate down to `final` in a straight line."""

    name: Literal["linear"]
    """Chooses this schedule."""
    final: Final = Field(default=0.0, examples=[0.01])
    """Factor of the base rate at the end of the phase."""


class CosineSchedule(ScheduleTable):
    """From the base rate down to `final` along half a cosine (https://arxiv.org/abs/1608.03983)."""

    name: Literal["cosine"]
    """Chooses this schedule."""
    final: Final = Field(default=0.0, examples=[0.01])
    """Factor of the base rate at the end of the phase."""


Milestones = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, min_length=1)]


class StepSchedule(ScheduleTable):
    """Multiplied by `factor` at each milestone."""

    name: Literal["step"]
    """Chooses this schedule."""
    milestones: Milestones = Field(default=(0.5, 0.75), examples=[[0.6, 0.9]])
    """Where the factor is applied, as fractions of the phase."""
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, examples=[0.2])
    """What each milestone multiplies the rate by."""


class OneCycleSchedule(Table):
    """From `start` up to the base rate and down to `final`, both along cosines
    (https://arxiv.org/abs/1708.07120)."""

    name: Literal["one_cycle"]
    """Chooses this schedule."""
    warmup: Warmup = Field(default=0.3, examples=[0.25, 200])
    """The rising part: a whole number of steps, or a fraction of the phase."""
    start: Annotated[float, Field(gt=0, le=1)] = Field(default=0.04, examples=[0.1])
    """Factor of the base rate at the first step."""
    final: Final = Field(default=1e-4, examples=[0.001])
    """Factor of the base rate at the end of the phase."""


ScheduleSpec = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | StepSchedule | OneCycleSchedule,
    Field(discriminator="name"),
]


# --------------------------------------------------------------------------- groups and phases


class GroupSpec(Table):
    """A named part of the network. Groups are a partition: the first one that matches takes a parameter."""

    name: Name = Field(examples=["late"])
    """What phases and results call this group."""
    match: Annotated[Patterns, Field(min_length=1)] = Field(examples=[["blocks.[4-6]", "conv_head"]])
    """Patterns of parameter or module names."""
    lr_scale: Rate = Field(default=1.0, examples=[0.3])
    """Factor of the phase's `lr` for this group, where the phase gives one rate for all."""


Degrees = Annotated[float, Field(ge=0, le=180)]
Amount = Annotated[float, Field(ge=0, le=1)]
Alpha = Annotated[float, Field(gt=0, le=100)]
Area = Annotated[float, Field(gt=0, le=1)]
Areas = Annotated[tuple[Area, Area], Field(strict=False)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Ratios = Annotated[tuple[Ratio, Ratio], Field(strict=False)]


class ResizedCrop(Table):
    """A rectangle of random size, shape and place, resized to the whole image
    (https://arxiv.org/abs/1409.4842)."""

    scale: Areas = Field(default=(0.08, 1.0), examples=[[0.5, 1.0]])
    """Smallest and largest share of the image's area."""
    ratio: Ratios = Field(default=(0.75, 4 / 3), examples=[[0.75, 1.33]])
    """Smallest and largest width divided by height."""


class ColorJitter(Table):
    """Random changes of colour, applied in a random order. An amount of 0.4 multiplies by 0.6 to 1.4."""

    brightness: Amount = Field(default=0.0, examples=[0.4])
    """Largest relative change of brightness."""
    contrast: Amount = Field(default=0.0, examples=[0.4])
    """Largest relative change of contrast."""
    saturation: Amount = Field(default=0.0, examples=[0.4])
    """Largest relative change of saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.0, examples=[0.1])
    """Largest turn of the hue, as a share of the whole circle."""


class RandAugment(Table):
    """Some operations drawn from fourteen, all of one strength (https://arxiv.org/abs/1909.13719)."""

    operations: Annotated[int, Field(ge=1, le=14)] = Field(default=2, examples=[2])
    """How many, one after the other."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(default=9, examples=[9])
    """Their strength, of 30."""


class RandomErasing(Table):
    """A rectangle filled with noise (https://arxiv.org/abs/1708.04896)."""

    probability: Annotated[float, Field(gt=0, le=1)] = Field(default=0.5, examples=[0.25])
    """How often."""
    scale: Areas = Field(default=(0.02, 0.33), examples=[[0.02, 0.2]])
    """Smallest and largest share of the image's area."""
    ratio: Ratios = Field(default=(0.3, 3.3), examples=[[0.3, 3.3]])
    """Smallest and largest width divided by height."""


class Augment(Table):
    """Random changes to training images, drawn anew for each image and epoch, in the order of the keys."""

    hflip: bool = Field(default=False, examples=[True])
    """Mirror left and right with probability one half."""
    crop: Annotated[int, Field(ge=0, le=512)] = Field(default=0, examples=[4])
    """Pad by this many pixels on each side (reflected) and crop back at a random place. Pixels of the
    size that the backbone sees."""
    resized_crop: ResizedCrop | None = Field(default=None, examples=[{"scale": [0.5, 1.0]}])
    """Cut out a random rectangle and resize it to the whole image (https://arxiv.org/abs/1409.4842)."""
    rotation: Degrees = Field(default=0.0, examples=[15.0])
    """Turn by up to this many degrees in either direction; what comes into view is a reflection."""
    rand_augment: RandAugment | None = Field(default=None, examples=[{"operations": 2, "magnitude": 9}])
    """Some operations of one strength, drawn for each image (https://arxiv.org/abs/1909.13719)."""
    trivial_augment: bool = Field(default=False, examples=[True])
    """One operation of random strength, drawn for each image (https://arxiv.org/abs/2103.10158)."""
    color_jitter: ColorJitter | None = Field(default=None, examples=[{"brightness": 0.4, "contrast": 0.4}])
    """Change brightness, contrast, saturation and hue, in a random order."""
    erasing: RandomErasing | None = Field(default=None, examples=[{"probability": 0.25}])
    """Fill a random rectangle with noise (https://arxiv.org/abs/1708.04896)."""
    mixup: Alpha | None = Field(default=None, examples=[0.2])
    """Blend each image and its label with another training image, by a share drawn from Beta(a, a)
    (https://arxiv.org/abs/1710.09412). Rules out storing features."""
    cutmix: Alpha | None = Field(default=None, examples=[1.0])
    """Paste a rectangle of another training image into each image and mix the labels by area, a share
    drawn from Beta(a, a) (https://arxiv.org/abs/1905.04899). With `mixup`, each image gets one of the two.
    Rules out storing features."""
    views: Annotated[int, Field(ge=1, le=64)] | None = Field(default=None, examples=[4])
    """Opt in to storing this many random views of each image instead of drawing new ones each epoch,
    so that the frozen part is computed once. A flip alone never needs it: both its outcomes are kept."""


# --------------------------------------------------------------------------- losses


Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
ClassWeights = Literal["balanced"] | Annotated[dict[str, Weight], Field(min_length=1)]


class LossTable(Table):
    """Keys that every loss takes."""

    class_weights: ClassWeights | None = Field(default=None, examples=["balanced", {"rare": 5.0}])
    """How much the images of each class count: `"balanced"`, all classes the same whatever their size; or
    a table of weights by class name, 1 where none is given. Only their ratios matter: the mean weight of
    the training images is 1."""


class CrossEntropyLoss(LossTable):
    """Cross-entropy of the class probabilities."""

    name: Literal["cross_entropy"]
    """Chooses this loss."""


class FocalLoss(LossTable):
    """Cross-entropy in which well classified images count less (https://arxiv.org/abs/1708.02002)."""

    name: Literal["focal"]
    """Chooses this loss."""
    gamma: Annotated[float, Field(ge=0, le=10)] = Field(default=2.0, examples=[2.0])
    """How much less: the loss is multiplied by (1 - p)^gamma. 0 is plain cross-entropy."""


LossSpec = Annotated[CrossEntropyLoss | FocalLoss, Field(discriminator="name")]


# --------------------------------------------------------------------------- stopping and phases


Metric = Literal[
    "loss", "accuracy", "top5_accuracy", "macro_f1", "balanced_accuracy", "auroc", "calibration_error"
]


class StopRule(Table):
    """Early stopping: the phase ends when its metric has not improved for `patience` epochs."""

    metric: Metric = Field(default="loss", examples=["accuracy"])
    """What is watched on the validation split. `loss`: mean negative log likelihood of the labels, in
    nats; `accuracy`; `top5_accuracy`: the label is among the five most probable classes; `macro_f1`: mean
    of the classes' F1 scores; `balanced_accuracy`: mean of their recalls; `auroc`: mean of their areas
    under the one-vs-rest ROC curve; `calibration_error`: expected calibration error in 15 bins
    (https://arxiv.org/abs/1706.04599). Lower is better for `loss` and `calibration_error`."""
    patience: Annotated[int, Field(ge=1, le=10**6)] = Field(default=3, examples=[5])
    """Epochs without improvement that are waited for."""
    min_delta: Annotated[float, Field(ge=0)] = Field(default=0.0, examples=[0.001])
    """Improvement that counts."""


class PhaseSpec(Table):
    """A stretch of training with one freeze set. Nothing in it is relative to the phase before."""

    name: Name = Field(examples=["finetune"])
    """What results and overrides call this phase."""
    freeze: Patterns = Field(examples=[["conv_stem", "blocks.[0-3]"], ["@backbone"], []])
    """Patterns of what stands still. Required in every phase; `[]` trains everything."""
    thaw: Patterns = Field(default=(), examples=[["@norm"]])
    """Exceptions: what trains although `freeze` matches it."""
    epochs: Count | None = Field(default=None, examples=[8])
    """Passes over the training images. Give this or `steps`."""
    steps: Count | None = Field(default=None, examples=[2000])
    """Optimizer steps. Give this or `epochs`."""
    lr: Rate | Annotated[dict[str, Rate], Field(min_length=1)] = Field(
        examples=[1e-3, {"head": 1e-3, "late": 3e-4}]
    )
    """Base learning rate, multiplied by each group's `lr_scale`; or a table of one rate per group,
    taken as written."""
    schedule: ScheduleSpec = Field(default=ConstantSchedule(), examples=[{"name": "cosine", "warmup": 0.1}])
    """How the rates move during the phase, as factors of the base rates."""
    augment: Augment = Field(default=Augment(), examples=[{"hflip": True, "crop": 4}])
    """Random changes to training images in this phase."""
    size: Annotated[int, Field(ge=8, le=4096)] | None = Field(default=None, examples=[160])
    """Image size of this phase. Default: that of `[data]`."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] | None = Field(default=None, examples=[32])
    """Batch size of this phase. Default: that of `[data]`."""
    optimizer: OptimizerSpec | None = Field(default=None, examples=[{"name": "sgd", "momentum": 0.9}])
    """Optimizer of this phase. Default: `[optimizer]`."""
    norm: Literal["follow", "frozen", "train"] = Field(default="follow", examples=["frozen"])
    """Norm layers: `"follow"`, those whose own parameters are frozen use their stored statistics,
    which stand still; `"frozen"`, all do; `"train"`, none does (this exempts statistics from the
    freeze and rules out computing the frozen part once)."""
    stop: StopRule | None = Field(default=None, examples=[{"metric": "accuracy", "patience": 5}])
    """Early stopping."""
    best_metric: Metric | None = Field(default=None, examples=["macro_f1"])
    """What makes an epoch the best one: a metric of the validation split, as in `stop`. Default: the
    metric of `stop`, else `accuracy`."""
    start_from: Literal["last", "best"] = Field(default="last", examples=["best"])
    """Start from the last weights of the phase before, or from its best on the validation split."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, examples=[0.75])
    """Factor per layer of depth, counted from the head: deeper layers get lower rates
    (https://arxiv.org/abs/1801.06146)."""
    loss: LossSpec | None = Field(default=None, examples=[{"name": "focal", "gamma": 2.0}])
    """Loss of this phase. Default: `[loss]`."""
    sampling: Literal["once", "balanced"] = Field(default="once", examples=["balanced"])
    """Images of an epoch: `"once"`, each training image once; `"balanced"`, as many images, but equally
    many of each class: those of small classes several times, with other augmentation each time, and of
    large classes some in each epoch."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, examples=[0.1])
    """Share of each label that is spread over all classes."""
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(default=None, examples=[1.0])
    """Largest norm of the whole gradient."""
    accumulate: Annotated[int, Field(ge=1, le=4096)] = Field(default=1, examples=[4])
    """Batches whose gradients are averaged into one optimizer step."""
    l2_sp: Annotated[float, Field(gt=0, le=10)] | None = Field(default=None, examples=[0.01])
    """Pull the backbone towards its pretrained weights instead of towards zero: this times half the squared
    distance is added to the loss, and weight decay is left to the head (L2-SP,
    https://arxiv.org/abs/1802.01483)."""
    wise_ft: Annotated[float, Field(gt=0, lt=1)] | None = Field(default=None, examples=[0.5])
    """End with this share of the trained weights and the rest of those that the phase started from, which
    is what is evaluated: after a phase that trained the head alone, an interpolation with the pretrained
    backbone (WiSE-FT, https://arxiv.org/abs/2109.01903)."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(default=None, examples=[0.999])
    """Decay of an exponential moving average of the weights. Where it is set, the averaged weights are
    what is evaluated and what the phase ends with."""


class ComputeSpec(Table):
    """How the work is done. Nothing here changes what is trained."""

    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", examples=["fp32"])
    """`"auto"`: bfloat16 where the processor computes it natively and faster, decided for the frozen part and
    for the training steps of each phase, else float32; `"fp32"`: strict numbers; `"bf16"`: always. Weights
    and their updates are float32 in any case."""
    features: Literal["auto", "store", "recompute", "off"] = Field(default="auto", examples=["store"])
    """The output of the frozen part: `"auto"` decides by measurement; `"store"` computes it once;
    `"recompute"` computes it each time without gradients; `"off"` runs the plain network."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(default=None, examples=[4])
    """Threads for tensor work on the CPU. Default: PyTorch's own choice."""


class Recipe(Table):
    """A whole recipe."""

    format: Annotated[int, Field(ge=1, le=1)] = Field(examples=[1])
    """Version of this grammar."""
    name: Name = Field(examples=["flowers"])
    """Name of the recipe; runs are kept under it."""
    description: Annotated[str, Field(max_length=2000)] = Field(
        default="", examples=["Head first on cached features, then the last stages."]
    )
    """What it is for, in a sentence or two."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = Field(default=0, examples=[7])
    """Seed of all randomness."""
    final_weights: Literal["last", "best"] = Field(default="last", examples=["best"])
    """Which weights of the last phase become the model: its last, or its best on the validation split."""
    test_flip: bool = Field(default=False, examples=[True])
    """Classify each image and its mirror image, and average the probabilities: in the final evaluation,
    and in all that is done with the model afterwards. Takes twice as long."""
    data: DataSpec = Field(examples=[{"source": "folder", "path": "photos"}])
    """What to learn from."""
    backbone: BackboneSpec = Field(examples=[{"source": "timm", "name": "resnet18", "weights": "pretrained"}])
    """The network."""
    head: HeadSpec = Field(default=HeadSpec(), examples=[{"dropout": 0.2}])
    """The new classifier."""
    optimizer: OptimizerSpec = Field(
        default=AdamWSpec(name="adamw", weight_decay=0.01), examples=[{"name": "adamw", "weight_decay": 0.02}]
    )
    """The optimizer of all phases that name none."""
    loss: LossSpec = Field(
        default=CrossEntropyLoss(name="cross_entropy"),
        examples=[{"name": "cross_entropy", "class_weights": "balanced"}],
    )
    """The loss of all phases that name none."""
    compute: ComputeSpec = Field(default=ComputeSpec(), examples=[{"precision": "fp32"}])
    """How the work is done."""
    group: Annotated[tuple[GroupSpec, ...], Field(strict=False)] = Field(
        default=(), examples=[[{"name": "head", "match": ["@head"]}, {"name": "rest", "match": ["**"]}]]
    )
    """A partition of the parameters; without any there is one group, `all`."""
    phase: Annotated[tuple[PhaseSpec, ...], Field(strict=False, min_length=1)] = Field(
        examples=[[{"name": "extract", "freeze": ["@backbone"], "epochs": 30, "lr": 3e-3}]]
    )
    """The phases, in order."""
