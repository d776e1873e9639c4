"""The compiler: (recipe, parameter table, data facts) → plan. A pure function, without torch.

All independent mistakes are reported at once. What only follows from a mistake that is already
reported is held back: a group whose pattern is misspelt is not also blamed for parameters in no group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from math import ceil

from tlrecipe.language.diagnostics import Diagnostic, Label, Path, TlrecipeError, did_you_mean
from tlrecipe.language.globs import parse_pattern
from tlrecipe.language.spec import GroupSpec, LossSpec, PhaseSpec, Recipe
from tlrecipe.planning.facts import DatasetInfo, ParamFact, ParamTable, Preprocessing
from tlrecipe.planning.licenses import non_commercial
from tlrecipe.planning.patterns import Matcher
from tlrecipe.planning.plan import Match, ParamGroup, PhasePlan, Plan
from tlrecipe.planning.schedules import warmup_steps

UNBALANCED = 5
"""From this ratio of the largest class to the smallest on, a recipe that does not allow for it is warned."""

# Stands in for data that is not there, so large that no check of sizes can fail on it.
UNKNOWN_DATA = DatasetInfo(classes=("?", "??"), counts={"train": 10**9, "val": 10**8, "test": 10**8})


def compile_recipe(recipe: Recipe, table: ParamTable, info: DatasetInfo | None) -> Plan:
    """Resolve every name and number of ``recipe``.

    ``info`` is None where the data is not there: then everything that does not need it is checked, and
    the numbers of steps in the plan mean nothing.

    Raises:
        TlrecipeError: with every mistake that was found, in the order of the recipe.
    """
    compiler = _Compiler(recipe, table, info or UNKNOWN_DATA)
    plan = compiler.plan(known=info is not None)
    errors = [d for d in compiler.found if d.severity == "error"]
    if errors or plan is None:
        raise TlrecipeError(errors)
    return dataclasses.replace(plan, warnings=tuple(compiler.found))


@dataclasses.dataclass(frozen=True)
class _Freeze:
    trainable: frozenset[str]
    matches: tuple[Match, ...]
    resolved: bool
    """False where a pattern failed, so that consequences are held back."""


class _Compiler:
    def __init__(self, recipe: Recipe, table: ParamTable, info: DatasetInfo):
        self.recipe = recipe
        self.table = table
        self.info = info
        self.match = Matcher(table)
        self.found: list[Diagnostic] = []
        self.all = frozenset(param.name for param in table)
        self.adapters = frozenset(param.name for param in table if param.adapter)

    def error(
        self,
        code: str,
        message: str,
        path: Path,
        help: str | None = None,
        labels: Iterable[Label] = (),
        label: str | None = None,
    ) -> None:
        self.found.append(Diagnostic(code, message, path, help, tuple(labels), label))

    def warn(
        self, code: str, message: str, path: Path, labels: Iterable[Label] = (), help: str | None = None
    ) -> None:
        self.found.append(Diagnostic(code, message, path, help, tuple(labels), severity="warning"))

    # ------------------------------------------------------------------ whole recipe

    def plan(self, *, known: bool) -> Plan | None:
        recipe = self.recipe
        groups = recipe.group or (GroupSpec(name="all", match=("**",)),)
        partition, group_matches = self._partition(groups)
        no_decay = self._no_decay(recipe.optimizer.no_decay, ("optimizer", "no_decay"), recipe)
        self._check_adapter_layers()
        phases: list[PhasePlan | None] = []
        ever_trained: frozenset[str] = frozenset()
        for index, phase in enumerate(recipe.phase):
            freeze = self._freeze(phase, index)
            if freeze.resolved:
                self._check_freeze(freeze, phase, index, ever_trained)
                self._check_start(phase, index, ever_trained)
                self._check_adapters(phase, index, freeze.trainable)
            ever_trained |= freeze.trainable
            phases.append(self._phase(phase, index, freeze, partition, group_matches, no_decay))
        if self.adapters and not self.adapters & ever_trained:
            self.warn(
                "TLR138",
                "no phase trains the adapter",
                ("backbone", "adapter"),
                help="`@adapter` and patterns of its layers freeze it; `@backbone` does not",
            )
        if recipe.final_weights == "best" and not self.info.counts.get("val"):
            self.error(
                "TLR127",
                'final_weights = "best" needs a validation split',
                ("final_weights",),
                'set [data] val = 0.1, or final_weights = "last"',
                self._no_validation(),
            )
        self._check_size(("data", "size"), recipe.data.size)
        if non_commercial(self.table.license):
            self.warn(
                "TLR505",
                f"the weights of {self.table.architecture} are not for commercial use:"
                f" their licence is {self.table.license}",
                ("backbone", "weights"),
            )
        self._check_balance()
        resolved = [phase for phase in phases if phase is not None]
        if partition is None or len(resolved) < len(phases):
            return None
        names = {group.name: [] for group in groups}  # type: dict[str, list[str]]
        for param in self.table:
            names[partition[param.name]].append(param.name)
        return Plan(
            name=recipe.name,
            seed=recipe.seed,
            classes=self.info.classes if known else (),
            counts=dict(self.info.counts) if known else {},
            preprocessing=self._preprocessing(resolved[-1].size),
            phases=tuple(resolved),
            group_params={name: tuple(params) for name, params in names.items()},
            final_weights=recipe.final_weights,
            precision=recipe.compute.precision,
            features=recipe.compute.features,
            test_flip=recipe.test_flip,
            threads=recipe.compute.threads,
        )

    def _preprocessing(self, size: int) -> Preprocessing:
        data, weights = self.recipe.data, self.table.preprocessing
        return dataclasses.replace(
            weights,
            size=size,
            crop_pct=weights.crop_pct if data.crop_pct is None else data.crop_pct,
            crop_mode=data.crop_mode or weights.crop_mode,
            background=data.background,
            max_pixels=data.max_pixels,
        )

    def _check_size(self, path: Path, size: int | None) -> None:
        own = self.table.preprocessing.size
        if size is not None and self.table.fixed_size and size != own:
            self.error(
                "TLR131",
                f"{self.table.architecture} takes images of {own} pixels only, not {size}",
                path,
                f"leave `size` out, or set it to {own}",
            )
        elif size is not None and self.table.built_size not in (None, size):
            built = self.table.built_size
            self.error(
                "TLR131",
                f"{self.table.architecture} is built for images of {built} pixels, not {size}",
                path,
                "leave the phase's `size` out: [data] size is the one that the network is built for",
                [Label(("data", "size"), "built for this size")] if self.recipe.data.size else [],
                "another size",
            )

    # ------------------------------------------------------------------ groups

    def _partition(self, groups: Sequence[GroupSpec]) -> tuple[dict[str, str] | None, tuple[Match, ...]]:
        """Parameter → group, first match wins; None where an error makes it meaningless."""
        owner: dict[str, str] = {}
        claims: dict[str, tuple[str, str, Path]] = {}
        takers: dict[str, Path] = {}
        matches: list[Match] = []
        failed = False
        for index, group in enumerate(groups):
            for position, pattern in enumerate(group.match):
                path = ("group", index, "match", position)
                matched = self.match(pattern)
                if not matched:
                    self.found.append(self.match.nothing(pattern, path))
                    failed = True
                    continue
                taken = [name for name in self._ordered(matched) if name not in owner]
                if not taken:
                    places = dict.fromkeys(takers[name] for name in self._ordered(matched))
                    self._shadowed(pattern, path, matched, owner, group.name, places)
                    failed = True
                    continue
                self._claim(pattern, path, matched, group.name, claims)
                owner.update(dict.fromkeys(taken, group.name))
                takers.update(dict.fromkeys(taken, path))
                matches.append(self._match(f"group.{group.name}.match", pattern, taken, len(matched)))
        left = [param.name for param in self.table if param.name not in owner]
        if left and not failed:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            self.error(
                "TLR107",
                f"`{left[0]}`{more} is in no group",
                ("group", len(groups) - 1, "name"),
                'add a last group with match = ["**"], which takes all that is left',
            )
            failed = True
        return (None if failed else owner), tuple(matches)

    def _shadowed(
        self,
        pattern: str,
        path: Path,
        matched: frozenset[str],
        owner: Mapping[str, str],
        group: str,
        places: Iterable[Path],
    ) -> None:
        """A pattern that comes too late: ``places`` are those of the patterns that took what it matches."""
        takers = list(dict.fromkeys(owner[name] for name in self._ordered(matched)))
        if takers == [group]:
            message = f"all that `{pattern}` matches is already in this group"
            help_text = "remove this pattern"
        else:
            listed = " and ".join(f"`{name}`" for name in takers)
            message = f"all that `{pattern}` matches is already taken by {listed}"
            help_text = "the first match wins: move this group up, or remove the pattern"
        labels = [Label(place, "taken here") for place in places]
        self.error("TLR105", message, path, help_text, labels, "nothing is left for this one")

    def _claim(
        self,
        pattern: str,
        path: Path,
        matched: frozenset[str],
        group: str,
        claims: dict[str, tuple[str, str, Path]],
    ) -> None:
        """A tied parameter belongs to one group: the names that groups know it by must agree."""
        parsed = parse_pattern(pattern)
        for name in self._ordered(matched):
            param = self.table.by_name[name]
            if not param.aliases:
                continue
            for alias in self.match.names(parsed, param):
                first_group, first_name, first = claims.setdefault(name, (group, alias, path))
                if alias != first_name and first_group != group and pattern != "**":
                    self.error(
                        "TLR108",
                        f"`{alias}` and `{first_name}` are one tied parameter, but `{group}` and"
                        f" `{first_group}` claim it under different names",
                        path,
                        f"match both names in one group: {', '.join((name, *param.aliases))}",
                        [Label(first, f"claims it as `{first_name}`")],
                        f"claims it as `{alias}`",
                    )
                    return

    # ------------------------------------------------------------------ freezing

    def _freeze(self, phase: PhaseSpec, index: int) -> _Freeze:
        """The absolute freeze set of one phase; thaw beats freeze, and order never matters."""
        matches: list[Match] = []
        resolved = True
        frozen: frozenset[str] = frozenset()
        for position, pattern in enumerate(phase.freeze):
            matched = self.match(pattern)
            if not matched:
                self.found.append(self.match.nothing(pattern, ("phase", index, "freeze", position)))
                resolved = False
                continue
            frozen |= matched
            matches.append(self._match("freeze", pattern, self._ordered(matched), len(matched)))
        thawed: frozenset[str] = frozenset()
        for position, pattern in enumerate(phase.thaw):
            path = ("phase", index, "thaw", position)
            matched = self.match(pattern)
            if not matched:
                self.found.append(self.match.nothing(pattern, path))
                resolved = False
                continue
            hit = self._ordered(matched & frozen)
            if not hit:
                if resolved:
                    self.error(
                        "TLR129",
                        f"`{pattern}` exempts nothing: `freeze` matches none of its parameters",
                        path,
                        "remove it, or add what it is an exception of to `freeze`",
                        [Label(("phase", index, "freeze"), "has none of them")],
                        "an exception of nothing",
                    )
                continue
            thawed |= matched
            matches.append(self._match("thaw", pattern, hit, len(matched)))
        return _Freeze(self.all - (frozen - thawed), tuple(matches), resolved)

    def _check_freeze(
        self, freeze: _Freeze, phase: PhaseSpec, index: int, ever_trained: frozenset[str]
    ) -> None:
        path: Path = ("phase", index, "freeze")
        if not freeze.trainable:
            self.error(
                "TLR120",
                f"phase `{phase.name}` has no trainable parameter",
                path,
                'freeze less, or thaw something: thaw = ["@head"]',
            )
            return
        never = self.all - freeze.trainable - ever_trained
        head = [param.name for param in self.table if param.head and param.name in never]
        if head:
            self.error(
                "TLR121",
                f"phase `{phase.name}` freezes the new head (`{head[0]}`), which has random weights",
                path,
                'add thaw = ["@head"], or freeze = ["@backbone"]',
            )
        random = [param.name for param in self.table if not param.head and param.name in never]
        if random and not self.table.pretrained:
            self.error(
                "TLR122",
                f"phase `{phase.name}` freezes {len(random)} parameters with random weights,"
                f" `{random[0]}` first",
                path,
                'backbone.weights is "none": freeze nothing, or start from pretrained weights',
                [Label(("backbone", "weights"), "random weights")],
                "frozen here",
            )

    # ------------------------------------------------------------------ adapters

    def _check_adapter_layers(self) -> None:
        if self.adapters and not self.table.pretrained:
            self.error(
                "TLR115",
                "an adapter changes pretrained weights a little, and these are random",
                ("backbone", "adapter"),
                "remove `adapter`, or start from pretrained weights",
                [Label(("backbone", "weights"), "random weights")],
            )
        sizes: dict[str, int] = {}
        for param in self.table:
            if param.adapter:
                sizes[param.module] = sizes.get(param.module, 0) + param.numel
        large = [name for name, size in sizes.items() if size >= self.table.by_name[f"{name}.weight"].numel]
        if large:
            more = f" (and {len(large) - 1} more)" if len(large) > 1 else ""
            self.warn(
                "TLR138",
                f"the adapter of `{large[0]}`{more} has as many parameters as the layer itself",
                ("backbone", "adapter"),
                help="lower `rank`, or leave the layer out and let it train",
            )

    def _check_adapters(self, phase: PhaseSpec, index: int, trainable: frozenset[str]) -> None:
        """What does not go together with adapters that train in a phase."""
        training = self.adapters & trainable
        if not training:
            return
        for key, instead in (
            ("l2_sp", "weight decay pulls an adapter towards zero, which is the pretrained network"),
            ("wise_ft", "lower `alpha`, or freeze the adapter in this phase"),
        ):
            if getattr(phase, key) is not None:
                self.error(
                    "TLR137",
                    f"`{key}` of phase `{phase.name}` holds on to weights, and adapters train the factors of"
                    " their change",
                    ("phase", index, key),
                    f"remove it: {instead}",
                )
        layers = dict.fromkeys(self.table.by_name[name].module for name in self._ordered(training))
        twice = [name for name in layers if f"{name}.weight" in trainable]
        if twice:
            more = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
            self.warn(
                "TLR138",
                f"phase `{phase.name}` trains the weight of `{twice[0]}`{more} and its adapter, which can"
                " learn nothing that the weight cannot",
                ("phase", index, "freeze"),
                help='add "@backbone" or "@adapter" to `freeze`',
            )

    # ------------------------------------------------------------------ one phase

    def _phase(
        self,
        phase: PhaseSpec,
        index: int,
        freeze: _Freeze,
        partition: Mapping[str, str] | None,
        group_matches: tuple[Match, ...],
        no_decay: frozenset[str],
    ) -> PhasePlan | None:
        path: Path = ("phase", index)
        before = len(self.found)
        data, recipe = self.recipe.data, self.recipe
        batch = phase.batch_size or data.batch_size
        size = phase.size or data.size or self.table.preprocessing.size
        self._check_size((*path, "size"), phase.size)
        images = self.info.counts["train"]
        batches = ceil(images / batch)
        per_epoch = ceil(batches / phase.accumulate)
        steps = self._steps(phase, path, per_epoch)
        if batch > images:
            where = (*path, "batch_size") if phase.batch_size else ("data", "batch_size")
            self.warn(
                "TLR128",
                f"batches of {batch} are larger than the {images} training images:"
                f" phase `{phase.name}` has {steps or per_epoch} steps of {images} images",
                where,
            )
        warmup = warmup_steps(phase.schedule, steps) if steps else 0
        if steps and warmup >= steps:
            self.error(
                "TLR124",
                f"a warm-up of {warmup} steps does not fit into phase `{phase.name}`, which has {steps}",
                (*path, "schedule", "warmup"),
                "shorten the warm-up; a fraction such as 0.1 always fits",
                [Label((*path, "steps" if phase.epochs is None else "epochs"), f"{steps:,} steps")],
                f"{warmup:,} steps of warm-up",
            )
        optimizer = phase.optimizer or recipe.optimizer
        if phase.optimizer:
            no_decay = self._no_decay(optimizer.no_decay, (*path, "optimizer", "no_decay"), recipe)
        self._check_validation(phase, path, index)
        self._check_augment(phase, path)
        loss = phase.loss or recipe.loss
        class_weights = self._class_weights(loss, (*path, "loss") if phase.loss else ("loss",))
        if not freeze.resolved or partition is None:
            return None
        rates = self._rates(phase, path, freeze.trainable, partition)
        modes = self._modes(freeze.trainable, phase.norm)
        moving = frozenset(
            buffer
            for module in self.table.modules
            if module.statistics and module.name in modes
            for buffer in module.buffers
        )
        if moving and images % batch == 1:
            where = (*path, "batch_size") if phase.batch_size else ("data", "batch_size")
            self.error(
                "TLR125",
                f"the last batch of an epoch of phase `{phase.name}` has one image, and batch norm"
                " cannot train on one",
                where,
                f"choose another batch size, such as {batch + 1} or {max(2, batch - 1)}",
            )
        if any(d.severity == "error" for d in self.found[before:]) or not rates or steps is None:
            return None
        trainable = [param for param in self.table if param.name in freeze.trainable]
        frozen = [param for param in self.table if param.name not in freeze.trainable]
        return PhasePlan(
            name=phase.name,
            index=index,
            steps=steps,
            steps_per_epoch=per_epoch,
            batch_size=batch,
            size=size,
            groups=self._groups(
                trainable,
                partition,
                rates,
                phase.layer_decay,
                optimizer.weight_decay,
                no_decay | self._pulled(phase),
            ),
            trainable=freeze.trainable,
            frozen=self.all - freeze.trainable,
            train_modules=modes,
            moving_buffers=moving,
            optimizer=optimizer,
            schedule=phase.schedule,
            warmup_steps=warmup,
            augment=phase.augment,
            norm=phase.norm,
            stop=phase.stop,
            best_metric=phase.best_metric or (phase.stop.metric if phase.stop else "accuracy"),
            start_from=phase.start_from,
            loss=loss,
            class_weights=class_weights,
            sampling=phase.sampling,
            label_smoothing=phase.label_smoothing,
            clip_norm=phase.clip_norm,
            accumulate=phase.accumulate,
            ema=phase.ema,
            l2_sp=phase.l2_sp,
            wise_ft=phase.wise_ft,
            trainable_count=sum(param.numel for param in trainable),
            frozen_count=sum(param.numel for param in frozen),
            matches=freeze.matches + group_matches,
        )

    def _steps(self, phase: PhaseSpec, path: Path, per_epoch: int) -> int | None:
        if (phase.epochs is None) == (phase.steps is None):
            both = phase.epochs is not None
            self.error(
                "TLR123",
                f"phase `{phase.name}` has {'both `epochs` and `steps`' if both else 'no length'}",
                (*path, "steps") if both else path,
                "keep one of the two" if both else "write `epochs = N` or `steps = N`",
                [Label((*path, "epochs"), "a length", at="key")] if both else [],
                "a second length" if both else None,
            )
            return None
        return phase.steps if phase.epochs is None else phase.epochs * per_epoch

    def _check_validation(self, phase: PhaseSpec, path: Path, index: int) -> None:
        val = self.info.counts.get("val", 0)
        self._check_metric(phase.best_metric, (*path, "best_metric"))
        if phase.stop:
            self._check_metric(phase.stop.metric, (*path, "stop", "metric"))
        if phase.best_metric and not val:
            self.error(
                "TLR127",
                f"`best_metric` of phase `{phase.name}` needs a validation split",
                (*path, "best_metric"),
                "set [data] val = 0.1, or remove `best_metric`",
            )
        if phase.stop and not val:
            self.error(
                "TLR127",
                f"early stopping of phase `{phase.name}` needs a validation split",
                (*path, "stop"),
                "set [data] val = 0.1, or remove `stop`",
                self._no_validation(),
            )
        if phase.start_from == "best" and (index == 0 or not val):
            reason = "is the first" if index == 0 else "follows one without validation"
            self.error(
                "TLR126",
                f'start_from = "best": phase `{phase.name}` {reason}',
                (*path, "start_from"),
                'remove it, or write start_from = "last"',
            )

    def _no_validation(self) -> list[Label]:
        """Where the recipe says that no images are held out, if it does."""
        written = "val" in self.recipe.data.model_fields_set and not self.recipe.data.val
        return [Label(("data", "val"), "no images are held out")] if written else []

    def _check_metric(self, metric: str | None, path: Path) -> None:
        count = len(self.info.classes)
        if metric == "top5_accuracy" and count <= 5 and self.info is not UNKNOWN_DATA:
            self.error(
                "TLR132",
                f"with {count} classes the label is always among the top five",
                path,
                'watch another metric, such as "accuracy"',
            )

    def _check_augment(self, phase: PhaseSpec, path: Path) -> None:
        augment = phase.augment
        for name in ("mixup", "cutmix"):
            if augment.views and getattr(augment, name) is not None:
                self.error(
                    "TLR133",
                    f"`views` stores single images, but `{name}` mixes two anew each time",
                    (*path, "augment", "views"),
                    f"remove `views`, or `{name}`",
                )
        for key in ("resized_crop", "erasing"):
            table = getattr(augment, key)
            for name in ("scale", "ratio"):
                low, high = (0.0, 0.0) if table is None else getattr(table, name)
                if low > high:
                    self.error(
                        "TLR133",
                        f"`{name}` goes from the smallest to the largest, but {low:g} is above {high:g}",
                        (*path, "augment", key, name),
                        f"write `{name} = [{high:g}, {low:g}]`",
                    )

    def _class_weights(self, loss: LossSpec, path: Path) -> tuple[float, ...] | None:
        """Weight of each class, scaled to a mean of 1 over the training images; None where the recipe
        gives none, or the data is not there."""
        counts, classes = self.info.class_counts, self.info.classes
        if loss.class_weights is None or not counts:
            return None
        if loss.class_weights == "balanced":
            weights = [1 / count if count else 0.0 for count in counts]
        else:
            for name in loss.class_weights:
                if name not in classes:
                    self.found.append(
                        Diagnostic(
                            "TLR134",
                            f"there is no class `{name}`",
                            (*path, "class_weights", name),
                            did_you_mean(name, classes),
                            at="key",
                        )
                    )
            weights = [loss.class_weights.get(name, 1.0) for name in classes]
        mean = sum(w * count for w, count in zip(weights, counts, strict=True)) / sum(counts)
        return tuple(weight / mean for weight in weights)

    def _check_balance(self) -> None:
        """Say so where some classes are much larger than others and nothing in the recipe allows for it."""
        counts = {name: n for name, n in zip(self.info.classes, self.info.class_counts, strict=False) if n}
        allowed_for = [
            phase.sampling == "balanced" or (phase.loss or self.recipe.loss).class_weights is not None
            for phase in self.recipe.phase
        ]
        if not counts or any(allowed_for):
            return
        small, large = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
        if counts[large] >= UNBALANCED * counts[small]:
            self.found.append(
                Diagnostic(
                    "TLR135",
                    f"class `{large}` has {counts[large]:,} training images and `{small}` {counts[small]:,}:"
                    f" {counts[large] / counts[small]:.0f} times as many",
                    ("data",),
                    'if small classes matter as much, write `sampling = "balanced"` in the phases or'
                    ' `[loss]` with `name = "cross_entropy"` and `class_weights = "balanced"`, and watch'
                    ' `best_metric = "balanced_accuracy"`',
                    severity="warning",
                )
            )

    def _pulled(self, phase: PhaseSpec) -> frozenset[str]:
        """Parameters that L2-SP pulls towards their pretrained values, so that weight decay does not pull
        them towards zero."""
        if phase.l2_sp is None:
            return frozenset()
        return frozenset(param.name for param in self.table if not param.head)

    def _check_start(self, phase: PhaseSpec, index: int, ever_trained: frozenset[str]) -> None:
        """Methods that hold on to the weights before need weights that are worth it."""
        if phase.l2_sp is not None and not self.table.pretrained:
            self.error(
                "TLR136",
                f"`l2_sp` of phase `{phase.name}` would pull towards random weights",
                ("phase", index, "l2_sp"),
                'remove it, or start from pretrained weights: backbone.weights is "none"',
            )
        untrained = [p.name for p in self.table if p.head and p.name not in ever_trained]
        if phase.wise_ft is not None and untrained:
            self.error(
                "TLR136",
                f"`wise_ft` of phase `{phase.name}` would interpolate with a head that is not trained yet",
                ("phase", index, "wise_ft"),
                'put a phase with freeze = ["@backbone"] before it',
            )

    def _rates(
        self, phase: PhaseSpec, path: Path, trainable: frozenset[str], partition: Mapping[str, str]
    ) -> dict[str, float]:
        """Base rate of every group that trains in this phase."""
        specs = self.recipe.group or (GroupSpec(name="all", match=("**",)),)
        training = {partition[name] for name in trainable}
        if not isinstance(phase.lr, dict):
            return {spec.name: phase.lr * spec.lr_scale for spec in specs if spec.name in training}
        names = [spec.name for spec in specs]
        for name in phase.lr:
            if name not in names:
                self.found.append(
                    Diagnostic(
                        "TLR110",
                        f"there is no group `{name}`",
                        (*path, "lr", name),
                        did_you_mean(name, names) or f"the groups are {', '.join(names)}",
                        at="key",
                    )
                )
            elif name not in training:
                self.warn(
                    "TLR130",
                    f"group `{name}` has a rate, but phase `{phase.name}` freezes all of it",
                    (*path, "lr", name),
                    [Label((*path, "freeze"), "freezes the group")],
                )
        unknown = any(name not in names for name in phase.lr)
        missing = [name for name in names if name in training and name not in phase.lr]
        if missing and not unknown:
            self.error(
                "TLR111",
                f"phase `{phase.name}` trains group `{missing[0]}` but gives it no rate",
                (*path, "lr"),
                f"add {', '.join(f'{name} = …' for name in missing)}, or freeze what shall stand still",
                [Label(("group", names.index(missing[0]), "name"), "trains in this phase")]
                if self.recipe.group
                else [],
                "has no rate for it",
            )
        return {name: rate for name, rate in phase.lr.items() if name in training}

    def _no_decay(self, patterns: Sequence[str], path: Path, recipe: Recipe) -> frozenset[str]:
        optimizer = recipe.optimizer if path[0] == "optimizer" else recipe.phase[int(path[1])].optimizer
        written = optimizer is not None and "no_decay" in optimizer.model_fields_set
        names: frozenset[str] = frozenset()
        for position, pattern in enumerate(patterns):
            matched = self.match(pattern)
            # The default patterns may match nothing: a network without norm layers is not a mistake.
            if not matched and written:
                self.found.append(self.match.nothing(pattern, (*path, position)))
            names |= matched
        return names

    def _modes(self, trainable: frozenset[str], norm: str) -> frozenset[str]:
        """Modules in train mode: those with something to train below them.

        A module without parameters follows its parent, so the dropout of a frozen block is off; a norm
        layer follows its own parameters, or the phase's ``norm`` policy.
        """
        own: dict[str, list[str]] = {}
        holds: set[str] = set()
        trains: set[str] = set()
        for param in self.table:
            own.setdefault(param.module, []).append(param.name)
            places = _ancestors(param.module)
            holds.update(places)
            if param.name in trainable:
                trains.update(places)
        modes: set[str] = set()
        for module in self.table.modules:
            parent = module.name.rpartition(".")[0]
            train = module.name in trains if module.name in holds else parent in modes
            if module.norm and module.name in own:
                train = any(name in trainable for name in own[module.name])
            if module.norm and norm != "follow":
                train = norm == "train"
            if train:
                modes.add(module.name)
        return frozenset(modes)

    def _groups(
        self,
        trainable: Sequence[ParamFact],
        partition: Mapping[str, str],
        rates: Mapping[str, float],
        layer_decay: float,
        weight_decay: float,
        no_decay: frozenset[str],
    ) -> tuple[ParamGroup, ...]:
        top = max(param.depth for param in self.table)
        members: dict[tuple[str, int, float], list[str]] = {}
        for param in trainable:
            below = 0 if layer_decay == 1 or param.head else top - param.depth
            decay = 0.0 if param.name in no_decay else weight_decay
            members.setdefault((partition[param.name], below, decay), []).append(param.name)
        order = {name: index for index, name in enumerate(self._group_names())}
        return tuple(
            ParamGroup(name, tuple(params), rates[name] * layer_decay**below, decay)
            for (name, below, decay), params in sorted(
                members.items(), key=lambda item: (order[item[0][0]], item[0][1], -item[0][2])
            )
        )

    def _group_names(self) -> list[str]:
        return [group.name for group in self.recipe.group] or ["all"]

    def _ordered(self, names: Iterable[str]) -> list[str]:
        wanted = frozenset(names)
        return [param.name for param in self.table if param.name in wanted]

    @staticmethod
    def _match(where: str, pattern: str, taken: Sequence[str], matched: int) -> Match:
        return Match(where, pattern, matched, len(taken), taken[0], taken[-1])


def _ancestors(module: str) -> list[str]:
    """``a.b`` → ``["", "a", "a.b"]``."""
    if not module:
        return [""]
    parts = module.split(".")
    return ["", *(".".join(parts[: end + 1]) for end in range(len(parts)))]
