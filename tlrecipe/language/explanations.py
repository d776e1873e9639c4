"""What each error code means, with an example that causes it: `tlrecipe explain CODE`, and docs/errors.md.

``python -m tlrecipe.language.explanations docs/errors.md`` writes the page anew.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tlrecipe.language.diagnostics import CODES, Diagnostic

EXIT_MEANINGS: Mapping[int, str] = {
    2: "usage",
    3: "recipe",
    4: "data",
    5: "weights or model file",
    6: "checkpoint or run directory",
    7: "numerics",
    8: "memory",
    9: "disk",
    10: "a worker or peer died",
}

BASE = """\
format = 1
name = "flowers"

[data]
source = "folder"
path = "photos"

[backbone]
source = "timm"
name = "resnet18"
weights = "pretrained"

[[group]]
name = "head"
match = ["@head"]

[[group]]
name = "rest"
match = ["**"]
lr_scale = 0.1

[[phase]]
name = "extract"
freeze = ["@backbone"]
epochs = 20
lr = 1e-3

[[phase]]
name = "finetune"
freeze = ["conv1", "bn1", "layer[1-2]"]
epochs = 5
lr = 3e-4
"""
"""The recipe that examples change: `recipe.toml`, beside a folder `photos` with 40 images of each of two
classes."""


@dataclass(frozen=True)
class Explanation:
    """What a code means and how to be rid of it."""

    meaning: str
    cure: str
    example: str = ""
    """Lines of a recipe that extends :data:`BASE`, or commands with ``$`` in front; empty where the cause
    lies in a machine or a library."""
    mended: str = ""
    """The lines of a recipe as they should be."""

    @property
    def by_command(self) -> bool:
        return self.example.startswith("$ ")


EXPLANATIONS: Mapping[str, Explanation] = {
    # ------------------------------------------------------------------ the file and its syntax
    "TLR001": Explanation(
        "There is no file of this name, or it may not be read.",
        "Check the name, and the folder that you are in.",
        "$ tlrecipe validate recip.toml",
    ),
    "TLR002": Explanation(
        "A recipe is a regular file of at most 1 MiB. Folders, pipes and devices are not read, because"
        " reading some of them never ends.",
        "Name the recipe's file itself.",
        "$ tlrecipe validate photos",
    ),
    "TLR003": Explanation(
        "TOML is UTF-8, and the file has bytes that are not, or a zero byte. Files saved as Latin-1 or"
        " UTF-16 are like that.",
        "Save the file as UTF-8.",
        "$ printf 'name = \"caf\\351\"\\n' > latin.toml\n$ tlrecipe validate latin.toml",
    ),
    "TLR004": Explanation(
        "The file is not TOML: a text without quotes, a key that is defined twice, a bracket that is not"
        " closed. Nothing is said about the rest of the file, because it cannot be read.",
        "Correct the place that is marked. Texts stand in quotes; numbers have a digit before the dot.",
        '[[phase]]\nname = "finetune"\nlr = .0003',
        '[[phase]]\nname = "finetune"\nlr = 0.0003',
    ),
    "TLR005": Explanation(
        "`extends` names a recipe that this one builds on. It cannot be read, or the recipes build on each"
        " other in a circle.",
        "Paths are relative to the recipe's own folder: correct the path, or break the circle.",
        "$ echo 'extends = \"recip.toml\"' > own.toml\n$ tlrecipe validate own.toml",
    ),
    "TLR006": Explanation(
        "The left side of `--set` has to be a key of the recipe; phases and groups go by name. The right"
        " side is read as TOML.",
        "Correct the key; the nearest one is suggested.",
        "$ tlrecipe validate recipe.toml --set phase.finetun.epochs=3",
    ),
    "TLR007": Explanation(
        "`tlrecipe new` never writes over a file.",
        "Name another file with `-o`, or remove the one that is there.",
        "$ tlrecipe new photos -o recipe.toml",
    ),
    # ------------------------------------------------------------------ grammar
    "TLR101": Explanation(
        "The table has no key of this name. Keys that are not known are never passed over, because a"
        " misspelt rate would train something else without a word.",
        "Correct the key, or move it to the table that it belongs to.",
        '[[phase]]\nname = "finetune"\nepoch = 5',
        '[[phase]]\nname = "finetune"\nepochs = 5',
    ),
    "TLR102": Explanation(
        "The value has another type than its key takes, lies out of range, or is none of the possible ones."
        " Types are not converted: 3.0 is no whole number, and `true` is not 1.",
        "Write what was expected.",
        '[[phase]]\nname = "finetune"\nepochs = 2.5',
        '[[phase]]\nname = "finetune"\nepochs = 3',
    ),
    "TLR103": Explanation(
        "The table needs a key that it does not have. What decides about a result has no default: `freeze`,"
        " `lr` and `weights` are always written.",
        "Add the key.",
        '[[phase]]\nname = "last"\nepochs = 2\nlr = 1e-4',
        '[[phase]]\nname = "last"\nfreeze = []\nepochs = 2\nlr = 1e-4',
    ),
    # ------------------------------------------------------------------ names and patterns
    "TLR104": Explanation(
        "Every pattern of `match`, `freeze`, `thaw` and `no_decay` has to match a parameter of the network."
        " One that matches none is misspelt, or was written for another backbone.",
        "`tlrecipe params RECIPE` shows the names, and `tlrecipe params RECIPE PATTERN` what a pattern"
        " matches.",
        '[[phase]]\nname = "finetune"\nfreeze = ["conv1", "layerr1"]',
        '[[phase]]\nname = "finetune"\nfreeze = ["conv1", "layer1"]',
    ),
    "TLR105": Explanation(
        "A parameter belongs to the first group that matches it. All that this pattern matches was taken by"
        " patterns before it, so that it decides nothing.",
        "Move the group up, or remove the pattern.",
        '[[group]]\nname = "late"\nmatch = ["layer4"]',
        '[[group]]\nname = "head"\nmatch = ["@head", "layer4"]',
    ),
    "TLR106": Explanation(
        "The text is no pattern. Patterns are globs over dotted names and not regular expressions: `*` stays"
        " within a segment, `**` crosses segments.",
        "Write the glob that is suggested.",
        '[[phase]]\nname = "finetune"\nfreeze = ["layer[1-2]\\\\..+"]',
        '[[phase]]\nname = "finetune"\nfreeze = ["layer[1-2].**"]',
    ),
    "TLR107": Explanation(
        "Groups are a partition: every parameter belongs to one. This one is matched by none, so that it"
        " would have no rate.",
        'Let the last group take all that is left, with `match = ["**"]`.',
        '[[group]]\nname = "rest"\nmatch = ["layer[1-4]"]',
        '[[group]]\nname = "rest"\nmatch = ["layer[1-4]", "**"]',
    ),
    "TLR108": Explanation(
        "The network uses one tensor under two names (it is tied), and two groups claim it, each under"
        " another name. One tensor cannot have two rates.",
        "Match both names in one group.",
    ),
    "TLR109": Explanation(
        "Groups and phases are called by name, in results and by `--set`, so that no two may have the same.",
        "Give each its own name.",
        '[[phase]]\nname = "last"\nfreeze = []\nepochs = 2\nlr = 1e-4\n\n'
        '[[phase]]\nname = "last"\nfreeze = []\nepochs = 2\nlr = 1e-5',
        '[[phase]]\nname = "last"\nfreeze = []\nepochs = 2\nlr = 1e-4\n\n'
        '[[phase]]\nname = "very-last"\nfreeze = []\nepochs = 2\nlr = 1e-5',
    ),
    "TLR110": Explanation(
        "The rates of a phase name a group that the recipe does not have.",
        "Correct the name.",
        '[[phase]]\nname = "finetune"\nlr = { head = 1e-3, rset = 1e-4 }',
        '[[phase]]\nname = "finetune"\nlr = { head = 1e-3, rest = 1e-4 }',
    ),
    "TLR111": Explanation(
        "Where `lr` is a table of rates, it has to name every group that trains in the phase.",
        "Add the rate, or freeze the group.",
        '[[phase]]\nname = "finetune"\nlr = { head = 1e-3 }',
        '[[phase]]\nname = "finetune"\nlr = { head = 1e-3, rest = 1e-4 }',
    ),
    "TLR112": Explanation(
        "The library has no image classifier of this name.",
        "`tlrecipe list backbones PART` lists the names that contain a part.",
        '[backbone]\nname = "resnet81"',
        '[backbone]\nname = "resnet18"',
    ),
    "TLR113": Explanation(
        "The architecture exists, but not with these settings: it has no classifier to replace, no place"
        " for dropout, or cannot be built for this image size.",
        "Change the setting that is marked, or choose another architecture.",
        '[backbone]\nsource = "torchvision"\n\n[head]\ndropout = 0.2',
        '[backbone]\nsource = "torchvision"\nname = "efficientnet_b0"\n\n[head]\ndropout = 0.2\n\n'
        '[[phase]]\nname = "finetune"\nfreeze = ["features.[0-4]"]',
    ),
    "TLR114": Explanation(
        "`args` of `[backbone]` has a name or a value that the network's constructor does not take, or"
        " something that another key decides.",
        "Correct the name, or remove the argument; the message names what is taken.",
        "[backbone]\nargs = { drop_path_rat = 0.1 }",
        '[backbone]\nargs = { drop_path_rate = 0.1 }\n\n[[phase]]\nname = "finetune"',
    ),
    "TLR115": Explanation(
        "An adapter sits on linear layers and on convolutions that are not grouped, of a pretrained backbone."
        " The pattern matches none of them, or a layer whose weight the network reads without running the"
        " layer, so that it would not see the adapter. Or the weights are random.",
        "Match other layers. `tlrecipe params RECIPE PATTERN` shows what a pattern matches, `tlrecipe"
        " explain` which layers have an adapter.",
        '[backbone]\nadapter = { name = "lora", match = ["layer4.*.bn1"] }',
        '[backbone]\nadapter = { name = "lora", match = ["layer4.*.conv1"] }\n\n'
        '[[phase]]\nname = "finetune"\nfreeze = ["@backbone"]',
    ),
    # ------------------------------------------------------------------ phases
    "TLR120": Explanation(
        "All parameters stand still in this phase, so that nothing would be learned in it.",
        "Freeze less, or list exceptions under `thaw`.",
        '[[phase]]\nname = "extract"\nfreeze = ["**"]',
        '[[phase]]\nname = "extract"\nfreeze = ["**"]\nthaw = ["@head"]',
    ),
    "TLR121": Explanation(
        "The head is new and has no trained weights. It is frozen before any phase has trained it, so that"
        " the rest would learn to please a classifier that knows nothing.",
        "Let the head train from the first phase on.",
        '[[phase]]\nname = "extract"\nfreeze = ["**"]\nthaw = ["layer4"]',
        '[[phase]]\nname = "extract"\nfreeze = ["**"]\nthaw = ["layer4", "@head"]',
    ),
    "TLR122": Explanation(
        "Layers are frozen that have random weights and were not trained in a phase before. They would stay"
        " random for ever.",
        "Freeze nothing, or start from pretrained weights.",
        '[backbone]\nweights = "none"',
        '[backbone]\nweights = "none"\n\n[[phase]]\nname = "extract"\nfreeze = []\n\n'
        '[[phase]]\nname = "finetune"\nfreeze = []',
    ),
    "TLR123": Explanation(
        "A phase is as long as `epochs` says, or `steps`: exactly one of the two.",
        "Remove one of the two, or add one.",
        '[[phase]]\nname = "finetune"\nepochs = 5\nsteps = 1000',
        '[[phase]]\nname = "finetune"\nsteps = 1000',
    ),
    "TLR124": Explanation(
        "The warm-up takes all of the phase or more, so that the full rate would never be reached.",
        "Shorten the warm-up. A fraction such as 0.1 fits into any phase.",
        '[[phase]]\nname = "finetune"\nschedule = { name = "cosine", warmup = 1000 }',
        '[[phase]]\nname = "finetune"\nschedule = { name = "cosine", warmup = 0.1 }',
    ),
    "TLR125": Explanation(
        "The number of training images leaves one over for the last batch of an epoch, and batch norm has no"
        " statistics of a single image. (Of the 80 images of the example, 72 train.)",
        'Choose another batch size, or freeze the statistics with `norm = "frozen"`.',
        "[data]\nbatch_size = 71",
        "[data]\nbatch_size = 70",
    ),
    "TLR126": Explanation(
        '`start_from = "best"` takes the best weights of the phase before. There is no phase before, or no'
        " validation split to tell what is best.",
        "Remove it from the first phase, or hold out validation images.",
        '[[phase]]\nname = "extract"\nstart_from = "best"',
        '[[phase]]\nname = "finetune"\nstart_from = "best"',
    ),
    "TLR127": Explanation(
        "Stopping early and keeping the best weights both look at validation images, and there are none.",
        "Hold some out with `val = 0.1`, or remove what needs them.",
        '[data]\nval = 0.0\n\n[[phase]]\nname = "finetune"\nstop = { metric = "loss", patience = 3 }',
        '[data]\nval = 0.1\n\n[[phase]]\nname = "finetune"\nstop = { metric = "loss", patience = 3 }',
    ),
    "TLR128": Explanation(
        "A warning: the batch is larger than the training split, so that every step sees all images, and"
        " an epoch is one step.",
        "Choose a smaller batch, so that an epoch has more steps.",
        "[data]\nbatch_size = 128",
        "[data]\nbatch_size = 16",
    ),
    "TLR129": Explanation(
        "`thaw` lists exceptions to `freeze`, and this pattern matches nothing that `freeze` does.",
        "Remove the pattern, or freeze what it is an exception of.",
        '[[phase]]\nname = "finetune"\nthaw = ["layer4"]',
        '[[phase]]\nname = "finetune"\nthaw = ["layer2.1"]',
    ),
    "TLR130": Explanation(
        "A warning: a group has a rate in a phase that freezes all of it. The rate does nothing.",
        "Remove the rate, or freeze less.",
        '[[phase]]\nname = "extract"\nlr = { head = 1e-3, rest = 1e-4 }',
        '[[phase]]\nname = "extract"\nlr = { head = 1e-3 }',
    ),
    "TLR131": Explanation(
        "The architecture takes images of one size only, as some transformers do.",
        "Leave `size` out, or set it to the size that is named.",
        '[backbone]\nsource = "torchvision"\nname = "maxvit_t"\n\n[data]\nsize = 256\n\n'
        '[[phase]]\nname = "finetune"\nfreeze = ["@stage:0"]',
        '[backbone]\nsource = "torchvision"\nname = "maxvit_t"\n\n[data]\nsize = 224\n\n'
        '[[phase]]\nname = "finetune"\nfreeze = ["@stage:0"]',
    ),
    "TLR132": Explanation(
        "With five classes or fewer the label is always among the top five, so that the metric is always 1.",
        "Watch another metric.",
        '[[phase]]\nname = "finetune"\nstop = { metric = "top5_accuracy" }',
        '[[phase]]\nname = "finetune"\nstop = { metric = "accuracy" }',
    ),
    "TLR133": Explanation(
        "Two keys of `augment` exclude each other, or a range has its ends the wrong way round. `views`"
        " stores single images, while `mixup` and `cutmix` mix two anew each time.",
        "Remove one of the two, or write the smaller end first.",
        '[[phase]]\nname = "finetune"\naugment = { mixup = 0.2, views = 4 }',
        '[[phase]]\nname = "finetune"\naugment = { mixup = 0.2 }',
    ),
    "TLR134": Explanation(
        "`class_weights` gives a weight to a class that the data does not have.",
        "Use a name that is there; the nearest is shown.",
        '[loss]\nname = "cross_entropy"\nclass_weights = { tulpi = 2.0 }',
        '[loss]\nname = "cross_entropy"\nclass_weights = { tulip = 2.0 }',
    ),
    "TLR135": Explanation(
        "A warning: the largest class has at least five times as many training images as the smallest, and"
        " nothing in the recipe allows for it. Small classes will be recognised less often than they could.",
        'If they matter as much, write `sampling = "balanced"` in the phases, or `class_weights ='
        ' "balanced"` in `[loss]`, and choose the best epoch by `best_metric = "balanced_accuracy"`.',
    ),
    "TLR136": Explanation(
        "`l2_sp` pulls towards the pretrained weights, and `wise_ft` interpolates with the weights that the"
        " phase started from. Where these are random, there is nothing worth keeping.",
        "Start from pretrained weights, and train the head in a phase before.",
        '[[phase]]\nname = "extract"\nwise_ft = 0.5',
        '[[phase]]\nname = "finetune"\nwise_ft = 0.5',
    ),
    "TLR137": Explanation(
        "`l2_sp` pulls weights towards their pretrained values, `wise_ft` interpolates weights. An adapter"
        " trains two matrices of which only the product is about weights: neither is the same for factors.",
        "Remove the method. Weight decay on `@adapter` pulls towards the pretrained network.",
        '[backbone]\nadapter = { name = "lora", match = ["layer4"] }\n\n'
        '[[phase]]\nname = "finetune"\nfreeze = ["@backbone"]\nwise_ft = 0.5',
        '[backbone]\nadapter = { name = "lora", match = ["layer4"] }\n\n'
        '[[phase]]\nname = "finetune"\nfreeze = ["@backbone"]',
    ),
    "TLR138": Explanation(
        "A warning: an adapter that no phase trains, that trains beside the weight of its own layer, or that"
        " has as many parameters as that. It does no harm, and no good.",
        "Freeze the layers with `@backbone`, which leaves adapters to train, or freeze `@adapter`; lower"
        " `rank` where an adapter is too large.",
        '[backbone]\nadapter = { name = "lora", match = ["layer4"] }',
        '[backbone]\nadapter = { name = "lora", match = ["layer4"] }\n\n'
        '[[phase]]\nname = "finetune"\nfreeze = ["@backbone"]',
    ),
    # ------------------------------------------------------------------ data
    "TLR401": Explanation(
        "The images are not where the recipe says, or may not be read. Nothing that cannot be read is"
        " passed over: the data set would be smaller than it seems.",
        "Paths are relative to the recipe's own folder: correct the path, or the rights of the folder.",
        "$ tlrecipe validate --data recipe.toml --set data.path=photoz",
    ),
    "TLR402": Explanation(
        "A class is a folder of images, and at least two of them are needed, none of them empty. Images"
        " beside the folders of classes belong to none. Each image has one class: lists of labels are"
        " refused, and a file that stands in two classes is warned about.",
        "Put every image into the folder of its class.",
        "$ mkdir -p empty/tulip empty/rose\n$ tlrecipe validate recipe.toml --set data.path=empty",
    ),
    "TLR403": Explanation(
        "The classes are those of the training split. A class that only validation or test has cannot be"
        " learned; most often two folders are spelt differently.",
        "Make the folders of all splits agree.",
        "$ mkdir -p split/train split/val\n$ cp -r photos/* split/train\n$ cp -r photos/rose split/val/roze\n"
        "$ tlrecipe validate recipe.toml --set data.path=split",
    ),
    "TLR404": Explanation(
        "A file among the images is none, is damaged, or is larger than `max_pixels` allows. No image is ever"
        " replaced by another one.",
        'Repair or remove the file, or leave such files out with `on_bad = "skip"`, which lists them.',
        "$ echo 'no image' > photos/rose/broken.jpg\n$ tlrecipe validate --data recipe.toml",
    ),
    "TLR405": Explanation(
        "A validation split takes at least one image of each class and leaves one to train on. A class has"
        " too few.",
        "Add images, bring a folder `val`, or set `val = 0`.",
        "$ mkdir lily\n$ cp photos/rose/0.png lily\n$ mv lily photos\n$ tlrecipe validate recipe.toml",
    ),
    "TLR406": Explanation(
        "A row of the table names no image, has no label or several, is there twice, or puts one group into"
        " two splits; or a column is missing, or there are several of labels. Every row with a mistake is"
        " named with its line.",
        "Mend the lines that are named. `file_name` is relative to `root`, by default the table's folder.",
        "$ printf 'file_name,label\\nphotos/rose/0.png,\\n' > labels.csv\n"
        '$ tlrecipe validate recipe.toml --set \'data={source="manifest", path="labels.csv"}\'',
    ),
    # ------------------------------------------------------------------ weights and models
    "TLR501": Explanation(
        "The weights are neither on this machine nor to be had. Random weights are never taken instead.",
        'Name a file that is there, connect to the network once, or write `weights = "none"` to start'
        " from random weights.",
        "$ tlrecipe run recipe.toml --set backbone.weights=weights/resnet.safetensors",
    ),
    "TLR502": Explanation(
        "The file is not what it should be: another SHA-256 than expected, damaged, not finite, or a pickle"
        " that would run code.",
        "Fetch the file again. Tensors in a pickle with code in it have to be saved anew as safetensors.",
        "$ echo 'no weights' > resnet.safetensors\n"
        "$ tlrecipe run recipe.toml --set backbone.weights=resnet.safetensors",
    ),
    "TLR503": Explanation(
        "The file is sound, but its tensors are not those of this network: names are missing or left over,"
        " or shapes differ. Only the head may differ.",
        "Name the architecture that the weights belong to.",
        "$ python -c 'import numpy, safetensors.numpy as s;"
        ' s.save_file({"conv9.weight": numpy.zeros(3)}, "other.safetensors")\'\n'
        "$ tlrecipe run recipe.toml --set backbone.weights=other.safetensors",
    ),
    "TLR504": Explanation(
        "The folder is no model that tlrecipe wrote, or not a whole one.",
        "Name a run directory that is complete, or the folder `model` in one.",
        "$ tlrecipe predict photos photos/rose/1.png",
    ),
    "TLR505": Explanation(
        "A warning: the licence of the weights does not allow commercial use. What is trained from them may"
        " be bound by it too.",
        "Choose other weights where that matters.",
        '[backbone]\nname = "resnet18"\nweights = "fb_swsl_ig1b_ft_in1k"',
        '[backbone]\nname = "resnet18"\nweights = "a1_in1k"',
    ),
    # ------------------------------------------------------------------ runs
    "TLR601": Explanation(
        "The folder is not empty, is used by another process, or is no run directory. Nothing in a run"
        " directory is ever overwritten.",
        "Choose another folder; without `--run-dir` a new one is made.",
        "$ tlrecipe run recipe.toml --run-dir photos",
    ),
    "TLR602": Explanation(
        "A run can only go on from a checkpoint whose bytes are whole and that was saved by the same recipe,"
        " on the same images. A run never starts again unasked.",
        "Put back what has changed, or start the recipe in a new run directory.",
        "$ mkdir stopped\n$ cp recipe.toml stopped/recipe.resolved.toml\n$ cp -r photos stopped\n"
        "$ echo '{\"epoch\": 1}' > stopped/metrics.jsonl\n$ tlrecipe resume stopped",
    ),
    "TLR701": Explanation(
        "A loss, a gradient, a weight, a statistic or a class score became infinite or no number. The step"
        " was not taken, and nothing that is not finite was saved. Most often the rate is too high, or an"
        " image is damaged: the message names the step, its rates and its images.",
        "Lower `lr`, add a warm-up, or set `clip_norm`.",
    ),
    "TLR702": Explanation(
        "What was frozen has changed, by a byte or more: the digests before and after the phase differ. The"
        " network changes itself in a way that tlrecipe does not know.",
        "Choose another architecture, and tell us which one it was.",
    ),
    "TLR801": Explanation(
        "There is not enough memory for a step. `tlrecipe explain --memory` predicts the peak of each phase;"
        " `explain` and `run` refuse a recipe of which some phase cannot fit, before the first begins.",
        "Choose a smaller `batch_size` (with `accumulate` for the same steps) or a smaller `size`.",
    ),
    "TLR901": Explanation(
        "A file could not be written: the disk is full, read-only or failing, or the folder is not there."
        " What had been there before is untouched.",
        "Make room, or choose another place.",
        "$ tlrecipe new photos -o nowhere/own.toml",
    ),
    "TLR1001": Explanation(
        "An image is being read or decoded for two minutes. The file is made to keep a decoder busy, or the"
        " disk or the network that it is on does not answer. A process that is only stopped is not meant:"
        " that time does not count.",
        "Remove the file that the message names, or see to the disk.",
    ),
}
"""Every code of :data:`~tlrecipe.language.diagnostics.CODES`."""


def explain(code: str) -> str:
    """A code for the terminal, in 80 columns."""
    explanation, exit_code = EXPLANATIONS[code], Diagnostic(code, "").exit_code
    parts = [
        f"{code}: {CODES[code]}\nexit code {exit_code}: {EXIT_MEANINGS[exit_code]}",
        _filled(explanation.meaning),
    ]
    if explanation.example:
        parts += ["For example:", textwrap.indent(explanation.example, "    ")]
    parts.append(_filled(explanation.cure))
    if explanation.mended:
        parts.append(textwrap.indent(explanation.mended, "    "))
    return "\n\n".join(parts)


def _filled(text: str) -> str:
    return textwrap.fill(text, 80, break_on_hyphens=False, break_long_words=False)


# --------------------------------------------------------------------------- the page

_INTRODUCTION = f"""\
# Errors

<!-- Written by `python -m tlrecipe.language.explanations docs/errors.md`. -->

Every mistake has a code that never changes its meaning. `tlrecipe explain CODE` prints what is said here. All
commands take `--errors json` for tools, and `--errors github` for annotations in GitHub's checks.

The examples change this recipe, `recipe.toml`, beside a folder `photos` with 40 images of each of two
classes. Those in TOML are the lines that differ from it.

```toml
{BASE}```
"""


def page() -> str:
    """All codes as Markdown."""
    parts = [_INTRODUCTION]
    exit_codes = {code: Diagnostic(code, "").exit_code for code in CODES}
    rows = [f"| [{code}](#{code.lower()}) | {CODES[code]} | {exit_codes[code]} |" for code in CODES]
    parts.append("\n".join(["| code | what is wrong | exit code |", "| --- | --- | --- |", *rows, ""]))
    parts += ["\n".join(_section(code, exit_codes[code])) for code in CODES]
    return "\n".join(parts)


def _section(code: str, exit_code: int) -> Iterator[str]:
    explanation = EXPLANATIONS[code]
    yield f"## {code}\n"
    title = f"**{CODES[code][:1].upper()}{CODES[code][1:]}.**"
    yield f"{title} Exit code {exit_code} ({EXIT_MEANINGS[exit_code]}).\n"
    yield f"{textwrap.fill(explanation.meaning, 110, break_on_hyphens=False)}\n"
    if explanation.example:
        yield _fenced(explanation.example, "console" if explanation.by_command else "toml")
    yield f"{textwrap.fill(explanation.cure, 110, break_on_hyphens=False)}\n"
    if explanation.mended:
        yield _fenced(explanation.mended, "toml")


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
