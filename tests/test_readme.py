"""README and benchmarks/README show what the repository holds: its diffs, its table, its figures and its names."""

import difflib
import importlib
import re
from pathlib import Path

import pytest

from benchmarks.reporting.goals import judge
from benchmarks.reporting.results import load_results
from benchmarks.reporting.tables import goals_table
from puma_plugin.experiments.comparing.recorded import load_recorded, markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_diffs_are_those_of_the_examples() -> None:
    # Each diff stands below the name of its folder.
    shown = re.findall(r"examples/(\w+)(?:\)|</summary>)[^`]*```diff\n(.*?)\n```", README, re.DOTALL)
    assert sorted(name for name, _ in shown) == sorted(path.parent.name for path in ROOT.glob("examples/*/before.py"))
    assert README.count("```diff") == len(shown) == 5
    for name, diff in shown:
        pair = (ROOT / "examples" / name / which for which in ("before.py", "after.py"))
        before, after = (path.read_text(encoding="utf-8").splitlines() for path in pair)
        assert diff.splitlines() == list(difflib.unified_diff(before, after, lineterm=""))[2:], name


def test_the_table_is_the_recorded_one() -> None:
    (shown,) = re.findall(
        r"<!-- python -m puma_plugin.experiments.comparing.recorded -->\n(.*?)\n<!-- end -->", README, re.DOTALL
    )
    assert shown == markdown(load_recorded())


def test_the_goals_are_those_of_the_recorded_benchmarks() -> None:
    goals = (ROOT / "benchmarks" / "GOALS.md").read_text(encoding="utf-8")
    recorded = re.findall(
        r"<!-- python -m benchmarks.report goals (\S+) -->\n(.*?)\n<!-- end goals -->", goals, re.DOTALL
    )
    assert len(recorded) == 4
    reached = []
    for file, shown in recorded:
        verdicts = [verdict.reached for verdict in judge(load_results(ROOT / file)) if verdict.reached is not None]
        assert shown == goals_table(judge(load_results(ROOT / file)))
        reached.append((sum(verdicts), len(verdicts)))
    speed, evaluation, xeon, h200 = reached
    epyc = speed[0] + evaluation[0], speed[1] + evaluation[1]
    for name, (some, all_of_them) in (("EPYC reaches", epyc), ("Xeon", xeon), ("H200", h200)):
        assert f"{name} {some} of {all_of_them}" in README


def test_every_recorded_run_is_in_its_folders_list() -> None:
    """Runs that nobody lists could be the ones that look worse."""
    folders = [path.parent for path in (ROOT / "benchmarks" / "results").glob("*/README.md")]
    assert folders
    for folder in folders:
        listed = (folder / "README.md").read_text(encoding="utf-8")
        assert [path.name for path in folder.glob("*.json") if path.with_suffix(".md").name not in listed] == []


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("benchmarks/**/*.md")))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links or page not in ("README.md", "benchmarks/README.md")
    broken = []
    for link in links:
        file, _, place = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        # As GitHub names a heading's place in the page.
        if not target.exists() or (place and place not in map(slug, headings(target))):
            broken.append(link)
    assert broken == []


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+\.\w+)[`(]", README))))
def test_dotted_names_exist(name: str) -> None:
    folder, attribute = name.split(".")
    if attribute == "yaml":
        assert (ROOT / "puma_plugin" / "configs" / name).exists()
    elif attribute in ("md", "txt", "py"):
        assert (ROOT / name).exists()
    else:
        module = folder if folder == "puma_plugin" else f"puma_plugin.{folder}"
        assert hasattr(importlib.import_module(module), attribute)
