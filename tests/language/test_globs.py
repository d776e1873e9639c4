"""The glob matcher against a naive one, and what is refused as no pattern."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tlrecipe.language.globs import Glob, GlobError, Selector, parse_pattern

# --------------------------------------------------------------------------- a naive reference


def expand(pattern: str) -> list[str]:
    """Brace-free patterns, by writing out the first innermost braces."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    return [
        written
        for choice in braces[1].split(",")
        for written in expand(pattern[: braces.start()] + choice + pattern[braces.end() :])
    ]


def matches_all(pattern: str, name: str, segment_start: bool = True) -> bool:
    """Whether a brace-free pattern matches the whole name, by trying everything."""
    if not pattern:
        return not name
    if pattern.startswith("**"):
        rest = pattern[2:]
        if segment_start and rest.startswith(".") and matches_all(rest[1:], name, True):
            return True
        return any(matches_all(rest, name[cut:], False) for cut in range(len(name) + 1))
    if pattern.startswith("*"):
        longest = len(name.partition(".")[0])
        return any(matches_all(pattern[1:], name[cut:], False) for cut in range(longest + 1))
    if numbers := re.match(r"\[(\d+)-(\d+)\]", pattern):
        rest = pattern[numbers.end() :]
        return any(
            name.startswith(str(number)) and matches_all(rest, name[len(str(number)) :], False)
            for number in range(int(numbers[1]), int(numbers[2]) + 1)
        )
    if letters := re.match(r"\[[^\]]*\]", pattern):
        rest = pattern[letters.end() :]
        return bool(name) and bool(re.match(letters[0], name)) and matches_all(rest, name[1:], False)
    if not name or (name[0] == "." if pattern[0] == "?" else name[0] != pattern[0]):
        return False
    return matches_all(pattern[1:], name[1:], pattern[0] == ".")


def naive(pattern: str, name: str) -> bool:
    prefixes = [name, *(name[: dot.start()] for dot in re.finditer(r"\.", name))]
    return any(matches_all(one, prefix) for one in expand(pattern) for prefix in prefixes)


pieces = st.sampled_from(
    ["a", "b", "ab", "0", "1", "12", "?", "*", "**", "[ab]", "[0-9]", "[0-12]", "[9-101]", "[a-b0-1]", "."]
)
sequences = st.lists(pieces, min_size=1, max_size=5).map("".join)
braced = st.recursive(
    sequences,
    lambda inner: st.tuples(
        st.one_of(st.just(""), sequences),
        st.lists(st.one_of(st.just(""), inner), min_size=1, max_size=3),
        st.one_of(st.just(""), sequences),
    ).map(lambda parts: f"{parts[0]}{{{','.join(parts[1])}}}{parts[2]}"),
    max_leaves=4,
)
names = st.lists(st.text("ab019", min_size=1, max_size=4), min_size=1, max_size=4).map(".".join)


@given(braced, names)
@example("{a.,b}**.a", "a.a")
@example("**.a", "a")
@example("a.**.b", "a.b")
@example("a**.b", "a.b")
@example("{**.,}a", "b.0.a")
@example("[0-12]", "120")
@example("a[9-101]", "a100.b")
def test_agrees_with_the_naive_matcher(pattern: str, name: str) -> None:
    try:
        glob = Glob.parse(pattern)
    except GlobError:
        return
    assert glob.matches(name) == naive(pattern, name)


@given(names, names)
def test_a_name_is_a_pattern_for_itself_and_all_below_it(module: str, rest: str) -> None:
    glob = Glob.parse(module)
    assert glob.matches(module)
    assert glob.matches(f"{module}.{rest}")
    assert not glob.matches(f"{module}x.{rest}")
    assert Glob.parse(f"{module}.**").matches(f"{module}.{rest}")


@given(st.integers(0, 1200), st.integers(0, 1200), st.integers(0, 13_000))
def test_a_range_is_the_numbers_in_it(one: int, other: int, number: int) -> None:
    first, last = sorted((one, other))
    assert Glob.parse(f"blocks.[{first}-{last}].bn").matches(f"blocks.{number}.bn.bias") == (
        first <= number <= last
    )


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("features.1*", "features.12.weight", "features.2.weight"),
        ("features.[0-1]", "features.1.weight", "features.10.weight"),
        ("Layer1", "Layer1.weight", "layer1.weight"),
        ("blocks.*.bn", "blocks.0.bn.bias", "blocks.0.conv.bn.bias"),
        ("layer{3,4}", "layer4.0.bias", "layer2.0.bias"),
        ("{stem,blocks.[0-2]}", "blocks.2.x", "blocks.3.x"),
        ("bn{,1}", "bn.bias", "bn2.bias"),
        ("layer{1,2,3}", "layer1.bias", "layer4.bias"),
        ("?n1", "bn1.bias", ".n1.bias"),
        ("größe", "größe.weight", "gro\u0308ße.weight"),
    ],
)
def test_examples(pattern: str, matching: str, other: str) -> None:
    glob = Glob.parse(pattern)
    assert glob.matches(matching)
    assert not glob.matches(other)


def test_takes_time_linear_in_the_name() -> None:
    class Counted(str):
        steps = 0

        def __iter__(self):
            for char in super().__iter__():
                Counted.steps += 1
                yield char

    name = Counted("a" * 20_000)
    assert not Glob.parse("**a" * 30 + "b").matches(name)
    assert Counted.steps == len(name)


def test_equal_by_text() -> None:
    assert Glob.parse("a.*") == Glob.parse("a.*") != Glob.parse("a.?")
    assert len({Glob.parse("a.*"), Glob.parse("a.*")}) == 1


# --------------------------------------------------------------------------- what is no pattern


@given(st.one_of(st.text(max_size=40), st.text("ab0.*?[]{},-@:()|^$+\\!/ ", max_size=40)))
def test_parsing_raises_nothing_but_glob_errors(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except GlobError as error:
        assert error.message
    else:
        assert str(pattern) == text
        if isinstance(pattern, Glob):
            pattern.matches("a.b")


@pytest.mark.parametrize(
    ("regex", "glob"),
    [
        (r"layer4\..*", "layer4.**"),
        (r"^fc$", "fc"),
        (r"(conv|bn)1", "{conv,bn}1"),
        (r"(?:conv|bn)\d+\.weight", "{conv,bn}*.weight"),
        (r"conv1|bn1", "{conv1,bn1}"),
        (r"blocks\.[0-9]+\.bn", "blocks.*.bn"),
        (r"blocks\.\d\.bn", "blocks.[0-9].bn"),
        (r".*\.bias", "**.bias"),
        (r"layer4.+", "layer4**"),
        (r"a..*", "a.**"),
    ],
)
def test_regular_expressions_are_answered_with_a_glob(regex: str, glob: str) -> None:
    with pytest.raises(GlobError, match="regular expression") as caught:
        parse_pattern(regex)
    assert caught.value.help == f"write `{glob}`"
    Glob.parse(glob)


@pytest.mark.parametrize("regex", [r"a+", r"\\", "(", "a|)", r"x{1,2}+", r"^$"])
def test_regular_expressions_without_an_equal_glob(regex: str) -> None:
    with pytest.raises(GlobError, match="regular expression") as caught:
        parse_pattern(regex)
    assert "`**` crosses segments" in (caught.value.help or "")


@pytest.mark.parametrize(
    ("text", "message", "help"),
    [
        ("", "empty", "write `**`"),
        (" a", "space", "write `a`"),
        ("a" * 501, "501 characters", None),
        ("a/b", "file path", "write `a.b`"),
        ("layer4.", "ends with a dot", "write `layer4`"),
        ("a..b", "empty segment", "one dot"),
        (".a", "empty segment", "one dot"),
        ("!a", "negated", "`thaw`"),
        ("[^a]", "negated class", "`thaw`"),
        ("[!a]", "negated class", "`thaw`"),
        ("***", "`***`", "write `**`"),
        ("a,b", "more than one pattern", '["a", "b"]'),
        ("{a", "not closed", "{a,b}"),
        ("a}", "without `{`", "{a,b}"),
        ("{}", "empty", "{a,b}"),
        ("[a", "not closed", "[abc]"),
        ("a]", "without `[`", "[abc]"),
        ("[]", "empty", "[abc]"),
        ("[a.b]", "not a class", "{a,b}"),
        ("[9-0]", "backwards", "write `[0-9]`"),
        ("[z-a]", "backwards", "write `[a-z]`"),
        ("[00-12]", "leading zeros", "0[0-9]"),
        ("[0-1234567]", "too large", "write `*`"),
        ("{" * 9 + "a" + "}" * 9, "nested more than 8", None),
        ("{a,b}" * 9, "more than 256 patterns", None),
    ],
)
def test_refused(text: str, message: str, help: str | None) -> None:
    with pytest.raises(GlobError) as caught:
        parse_pattern(text)
    assert message in caught.value.message
    assert (help or "") in (caught.value.help or "")


# --------------------------------------------------------------------------- selectors


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("@head", Selector("head")),
        ("@backbone", Selector("backbone")),
        ("@norm", Selector("norm")),
        ("@bias", Selector("bias")),
        ("@stage:3", Selector("stage", 3, 3)),
        ("@stage:0..2", Selector("stage", 0, 2)),
    ],
)
def test_selectors(text: str, selector: Selector) -> None:
    assert parse_pattern(text) == selector
    assert str(selector) == text


@pytest.mark.parametrize(
    ("text", "message", "help"),
    [
        ("@hed", "unknown selector", "did you mean `@head`?"),
        ("@stag:1", "unknown selector", "did you mean `@stage:N`?"),
        ("@zzz", "unknown selector", "the selectors are"),
        ("@stage", "which stages", "@stage:0..2"),
        ("@stage:", "which stages", "@stage:0..2"),
        ("@stage:x", "which stages", "@stage:0..2"),
        ("@stage:2..1", "backwards", "write `@stage:1..2`"),
        ("@head.weight", "nothing may follow", "write `@head`"),
    ],
)
def test_refused_selectors(text: str, message: str, help: str) -> None:
    with pytest.raises(GlobError, match=message) as caught:
        parse_pattern(text)
    assert help in (caught.value.help or "")
