"""The report: it parses, it is self-contained, and it says what metrics.json says."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from puma_plugin.experiments.reporting.figures import _front
from puma_plugin.experiments.reporting.pictures import Neighbour, Query, data_uri
from puma_plugin.experiments.reporting.report import EmbeddingMap, ReportPictures, render_report, write_report
from puma_plugin.experiments.reporting.tables import percent

VOID = {"meta", "img", "br", "link", "input", "hr"}
NAMES = ["glyph", "digit"]


def interval(mean: float, spread: float | None = 0.01) -> dict:
    low, high = (None, None) if spread is None else (mean - spread, mean + spread)
    return {"mean": mean, "low": low, "high": high}


def row(key: str, label: str, mean: float, **more) -> dict:
    scores = {name: interval(mean) for name in ("harmonic", "unified", "worst", "leak", "arithmetic")}
    per = {name: interval(mean + 0.1 * index) for index, name in enumerate(NAMES)}
    return {
        "key": key, "label": label, "note": f"note of {key}", "trainable": 120_960, "seconds": 81.2, "runs": 9,
        "scores": scores, "per_distribution": per, **more,
    }  # fmt: skip


def metrics(**changes) -> dict:
    separate = row("separate", "One model per dataset", 0.565)
    separate["scores"].update(unified=None, leak=None)
    return {
        "title": "Title <of> & the run",
        "lead": "What it is.",
        "cards": [{"figure": "55.0 %", "text": "harmonic"}],
        "methods": [row("puma", "PUMA", 0.55), separate, row("full", "Full fine-tuning", 0.569, recorded=True)],
        "distributions": NAMES,
        "accent": "puma",
        "findings": ["PUMA is here."],
        "explanation": "Explained.",
        "interval_method": "an interval.",
        "remarks": ["Remarked & so on.", "Twice."],
        "interval_note": "Bars.",
        "curves": {"PUMA": [{"epoch": e, "mean": 50 + e, "low": 49 + e, "high": 51 + e} for e in range(3)]},
        "curve_note": "Curves.",
        "learning_rates": {
            "multipliers": [0.5, 1.0],
            "scores": {"puma": {"0.5": 0.481, "1": 0.523}},
            "chosen": {"puma": 1.0},
            "explanation": "Held out.",
        },
        "settings": {"epochs": 11, "note": "</pre><script>alert(1)</script>"},
        "facts": {"Machine": "a <cpu>", "GPU": None},
        **changes,
    }


def pictures() -> ReportPictures:
    generator = np.random.default_rng(0)

    def image() -> np.ndarray:
        return generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)

    queries = [
        Query(name, image(), {"PUMA": [Neighbour(image(), True, name), Neighbour(image(), False, "digit")]})
        for name in NAMES
    ]
    points = generator.normal(size=(40, 2))
    members = np.repeat([0, 1], 20)
    maps = [EmbeddingMap("Frozen", points, members), EmbeddingMap("PUMA", -points, members)]
    return ReportPictures(maps, generator.normal(size=(2, 8)), queries)


class Page(HTMLParser):
    """Checks that tags close in order, and collects ids, links, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: dict[str, int] = {}
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def text() -> str:
    return render_report(metrics(), pictures())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_has_every_section(page: Page) -> None:
    sections = {value for tag, name, value in page.attributes if (tag, name) == ("section", "id")}
    assert sections == {"result", "distributions", "curves", "map", "prompts", "neighbours", "rates", "run"}
    links = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links == {f"#{section}" for section in sections}


def test_ids_are_unique(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))


def test_references_within_charts_resolve(text: str, page: Page) -> None:
    targets = set(re.findall(r"url\(#([^)]+)\)", text)) | {
        value[1:] for tag, name, value in page.attributes if tag == "use" and name == "href"
    }
    assert targets
    assert targets <= set(page.ids)


def test_is_self_contained(text: str, page: Page) -> None:
    assert "http:" not in text
    assert "https:" not in text
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "@import" not in text
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "poster"):
            assert value.startswith(("data:image/", "#")), (tag, name, value[:60])
    assert not re.search(r"url\((?!#)", text)


def test_pictures_are_what_was_given(page: Page) -> None:
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    # Two queries, each with two neighbours; decoded, the first is the first query's picture.
    assert len(sources) == 6
    decoded = np.array(Image.open(io.BytesIO(base64.b64decode(sources[0].split(",", 1)[1]))))
    assert np.array_equal(decoded, pictures().queries[0].image)
    frames = [value for tag, name, value in page.attributes if tag == "div" and name == "class" and "tile" in value]
    assert frames == ["tile query", "tile right", "tile wrong"] * 2


def test_figures_of_the_table(page: Page) -> None:
    for words in ("55.0", "54.0 to 56.0", "121.0 k", "81", "56.9", "recorded; note of full", "52.3", "48.1"):
        assert words in page.text
    assert page.tags["svg"] == 5


def test_the_table_is_explained(page: Page) -> None:
    assert "Explained. Below each figure: an interval. Remarked & so on. Twice." in page.text


def test_text_is_escaped(text: str, page: Page) -> None:
    assert "Title <of> & the run" in page.text
    assert "<script>" not in text


def test_colours_follow_the_page(text: str) -> None:
    assert "currentColor" in text
    assert "#010203" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_parts_that_are_missing_are_left_out() -> None:
    plain = Page(render_report(metrics(curves={}, learning_rates=None, findings=[], cards=[]), ReportPictures()))
    sections = {value for tag, name, value in plain.attributes if (tag, name) == ("section", "id")}
    assert sections == {"result", "distributions", "run"}


def test_no_intervals_without_bounds() -> None:
    single = row("puma", "PUMA", 0.55)
    single["scores"] = {name: interval(0.55, None) for name in single["scores"]}
    single["per_distribution"] = {name: interval(0.5, None) for name in NAMES}
    page = Page(render_report(metrics(methods=[single]), ReportPictures()))
    assert " to " not in page.text.split("While training")[0].split("Per distribution")[0].replace("seconds to", "")


def test_a_single_evaluation_shows_every_metric_and_the_baseline() -> None:
    def figures(value: float) -> dict:
        return {"recall_at_1": value, "recall_at_10": value + 0.2, "map_at_r": value / 2}

    own = {"glyph": figures(0.5), "digit": {"recall_at_1": 0.7}}
    result = {"per_distribution": own, "harmonic_mean": figures(0.6), "arithmetic_mean": figures(0.6)}
    result |= {"worst": figures(0.5), "unified": None}
    places = {**{f"per_distribution.{name}": of for name, of in own.items()}, "harmonic_mean": result["harmonic_mean"]}
    places |= {name: result[name] for name in ("arithmetic_mean", "worst")}
    intervals = {
        f"{place}.{metric}": {"value": value, "low": value - 0.05, "high": None if place == "worst" else value + 0.1}
        for place, metrics in places.items()
        for metric, value in metrics.items()
    }
    for name, interval in intervals.items():
        if name.startswith("worst"):
            interval["low"] = None
    differences = {
        "per_distribution.digit.recall_at_1": {"value": 0.031, "low": 0.01, "high": 0.05},
        "harmonic_mean.recall_at_1": {"value": -0.02, "low": -0.04, "high": 0.004},
        "worst.recall_at_1": {"value": 0.01, "low": None, "high": None},
    }
    baseline = {"path": "runs/<other>", "paired": True, "confidence": 0.95, "differences": differences}
    text = render_report(
        metrics(runs=[{"result": result, "intervals": intervals}], baseline=baseline), ReportPictures()
    )
    page = Page(text)
    sections = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert sections[:3] == ["result", "metrics", "baseline"]
    assert "distributions" not in sections  # every metric holds them
    table = text.partition('<section id="metrics">')[2].partition("</section>")[0]
    assert "<th>R@1</th><th>R@10</th><th>MAP@R</th></tr>" in table
    assert "<th>glyph</th><td>50.0<small>45.0 to 60.0</small></td><td>70.0<small>65.0 to 80.0</small></td>" in table
    assert "<th>digit</th><td>70.0<small>65.0 to 80.0</small></td><td>-</td><td>-</td>" in table
    assert "<th>worst</th><td>50.0</td><td>70.0</td><td>25.0</td>" in table
    assert "<th>unified</th>" not in table
    table = text.partition('<section id="baseline">')[2].partition("</section>")[0]
    assert "<th>digit</th><td><b>+3.1</b><small>+1.0 to +5.0</small></td>" in table
    assert "<th>harmonic mean</th><td>-2.0<small>-4.0 to +0.4</small></td>" in table
    assert "<th>worst</th><td>+1.0</td>" in table
    assert "<th>glyph</th>" not in table
    assert "less runs/&lt;other&gt;, in points" in table


def test_is_written_whole(tmp_path) -> None:
    write_report(tmp_path / "deep" / "report.html", metrics(), ReportPictures())
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8").endswith("</html>\n")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_percent() -> None:
    assert (percent(0.5678), percent(None)) == ("56.8", "-")


def test_large_pictures_are_reduced() -> None:
    picture = np.zeros((300, 200, 3), dtype=np.uint8)
    uri = data_uri(picture)
    assert uri.startswith("data:image/jpeg")
    assert max(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).size) == 104
    with pytest.raises(ValueError, match="uint8 picture"):
        data_uri(np.zeros((4, 4, 3)))


def test_the_front_joins_what_nothing_cheaper_reaches() -> None:
    points = [(100.0, 0.5), (10.0, 0.4), (50.0, 0.3), (1000.0, 0.5), (2000.0, 0.6), (10.0, 0.2)]
    assert _front(points) == [(10.0, 0.4), (100.0, 0.5), (2000.0, 0.6)]
