"""The report as a file: what it says of a run, and that it is whole, small and safe."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from run_directories import DIGEST, card_of, predictions, write_run

from tlrecipe.artifacts.report import shapes
from tlrecipe.artifacts.report.page import report_page
from tlrecipe.artifacts.report.record import DATA, EVALUATION, PREDICTIONS, read_record
from tlrecipe.artifacts.report.thumbnails import THUMBNAILS
from tlrecipe.language.diagnostics import TlrecipeError

HOSTILE = ("<img src=x onerror=alert(1)>", "كلب كبير", "x" * 200, "a\u202eb\n\x1b[2J", "&amp;'\"`")
VOID = {"meta", "link", "img", "wbr", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page, with a check that tags are closed in order."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th", "dd", "dt", "li"):
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def named(self, tag: str) -> Iterator[dict[str, str]]:
        return (attributes for found, attributes in self.tags if found == tag)


def page_of(folder: Path) -> Page:
    return Page(report_page(read_record(folder)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", predictions(("cat", "dog", "owl"), 300))


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return report_page(read_record(run))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


# --------------------------------------------------------------------------- what it says


def test_the_headline_is_the_test_accuracy_with_its_interval(page: Page, run: Path) -> None:
    found = read_record(run).predictions
    assert found is not None
    assert f"{100 * found.accuracy:.1f} %" in page.text
    assert "300 images leave a 95 % interval of" in page.text


def test_what_was_frozen_is_shown_with_its_digest(page: Page) -> None:
    assert f"✓ unchanged {DIGEST[:16]}…{DIGEST[-8:]} before = after" in page.text


def test_what_was_computed_once_is_told_with_the_time_it_saved(page: Page) -> None:
    # 3 epochs of 90 + 10 images, of which 100 were computed, at 0.1 s each.
    assert "everything up to pool: 100 passes in place of 300, which saved about 20 s" in page.text


def test_the_recipe_and_the_environment_are_whole(page: Page) -> None:
    assert 'weights = "none"' in page.text
    assert "timm not installed" in page.text


def test_a_class_has_its_row(page: Page, run: Path) -> None:
    found = read_record(run).predictions
    assert found is not None
    own = found.labels == 1
    recall = found.right[own].mean()
    assert f"dog 100 {100 * recall:.1f} %" in page.text


def test_the_card_of_the_data_is_told(page: Page) -> None:
    text = page.text
    sizes = "15, from 20 × 30 to 4000 × 3000, median 500 × 375; 70 JPEG, 20 PNG"
    assert f"Training images {sizes} Converted or allowed for: 4 grey, 2 turned by EXIF" in text
    assert f"Validation images {sizes}" in text
    assert "the largest class has 2.3 times as many images to train on as the smallest" in text
    assert "3 test images are among the training images too: what is measured on them says too much" in text
    assert "too much cat/2.png = cat/1.png" in text
    assert "Left out of training 3 files cat/broken.png: cat is no image dog/broken.png" in text
    assert "1 file has other bytes than in an earlier run, such as cat/new.png" in text
    assert "Passed over 2 hidden" in text
    assert "Class Training Validation Test cat 3 3 3 dog 5 5 5 owl 7 7 7" in text


def test_even_classes_need_no_table(tmp_path: Path) -> None:
    part = replace(card_of(("cat", "dog")).splits["train"], by_class={"cat": 4, "dog": 4}, bad=(), changed=())
    card = card_of(("cat", "dog"), splits={"train": part}, duplicates=(), ignored={})
    text = page_of(write_run(tmp_path / "run", predictions(("cat", "dog"), 40), card=card)).text
    assert "every class has 4 images to train on" in text
    for odd in ("Images by class", "Left out", "In two splits", "Passed over", "Changed in"):
        assert odd not in text


def test_more_files_than_can_be_read_are_counted(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(12)]
    text = page_of(write_run(tmp_path / "run", predictions(names, 60))).text
    assert "class 4/broken.png: class 4 is no image and 7 more" in text


def test_a_run_without_a_card_says_what_its_plan_knows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", predictions(("cat", "dog"), 40))
    (run / DATA).unlink()
    assert "Images 90 training, 10 validation, 40 test Classes 2: cat, dog" in page_of(run).text


def test_shown_images_are_those_that_were_kept(page: Page, run: Path) -> None:
    kept = set(read_record(run).thumbnails.values())
    assert {image["src"] for image in page.named("img")} == kept
    assert all(image["alt"] for image in page.named("img"))


# --------------------------------------------------------------------------- every kind of run


def test_two_classes(tmp_path: Path) -> None:
    assert "cat" in page_of(write_run(tmp_path / "run", predictions(("cat", "dog"), 40))).text


def test_a_thousand_classes_of_long_names_stay_small(tmp_path: Path) -> None:
    names = [f"class {number:04} " + "n" * 180 for number in range(1000)]
    run = write_run(tmp_path / "run", predictions(names, 4000, right=0.6))
    html = report_page(read_record(run))
    assert len(html.encode()) < 1_500_000
    text = Page(html).text
    assert "The 20 classes of 1000 that are confused most with each other" in text
    assert re.search(r"The \d{3} classes with the lowest recall, of 1000", text)
    assert re.search(r"The \d{3} classes with the fewest images to train on, of 1000", text)


def test_a_thousand_classes_of_usual_names_are_all_in_the_table(tmp_path: Path) -> None:
    names = [f"class {number:04}" for number in range(1000)]
    page = page_of(write_run(tmp_path / "run", predictions(names, 4000, right=0.6)))
    assert sum(a.get("scope") == "row" for a in page.named("th")) > 1000


def test_everything_right_leaves_no_mistakes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", predictions(("cat", "dog"), 40, right=1.0))
    assert "There are none." in page_of(run).text


def test_without_a_validation_split_only_training_is_drawn(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", predictions(("cat", "dog"), 40), val=False)).text
    assert "There is no validation split" in text
    assert "Best epoch" not in text


def test_without_a_test_split_the_validation_accuracy_leads_with_a_warning(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", None)).text
    assert "Validation accuracy. 10 images leave" in text
    assert "The data has no test split" in text
    assert "This run holds no predictions" in text


def test_with_neither_there_is_no_headline(tmp_path: Path) -> None:
    assert "accuracy." not in page_of(write_run(tmp_path / "run", None, val=False)).text


def test_a_run_that_was_stopped_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", predictions(("cat", "dog"), 40), done=False)
    assert "This run has not come to its end: the last epoch recorded is 3 of phase all" in page_of(run).text


def test_a_run_before_its_first_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", None, done=False)
    (run / "metrics.jsonl").unlink()
    assert "No epoch has been recorded." in page_of(run).text


def test_without_kept_images_the_page_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", predictions(("cat", "dog"), 40), images=False)
    page = page_of(run)
    assert not list(page.named("img"))
    assert "This run holds no small copies of its images." in page.text


# --------------------------------------------------------------------------- hostile names


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = predictions(HOSTILE, 100, right=0.5)
    files = tuple(f"test/{HOSTILE[number % 5]}/\udcff{number}.png" for number in range(100))
    folder = tmp_path_factory.mktemp("runs") / "hostile"
    return write_run(folder, replace(found, files=files), name="<script>alert(2)</script>")


def test_hostile_names_survive_the_run_directory(hostile: Path) -> None:
    found = read_record(hostile).predictions
    assert found is not None
    assert found.classes == HOSTILE
    assert found.files[1] == "test/كلب كبير/\\udcff1.png"


def test_hostile_names_are_text_and_nothing_else(hostile: Path) -> None:
    page = page_of(hostile)
    assert HOSTILE[0] in page.text
    assert HOSTILE[1] in page.text
    assert "a\\u202eb\\n\\x1b[2J" in page.text
    assert {tag for tag, _ in page.tags if tag == "script"} == {"script"}
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_page_of_hostile_names_is_utf8(hostile: Path) -> None:
    assert report_page(read_record(hostile)).encode()


# --------------------------------------------------------------------------- a good page


def test_nothing_is_asked_of_anybody(html: str, page: Page) -> None:
    links = [a.get("href") or a.get("src") or "" for tag, a in page.tags if "href" in a or "src" in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "http" not in re.sub(r"data:image[^\"]*", "", html).replace('http-equiv="', "")
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_allows_this_style_and_this_script_and_no_other(html: str, page: Page) -> None:
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not [a for _, a in page.tags if "style" in a]


def test_headings_go_down_without_a_gap(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_has_landmarks_a_language_and_labels(page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    for landmark in ("header", "nav", "main", "footer"):
        assert landmark in tags
    assert next(page.named("html"))["lang"] == "en"
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["aria-labelledby"] for a in page.named("section")} <= ids
    assert {a["href"][1:] for a in page.named("a")} <= ids
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in page.named("svg"))


def test_tables_have_captions_and_their_headings_a_scope(html: str, page: Page) -> None:
    assert html.count("<table") == html.count("<caption")
    assert all(a.get("scope") in ("col", "row") for a in page.named("th"))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [shapes.LIGHT, shapes.DARK], ids=["light", "dark"])
def test_text_has_a_contrast_of_four_and_a_half(palette: dict[str, str]) -> None:
    texts = [role for role in palette if role not in ("paper", "band", "rule")]
    for ground in ("paper", "band"):
        low = {role: contrast(palette[role], palette[ground]) for role in texts}
        assert {role: value for role, value in low.items() if value < 4.5} == {}


@pytest.mark.parametrize("palette", [shapes.LIGHT, shapes.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("role", ["s1", "s2"])
def test_numbers_on_the_heat_map_have_it_too(palette: dict[str, str], role: str) -> None:
    strongest = 0.5  # style: steps of five percent, ten of them
    mixed = [
        round(int(palette[role][i : i + 2], 16) * strongest + int(palette["band"][i : i + 2], 16) * strongest)
        for i in (1, 3, 5)
    ]
    assert contrast("#" + "".join(f"{part:02x}" for part in mixed), palette["ink"]) >= 4.5


# --------------------------------------------------------------------------- damaged directories


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TlrecipeError, match=r"TLR601.*not a run directory"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", "{"),
        ("plan.json", '{"name": 1}'),
        ("result.json", "[]"),
        ("metrics.jsonl", '{"epoch": "x"}\n'),
        ("environment.json", "3"),
        ("recipe.resolved.toml", "= 3"),
        (EVALUATION, '{"split": "test"}'),
        (DATA, '{"imbalance": "much"}'),
        (PREDICTIONS, "file,label\nx,cat\n"),
        (PREDICTIONS, "file,label,predicted,probability\nx,lion,cat,1\n"),
        (THUMBNAILS, "{"),
    ],
)
def test_a_damaged_file_is_named(run: Path, tmp_path: Path, name: str, content: str) -> None:
    import shutil

    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / name).write_text(content)
    with pytest.raises(TlrecipeError, match=rf"TLR601.*{name}` is damaged"):
        read_record(copy)
