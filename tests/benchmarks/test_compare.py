"""What the comparison of two files says is outside noise."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import main
from benchmarks.reporting.compare import Change, compare, comparison_text
from benchmarks.reporting.results import load_results

PEERS = ("authors", "fixed", "indexed", "authors_compiled", "fixed_compiled", "triton")


def write(
    files: Any, name: str, ours: float, drift: float = 1.0, spread: float = 0.01, seed: int = 0, **machine: Any
) -> Path:
    """Ours takes ``ours`` ms; all contestants ``drift`` times as long as on the first day."""
    seed = 100 * seed + sum(map(ord, name))
    rows = [files.entry("ours", files.noisy(ours * 1e-3 * drift, spread, seed=seed))]
    rows += [
        files.entry(peer, files.noisy((2 + index) * 1e-3 * drift, spread, seed=seed + index + 1))
        for index, peer in enumerate(PEERS)
    ]
    return files.write(name, rows, **machine)


def verdicts(old: Path, new: Path) -> dict[str, str]:
    changes = compare(load_results(old), load_results(new)).changes
    return {change.new.contestant: change.verdict for change in changes}


def test_same_speed_is_within_noise(files: Any) -> None:
    result = verdicts(write(files, "old", 1.0), write(files, "new", 1.0))
    assert set(result) == {"ours", *PEERS}
    assert set(result.values()) == {"within noise"}


@pytest.mark.parametrize(("ours", "verdict"), [(1.1, "slower"), (0.9, "faster")])
def test_a_real_change_of_ours_is_outside(files: Any, ours: float, verdict: str) -> None:
    result = verdicts(write(files, "old", 1.0), write(files, "new", ours))
    assert result["ours"] == verdict
    assert {result[peer] for peer in PEERS} == {"within noise"}


def test_a_slower_machine_is_not_a_slower_package(files: Any) -> None:
    comparison = compare(load_results(write(files, "old", 1.0)), load_results(write(files, "new", 1.0, drift=1.3)))
    assert comparison.drift == pytest.approx(0.3, abs=0.02)
    assert {change.verdict for change in comparison.changes} == {"within noise"}


def test_on_a_slower_machine_a_change_still_shows(files: Any) -> None:
    comparison = compare(load_results(write(files, "old", 1.0)), load_results(write(files, "new", 1.15, drift=1.3)))
    ours = next(change for change in comparison.changes if change.new.contestant == "ours")
    assert ours.verdict == "slower"
    assert ours.change == pytest.approx(0.15, abs=0.03)


def share_of_alarms(files: Any, ours: float, spread: float) -> float:
    """How often 40 pairs of files find that ours, ``ours`` times as slow on the second day, changed."""
    results = [
        verdicts(
            write(files, "old", 1.0, spread=spread, seed=seed), write(files, "new", ours, spread=spread, seed=seed)
        )
        for seed in range(40)
    ]
    return sum(result["ours"] != "within noise" for result in results) / len(results)


def test_noise_hides_small_changes_and_raises_few_alarms(files: Any) -> None:
    assert share_of_alarms(files, 1.08, spread=0.01) == 1.0
    assert share_of_alarms(files, 1.08, spread=0.25) < 0.2
    assert share_of_alarms(files, 1.0, spread=0.25) < 0.1
    assert share_of_alarms(files, 1.0, spread=0.03) < 0.1


def test_without_noise_two_percent_decide(files: Any) -> None:
    def exact(name: str, ours: float) -> Path:
        return files.write(name, [files.entry("ours", [ours] * 9), files.entry("fixed", [2.0] * 9)])

    assert verdicts(exact("old", 1.0), exact("new", 1.019))["ours"] == "within noise"
    assert verdicts(exact("old", 1.0), exact("new", 1.021))["ours"] == "slower"


def test_drift_within_a_run_is_that_of_the_peers_in_turn(files: Any) -> None:
    """Half of the comparisons were made in a slow quarter of an hour."""

    def half(name: str, slow: float, ours: float = 1.0) -> Path:
        rows = []
        for case, drift in (("B32", 1.0), ("B180", slow)):
            for index, contestant in enumerate(("ours", "torch_branches", *PEERS)):
                own = ours if contestant in ("ours", "torch_branches") else 1.0
                samples = files.noisy((1 + index) * 1e-3 * drift * own, 0.005, seed=index + len(case) + int(100 * slow))
                rows.append(files.entry(contestant, samples, case_id=case))
        return files.write(name, rows)

    found = compare(load_results(half("old", 1.0)), load_results(half("new", 1.5))).changes
    assert {change.verdict for change in found if change.new.contestant in ("ours", "torch_branches")} == {
        "within noise"
    }
    found = compare(load_results(half("old", 1.0)), load_results(half("newer", 1.5, 1.2))).changes
    assert {change.verdict for change in found if change.new.contestant in ("ours", "torch_branches")} == {"slower"}


def test_drift_scatter_and_noise_by_hand(files: Any) -> None:
    """Logarithms of new over old of two comparisons; no row varies within its run."""
    ratios = {
        "B180": {"ours": 0.5, "authors": 0.0, "fixed": 0.1, "indexed": 0.3},
        "B32": {"authors": 0.2, "fixed": 0.4},
    }

    def times(name: str, share: float) -> Path:
        return files.write(
            name,
            [
                files.entry(contestant, [math.exp(share * ratio)] * 3, case_id=case)
                for case, rows in ratios.items()
                for contestant, ratio in rows.items()
            ],
        )

    found = compare(load_results(times("old", 0.0)), load_results(times("new", 1.0)))
    assert found.drift == pytest.approx(math.expm1(0.2))
    # Around the medians 0.1 and 0.3, of three and of two: 0.1, 0 and 0.2 times sqrt(3 / 2), twice 0.1 times sqrt(2).
    scatter = 1.4826 * 0.1 * math.sqrt(2)
    assert found.scatter == pytest.approx(scatter)
    ours, *others = found.changes
    assert ours.change == pytest.approx(math.expm1(0.5 - 0.1))
    assert ours.noise == pytest.approx(3 * math.hypot(scatter, 1.2533 * scatter / math.sqrt(3)))
    assert [change.change for change in others] == pytest.approx(
        [math.expm1(r - 0.2) for r in (0.0, 0.1, 0.3, 0.2, 0.4)]
    )
    assert [change.noise for change in others] == pytest.approx([3 * scatter] * 5)


def test_noise_between_runs_where_everybody_has_one_peer(files: Any) -> None:
    """As in the evaluation: pml, whose code is the same, takes 23 % more here and 14 % less there; so may ours."""
    ratios = {"N8": 1.23, "N10": 1.12, "N20": 1.0, "N40": 0.86, "N80": 0.96}

    def times(name: str, share: float) -> Path:
        rows = []
        for case, ratio in ratios.items():
            rows.append(files.entry("pml", [2 * ratio**share], case_id=case))
            rows.append(files.entry("ours", [1.2**share], case_id=case))
        return files.write(name, rows)

    found = compare(load_results(times("old", 0.0)), load_results(times("new", 1.0)))
    assert found.drift == pytest.approx(0.0)
    assert found.scatter == pytest.approx(1.4826 * math.log(1.12))
    assert {change.verdict for change in found.changes} == {"within noise"}


def test_half_and_twice_the_time_are_equally_far(files: Any) -> None:
    row = load_results(files.write("one", [files.entry("ours", [1.0] * 3)])).rows[0]
    for noise, expected in ((0.6, ("faster", "slower")), (0.7, ("within noise", "within noise"))):  # log 2 is 0.69
        assert tuple(Change(row, row, change, noise).verdict for change in (-0.5, 1.0)) == expected


def test_without_anybody_else_nothing_is_known_of_the_machine(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (files.write(name, [files.entry("ours", [time] * 5)]) for name, time in (("old", 1.0), ("new", 1.3)))
    assert main(["compare", str(old), str(new)]) == 0
    printed = capsys.readouterr().out
    assert "How the machine itself changed is not known" in printed
    assert printed.splitlines()[1].startswith("unknown        +30.0%")


def test_other_contestants_with_our_code_count_as_ours(files: Any) -> None:
    def sampling(name: str, ours: float) -> Path:
        rows = [("ours_m4", ours), *((peer, 1.0) for peer in PEERS)]
        return files.write(name, [files.entry(contestant, [time] * 9) for contestant, time in rows])

    assert main(["compare", str(sampling("old", 1.0)), str(sampling("new", 3.0))]) == 1


def test_rows_of_one_file_only_are_listed(files: Any) -> None:
    old = files.write("old", [files.entry("ours", [1.0] * 3), files.entry("gone", [1.0] * 3)])
    new = files.write("new", [files.entry("ours", [1.0] * 3), files.entry("added", [1.0] * 3)])
    text = comparison_text(compare(load_results(old), load_results(new)))
    assert "only in the old file: adapter B180 both malloc_raised gone" in text
    assert "only in the new file: adapter B180 both malloc_raised added" in text


def test_what_only_one_run_measured_at_all_takes_a_line(files: Any) -> None:
    prompts = [files.entry(name, [1.0] * 3, subject="prompts") for name in ("ours", "authors")]
    old = files.write("old", [files.entry("ours", [1.0] * 3), *prompts])
    new = files.write("new", [files.entry("ours", [1.0] * 3)])
    text = comparison_text(compare(load_results(old), load_results(new)))
    assert text.splitlines()[-1] == "only in the old file: prompts (2 rows)"


def test_files_without_common_rows_are_refused(files: Any) -> None:
    old = files.write("old", [files.entry("ours", [1.0] * 3)])
    new = files.write("new", [files.entry("ours", [1.0] * 3, setting="cuda")])
    with pytest.raises(ValueError, match="no row in common"):
        compare(load_results(old), load_results(new))


def test_other_machines_are_refused_unless_wanted(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write(files, "old", 1.0), write(files, "new", 1.0, cpu="Another CPU")
    assert main(["compare", str(old), str(new)]) == 2
    assert "Another CPU" in capsys.readouterr().err
    assert main(["compare", str(old), str(new), "--other-machine"]) == 0


def test_a_processor_whose_name_hides_what_it_is(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    older = write(files, "older", 1.0)  # of before the model was known
    old = write(files, "old", 1.0, cpu_model="family 25, model 17")
    new = write(files, "new", 1.0, cpu_model="family 26, model 2")
    assert main(["compare", str(older), str(new)]) == 0
    assert main(["compare", str(old), str(new)]) == 2
    assert "family 25, model 17" in capsys.readouterr().err


def test_the_same_processor_held_to_less(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (write(files, name, 1.0, puma_cpu_capability=name) for name in ("avx512_bf16", "avx2"))
    assert main(["compare", str(old), str(new)]) == 2
    assert "puma_cpu_capability" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "differing"),
    [
        ({"versions": {"torch": "2.14.1"}}, {"versions": {"torch": "2.15.0"}}, "'torch': ('2.14.1', '2.15.0')"),
        ({"cpu_capability": "AVX512"}, {"cpu_capability": "AVX2"}, "'cpu_capability': ('AVX512', 'AVX2')"),
    ],
)
def test_another_torch_is_no_drift_of_the_machine(
    files: Any, old: dict[str, Any], new: dict[str, Any], differing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others get faster with torch; ours, as fast as before, would be called slower."""
    before, after = write(files, "old", 1.0, **old), write(files, "new", 1 / 0.8, drift=0.8, **new)
    assert main(["compare", str(before), str(after)]) == 2
    assert differing in capsys.readouterr().err
    assert main(["compare", str(before), str(after), "--other-machine"]) == 1


def test_this_packages_own_version_may_differ(files: Any) -> None:
    old, new = (write(files, name, 1.0, versions={"puma_plugin": name}) for name in ("0.1.0", "0.2.0"))
    assert main(["compare", str(old), str(new)]) == 0


def test_exit_code_says_whether_ours_got_slower(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(files, "old", 1.0)
    assert main(["compare", str(old), str(write(files, "new", 1.2))]) == 1
    assert "slower" in capsys.readouterr().out
    assert main(["compare", str(old), str(write(files, "newer", 0.8)), "--all"]) == 0
    printed = capsys.readouterr().out
    assert "faster" in printed
    assert printed.count("within noise") == len(PEERS)


def test_a_machine_that_was_busy_in_one_run_is_said(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write(files, "old", 1.0), write(files, "new", 1.0, drift=1.6)
    for path, load in ((old, 0.2), (new, 3.75)):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "settings": [{"load_average_before": load}]}))
    assert main(["compare", str(old), str(new)]) == 0
    assert "(load when they began: 0.2; 3.8): what follows means little" in capsys.readouterr().out
    assert main(["tables", str(new)]) == 0
    assert "UTC, load of the minute before 3.8." in capsys.readouterr().out
    assert main(["compare", str(old), str(write(files, "newer", 1.0, drift=1.4))]) == 0
    assert "means little" not in capsys.readouterr().out


def test_ceilings_of_other_sizes_are_not_compared(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of a look whether everything runs, which are tiny."""

    def ceiling(name: str, seconds: float, work: float) -> Path:
        entry = files.entry("copy", [seconds] * 9, subject="ceilings", case={}, case_id="copy", work=work)
        return files.write(name, [entry])

    old = ceiling("old", 1e-3, 1e9)
    assert main(["compare", str(old), str(ceiling("new", 1e-3, 1e9))]) == 0
    assert "1 rows in both files" in capsys.readouterr().out
    assert main(["compare", str(old), str(ceiling("smoke", 1e-6, 1e6))]) == 2
    assert "have no row in common" in capsys.readouterr().err
