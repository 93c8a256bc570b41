"""README's tables say what the committed results say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"device": "cpu (AVX2)", "threads": 2, "torch": "2.13.0", "transformers": "5.23.0"}
FACTS = {"environment": ENVIRONMENT, "commit": "0123456789abcdef"}


@pytest.fixture(scope="module")
def report() -> Any:
    """benchmarks/report.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("benchmarks_report", ROOT / "benchmarks" / "report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        spec.loader.exec_module(module)
    yield module
    for name in ("report_parts", "report_quality", "report_overview", "report_summary"):
        sys.modules.pop(name)


def write(path: Path, facts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(FACTS | facts))


def cells(table: str, row: str) -> list[str]:
    """The cells of the table's only line whose first cell is `row`."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    (found,) = [line[1:] for line in lines if line[0] == row]
    return found


def variant(seconds: float, ratio: float, floor: float | None) -> dict[str, Any]:
    around = [0.9, 1.0, 1.1]
    return {"seconds": [seconds * x for x in around], "ratio": [ratio * x for x in around], "floor": floor}


def write_overhead(folder: Path) -> None:
    step = {"Pilot": variant(2.0, 1, 1), "Pilot, all": variant(2.6, 1.3, 1.2), "3 layers": variant(3, 1.5, 1.25)}
    prompt = {"Pilot": variant(0.05, 1, None), "3 layers": variant(0.1, 2, None)}
    facts = {
        "pilot": {"model_type": "llama", "layers": 30, "parameters": 134_515_008, "vocab_size": 49152},
        "settings": {"training": "LoRA", "decoding": "greedy"},
        "cases": {"training step": {"rounds": 5, "variants": step}, "prompt": {"rounds": 7, "variants": prompt}},
    }
    write(folder / "cpu" / "overhead.json", facts)


SETTINGS = {"kind": "written_answers", "points": {"best": {"epochs": 3}, "over-trained": {"epochs": 5}}}


def arm(exact: list[int], brier: list[float], tokens: list[int], strength: float = 0.0) -> dict[str, Any]:
    scores = {"exact": exact, "answers, greedy": exact, "brier": brier, "nll": brier, "tokens": tokens}
    return scores | {"strength": strength, "validation": [0.1, 0.2]} | ({"grid": {}} if strength else {})


def write_mawps(
    folder: Path,
    seed: int,
    point: str = "best",
    part: str = "copilots",
    seconds: Any = None,
    name: str = "mawps",
    **arms: dict[str, Any],
) -> None:
    seconds = seconds or {"training": {**dict.fromkeys(arms, 20.0), "pilot": 100.0}}
    facts = {"settings": SETTINGS, "seconds": seconds, "arms": arms}
    write(folder / "quality" / name / f"{point}_seed{seed}_{part}.json", facts)


def test_overhead_shows_the_pilots_times_and_the_others_as_multiples_with_their_floors(
    report: Any, tmp_path: Path
) -> None:
    write_overhead(tmp_path)
    text = report.overhead(tmp_path)
    assert cells(text, "Pilot") == ["2.00 s (1.80–2.20)", "50.0 ms (45.0–55.0)"]
    assert cells(text, "3 layers") == ["1.50 (1.35–1.65), floor 1.25", "2.00 (1.80–2.20)"]
    assert "30 layers, 135 M parameters, V = 49152" in text
    assert "Rounds: 5, 7." in text


def test_a_variant_that_a_case_lacks_leaves_its_cell_empty(report: Any, tmp_path: Path) -> None:
    write_overhead(tmp_path)
    assert cells(report.overhead(tmp_path), "Pilot, all") == ["1.30 (1.17–1.43), floor 1.20", ""]


def test_a_case_whose_rounds_scatter_is_named_and_not_shown(report: Any, tmp_path: Path) -> None:
    write_overhead(tmp_path)
    path = tmp_path / "cpu" / "overhead.json"
    facts = json.loads(path.read_text())
    facts["cases"]["training step"]["variants"]["Pilot"]["seconds"] = [1.0, 1.4, 1.6]
    path.write_text(json.dumps(facts))
    text = report.overhead(tmp_path)
    assert cells(text, "") == ["prompt"]
    assert "Rounds: 7. Too scattered to be shown: training step." in text


def test_kernels_shows_their_times_and_those_of_what_they_replace(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "KERNEL_CASES", {"rectify": ["N = 1"], "pool_layers": ["30 x 2048"]})
    times = {"kernel": variant(0.002, 1, None), "copy of the same bytes": variant(0.001, 0.5, None)}
    slow = {"eager": variant(0.3, 150, None)}
    cases = {"N = 1": {"bytes": 10**9, "variants": times | slow}, "N = 8": {"bytes": 10**10, "variants": times}}
    write(tmp_path / "cpu" / "rectify.json", {"cases": cases})
    write(tmp_path / "cpu" / "pool_layers.json", {"cases": {"30 x 2048": {"bytes": 2 * 10**9, "variants": times}}})
    text = report.kernels(tmp_path)
    assert cells(text, "`rectify`, N = 1") == ["2.00 ms (1.80–2.20)", "0.50 (0.45–0.55)", "150 (135–165)"]
    assert cells(text, "`pool_layers`, 30 x 2048")[1:] == ["0.50 (0.45–0.55)"]
    assert "N = 8" not in text
    assert "the largest copy moves 2000 GB/s." in text
    assert "`python -m pytest benchmarks/bench_*.py --benchmark-only --results benchmarks/results/cpu`" in text
    assert report.kernels(tmp_path / "empty") == "Not measured yet."


def test_public_kernels_have_columns_on_the_devices_that_have_them(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = {"rectify_sample": "FlashInfer", "mistake_cross_entropy": "Liger"}
    monkeypatch.setattr(report, "KERNEL_CASES", {name: ["greedy", "others"] for name in operations})
    times = {"kernel": variant(0.002, 1, None), "copy of the same bytes": variant(0.001, 0.5, None)}
    for name, rival in operations.items():
        case = {"bytes": 10**9, "variants": times}
        compared = {"bytes": 10**9, "variants": times | {rival: variant(0.008, 4, None)}}
        write(tmp_path / "cpu" / f"{name}.json", {"cases": {"greedy": case, "others": case}})
        write(tmp_path / "gpu" / f"{name}.json", {"cases": {"greedy": case, "others": compared}})
    text = report.kernels(tmp_path)
    of_cpu, of_gpu = text.split("results/cpu`")
    assert "Liger" not in of_cpu
    assert "FlashInfer" not in of_cpu
    headers = [line.split(" | ")[-1].strip(" |") for line in of_gpu.splitlines() if line.startswith("|  |")]
    assert headers == ["FlashInfer", "Liger"]
    for name in operations:
        assert cells(of_gpu, f"`{name}`, greedy")[2:] == [""]
        assert cells(of_gpu, f"`{name}`, others")[2:] == ["4.00 (3.60–4.40)"]


def write_rectify(folder: Path) -> None:
    def case(eager: float, copy: float) -> dict[str, Any]:
        variants = {"kernel": variant(2.0, 1, None), "copy of the same bytes": variant(2 * copy, copy, None)}
        return {"variants": variants | ({"eager": variant(2 * eager, eager, None)} if eager else {})}

    cases = {"a, 32 candidates": case(1.5, 0.25), "b, 32 candidates": case(3, 0.5), "c, dense": case(0, 0.75)}
    write(folder / "cpu" / "rectify.json", {"cases": cases})
    loss = {"kernel": variant(2.0, 1, None), "eager": variant(8, 4, None)}
    loss |= {name: variant(1.0, 0.5, None) for name in ("kernel, overwriting the logits", "copy of the same bytes")}
    write(folder / "cpu" / "mistake_cross_entropy.json", {"cases": {"any": {"variants": loss}}})
    for name in ("rectify_sample", "candidate_loss", "pool_layers"):
        write(folder / "cpu" / f"{name}.json", {"cases": {}})


def test_the_ranges_hold_the_least_and_the_largest_multiple_of_all_cases(report: Any, tmp_path: Path) -> None:
    write_rectify(tmp_path)
    text = report.SECTIONS["ranges"](tmp_path)
    assert cells(text, "`rectify`, 32 candidates (2 cases)") == ["1.50–3.00", "", "", "", "0.25–0.50"]
    assert cells(text, "`rectify`, dense (1 case)") == ["", "", "", "", "0.75"]
    assert cells(text, "`mistake_cross_entropy` (1 case)") == ["4.00", "", "", "", "0.50"]
    # Compared with the variant itself; the copy moves other bytes.
    assert cells(text, "`mistake_cross_entropy`, overwriting the logits (1 case)") == ["8.00", "", "", ""]
    assert report.SECTIONS["ranges"](tmp_path / "empty") == "Not measured yet."


def test_every_device_has_its_table(report: Any, tmp_path: Path) -> None:
    write_overhead(tmp_path)
    other = tmp_path / "gpu" / "overhead.json"
    other.parent.mkdir()
    other.write_text((tmp_path / "cpu" / "overhead.json").read_text().replace("cpu (AVX2)", "a GPU"))
    text = report.overhead(tmp_path)
    assert text.index("Measured on cpu (AVX2), 2 threads") < text.index("Measured on a GPU")
    assert "--results benchmarks/results/gpu`" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(123.4, "123 s (123–123)"), (0.0312, "31.2 ms (31.2–31.2)"), (2.5e-6, "2.50 µs (2.50–2.50)")],
)
def test_durations_are_given_in_the_unit_that_suits_them(report: Any, seconds: float, text: str) -> None:
    assert report.duration(seconds, seconds, seconds) == text


PAIR = "Pilot + Copilot<br>*does it help?*"


def test_brier_score_is_the_mean_over_tokens_not_over_examples(report: Any, tmp_path: Path) -> None:
    write_mawps(tmp_path, 0, pilot=arm([1, 0], brier=[0.1, 0.5], tokens=[3, 1]))
    assert cells(report.SECTIONS["mawps"](tmp_path), "Pilot")[2] == "0.2000 (0.2000–0.2000)"


def test_a_quality_cell_holds_the_mean_over_the_seeds_their_range_and_the_difference(
    report: Any, tmp_path: Path
) -> None:
    scores = {"brier": [0.2] * 4, "tokens": [5] * 4}
    write_mawps(tmp_path, 0, pilot=arm([0, 0, 0, 1], **scores), pair=arm([0, 1, 1, 1], **scores, strength=0.5))
    write_mawps(tmp_path, 1, pilot=arm([0, 0, 1, 1], **scores), pair=arm([0, 1, 1, 1], **scores, strength=0.75))
    text = report.SECTIONS["mawps"](tmp_path)
    assert cells(text, "Pilot")[0] == "37.5 (25.0–50.0)"
    exact, _, brier, _, strengths, time = cells(text, PAIR)
    assert exact.startswith("75.0 (75.0–75.0)<br>")
    assert "+37.5 [" in exact
    assert brier.endswith("<br>+0.0000 [+0.0000, +0.0000]")
    assert (strengths, time) == ("0.50, 0.75", "1.20")


def test_seeds_on_the_same_examples_do_not_count_as_more_examples(report: Any, tmp_path: Path) -> None:
    scores = {"brier": [0.2] * 20, "tokens": [5] * 20}
    for seed in range(4):
        pilot, pair = arm([0] * 20, **scores), arm([0, 1] * 10, **scores)
        write_mawps(tmp_path, seed, pilot=pilot, pair=pair)
        write_mawps(tmp_path / "one", 0, pilot=pilot, pair=pair)
    four, one = (cells(report.SECTIONS["mawps"](folder), PAIR)[0] for folder in (tmp_path, tmp_path / "one"))
    assert four == one


@pytest.mark.parametrize("sign", [1, -1])
def test_an_interval_that_excludes_zero_is_bold_whichever_side_it_is_on(report: Any, tmp_path: Path, sign: int) -> None:
    noise = np.random.default_rng(0).normal(scale=0.01, size=50)
    tokens, exact = [4] * 50, [0, 1] * 25
    better = arm(exact, brier=(0.3 + sign * 0.05 + noise).tolist(), tokens=tokens)
    unclear = arm(exact, brier=(0.3 + noise - noise.mean()).tolist(), tokens=tokens)
    write_mawps(tmp_path, 0, pilot=arm(exact, brier=[0.3] * 50, tokens=tokens), pair=better, literal=unclear)
    text = report.SECTIONS["mawps"](tmp_path)
    assert cells(text, PAIR)[2].split("<br>")[1].startswith("**+" if sign > 0 else "**-")
    assert "**" not in cells(text, "the paper's literal form<br>*does its text to the letter help?*")[2]


def test_training_time_is_a_multiple_of_the_pilots_with_what_each_arm_needed(report: Any, tmp_path: Path) -> None:
    one = arm([0, 1], brier=[0.1, 0.2], tokens=[2, 2])
    seconds = {"training": {"pilot": 100.0, "pair": 10.0}, "cross_fitted": {"pilot": 130.0, "cross_fitted": 20.0}}
    write_mawps(tmp_path, 0, seconds=seconds, pilot=one, pair=one, cross_fitted=one)
    rival = {"seconds": {"training": {"pilot": 180.0}}, "arms": {"extra_compute": one}, "extra": 0.09}
    write(tmp_path / "quality" / "mawps" / "best_seed0_extra_compute.json", rival)
    times = {name: found[0]["time"] for name, found in sys.modules["report_quality"].arms_of(read(tmp_path)).items()}
    assert times == pytest.approx({"pilot": 1.0, "pair": 1.1, "cross_fitted": 2.5, "extra_compute": 1.09})


def test_the_time_of_new_layers_which_are_trained_apart_is_not_shown(report: Any, tmp_path: Path) -> None:
    one = arm([0, 1], brier=[0.1, 0.2], tokens=[2, 2])
    write_mawps(tmp_path, 0, seconds={"training": {"pilot": 100.0}}, pilot=one)
    rival = {"seconds": {"training": {"pilot": 150.0}}, "arms": {"extra_parameters": one}}
    write(tmp_path / "quality" / "mawps" / "best_seed0_extra_parameters.json", rival)
    assert cells(report.SECTIONS["mawps"](tmp_path), "Pilot with new layers<br>*and the parameters?*")[-1] == ""
    assert cells(report.overview(tmp_path), "**MAWPS, 3 epochs** (1 seed)")[-1] == "not measured"


def read(folder: Path) -> list[dict[str, Any]]:
    """The results as `quality` hands them to `arms_of`."""
    paths = sorted((folder / "quality" / "mawps").glob("*.json"))
    return [json.loads(path.read_text()) | {"seed": 0, "part": path.stem.split("_seed0_")[1]} for path in paths]


def test_an_arm_of_fewer_seeds_says_so_and_is_compared_with_the_pilots_of_those(report: Any, tmp_path: Path) -> None:
    scores = {"brier": [0.2] * 4, "tokens": [5] * 4}
    for seed, exact in enumerate(([0, 0, 0, 0], [1, 1, 1, 0])):
        write_mawps(tmp_path, seed, pilot=arm(exact, **scores))
    seconds = {"training": {"pilot": 115.0}}
    write_mawps(tmp_path, 1, part="extra_compute", seconds=seconds, extra_compute=arm([1] * 4, **scores))
    row = "Pilot, trained longer (1 seed)<br>*was the time better spent on it?*"
    assert "+25.0 [" in cells(report.SECTIONS["mawps"](tmp_path), row)[0]


def test_a_metric_that_a_rival_lacks_is_not_compared(report: Any, tmp_path: Path) -> None:
    one = arm([0, 1], brier=[0.1, 0.2], tokens=[2, 2])
    silent = {name: value for name, value in one.items() if name != "answers, greedy"}
    write_mawps(tmp_path, 0, pilot=one, pair=one)
    rival = {"seconds": {"training": {"pilot": 120.0}}, "arms": {"extra_compute": silent}, "extra": 0.2}
    write(tmp_path / "quality" / "mawps" / "best_seed0_extra_compute.json", rival)
    exact, answers, *_ = cells(report.SECTIONS["mawps"](tmp_path), "Pilot + Copilot − Pilot, trained longer")
    assert exact == "+0.0 [+0.0, +0.0]"
    assert answers == ""


def test_a_copilot_is_compared_with_the_pilot_that_was_trained_as_long(report: Any, tmp_path: Path) -> None:
    scores = {"brier": [0.2] * 4, "tokens": [5] * 4}
    for seed in range(2):
        write_mawps(tmp_path, seed, pilot=arm([0] * 4, **scores), pair=arm([1, 1, 1, seed], **scores))
    for part, extra, exact in (("extra_compute", 0.2, [1, 0, 0, 0]), ("extra_compute_latest", 0.4, [1, 1, 1, 1])):
        facts = {"seconds": {"training": {"pilot": 120.0}}, "arms": {part: arm(exact, **scores)}, "extra": extra}
        write(tmp_path / "quality" / "mawps" / f"best_seed1_{part}.json", facts)
    rows = [line for line in report.SECTIONS["mawps"](tmp_path).splitlines() if "−" in line]
    assert len(rows) == 1
    row = cells(report.SECTIONS["mawps"](tmp_path), "Pilot + Copilot (1 seed) − Pilot, trained longer")
    assert row[0] == "**+75.0 [+25.0, +100.0]**"
    assert row[-1] == "1.20 − 1.20"


def test_only_the_times_of_shared_seeds_say_who_was_trained_as_long(report: Any, tmp_path: Path) -> None:
    scores = {"brier": [0.2] * 4, "tokens": [5] * 4}
    for seed, seconds in enumerate((20.0, 60.0)):
        spent = {"training": {"pilot": 100.0, "pair": seconds}}
        write_mawps(tmp_path, seed, seconds=spent, pilot=arm([0] * 4, **scores), pair=arm([1] * 4, **scores))
    rival = {"seconds": {"training": {"pilot": 120.0}}, "arms": {"extra_compute": arm([0] * 4, **scores)}}
    for seed, extra in ((0, 0.2), (2, 0.9)):  # no Copilot has the last one
        path = tmp_path / "quality" / "mawps" / f"best_seed{seed}_extra_compute.json"
        write(path, rival | {"extra": extra})
    row = cells(report.SECTIONS["mawps"](tmp_path), "Pilot + Copilot (1 seed) − Pilot, trained longer")
    assert row[-1] == "1.20 − 1.20"


def test_right_answers_of_beams_have_a_column_where_they_were_written(report: Any, tmp_path: Path) -> None:
    one = arm([0, 1], brier=[0.1, 0.2], tokens=[2, 2])
    write_mawps(tmp_path / "greedy", 0, pilot=one, pair=one)
    write_mawps(tmp_path / "beams", 0, pilot=one | {"answers, 4 beams": [1, 1]}, pair=one)
    column = "right answers of 4 beams, % ↑"
    greedy, beams = (report.SECTIONS["mawps"](tmp_path / folder) for folder in ("greedy", "beams"))
    assert column not in greedy
    assert cells(beams, "")[2] == column
    assert cells(beams, "Pilot")[2] == "100.0 (100.0–100.0)"
    panels = [
        [axes.get_title() for axes in report.draw_quality(tmp_path / of, "mawps").axes] for of in ("greedy", "beams")
    ]
    assert [column in titles for titles in panels] == [False, True]


def test_a_second_table_compares_what_has_a_temperature_of_its_own(report: Any, tmp_path: Path) -> None:
    scores = {"brier": [0.2] * 4, "tokens": [5] * 4}

    def with_temperature(temperature: float, strength: float, brier: float) -> dict[str, Any]:
        tempered = arm([0, 1, 0, 1], [brier] * 4, [5] * 4, strength) | {"temperature": temperature}
        del tempered["answers, greedy"]
        return arm([0, 1, 0, 1], **scores, strength=strength) | {"tempered": tempered}

    pilot, pair = with_temperature(1.3, 0.0, 0.15), with_temperature(1.2, 0.25, 0.125)
    write_mawps(tmp_path, 0, pilot=pilot, pair=pair)
    write_mawps(tmp_path, 1, pilot=pilot, pair=arm([0, 1, 0, 1], **scores, strength=0.5))
    rival = {"seconds": {"training": {"pilot": 120.0}}, "extra": 0.2}
    facts = rival | {"arms": {"extra_compute": with_temperature(1.5, 0.0, 0.1)}}
    write(tmp_path / "quality" / "mawps" / "best_seed0_extra_compute.json", facts)
    first, second = report.SECTIONS["mawps"](tmp_path).split("| each with its own T | ")
    assert cells(first, "Pilot, softmax(z / T)<br>*is it more than calibration?*")[2].startswith("0.1500")
    assert cells(first, PAIR)[2:] == ["0.2000 (0.2000–0.2000)<br>+0.0000 [+0.0000, +0.0000]"] * 2 + [
        "0.25, 0.50",
        "1.20",
    ]
    assert second.startswith("exact match, % ↑ | Brier score ↓ | NLL ↓ | λ*, by seed | training time |")
    assert cells(second, "Pilot")[-2] == "T = 1.3, T = 1.3"
    name, question = PAIR.split("<br>")
    row = cells(second, f"{name} (1 seed)<br>{question}")
    assert row[1] == "0.1250 (0.1250–0.1250)<br>**-0.0250 [-0.0250, -0.0250]**"
    assert row[-2] == "0.25; T = 1.2"
    assert cells(second, "Pilot + Copilot (1 seed) − Pilot, trained longer")[1] == "**+0.0250 [+0.0250, +0.0250]**"


def test_an_arm_that_wrote_no_answers_has_an_empty_cell(report: Any, tmp_path: Path) -> None:
    one = arm([0, 1], brier=[0.1, 0.2], tokens=[2, 2])
    silent = {name: value for name, value in one.items() if name != "answers, greedy"}
    write_mawps(tmp_path, 0, pilot=one, pair=silent)
    assert cells(report.SECTIONS["mawps"](tmp_path), PAIR)[1] == ""


def test_quality_has_a_table_a_point_in_the_order_of_the_settings_and_names_seeds_and_commits(
    report: Any, tmp_path: Path
) -> None:
    one = arm([0, 1], brier=[0.1, 0.2], tokens=[2, 2])
    write_mawps(tmp_path, 3, point="over-trained", pilot=one)
    write_mawps(tmp_path, 2, pilot=one)
    path = tmp_path / "quality" / "mawps" / "best_seed2_copilots.json"
    path.write_text(path.read_text().replace(FACTS["commit"], "fedcba9876543210"))
    text = report.SECTIONS["mawps"](tmp_path)
    assert text.index("**Best: 3 epochs** (1 seed; NLL of the Pilot on validation data 0.2000)") < text.index(
        "**Over-trained: 5 epochs**"
    )
    assert "mawps.yaml --data DATA --pilot PILOT --out runs/quality --seeds 2 3`" in text
    assert "on cpu (AVX2), 2 threads, torch 2.13.0, transformers 5.23.0, commit fedcba9876, 0123456789." in text


def test_the_figure_shows_differences_to_the_pilot_and_whether_they_are_better(report: Any, tmp_path: Path) -> None:
    tokens, exact = [4] * 50, [0, 1] * 25
    worse = arm(exact, brier=[0.35] * 50, tokens=tokens) | {"exact": [1] * 50}
    write_mawps(tmp_path, 0, pilot=arm(exact, brier=[0.3] * 50, tokens=tokens), pair=worse)
    figure = report.draw_quality(tmp_path, "mawps")
    panels = {axes.get_title(): axes for axes in figure.axes}
    drawn = {title: next(line for line in axes.lines if line.get_marker() == "o") for title, axes in panels.items()}
    assert drawn["exact match, % ↑"].get_xdata() == pytest.approx([50.0])
    assert drawn["Brier score ↓"].get_xdata() == pytest.approx([0.05])
    assert drawn["exact match, % ↑"].get_color() == "#1f5fa8"
    assert drawn["Brier score ↓"].get_color() == "#c2571a"


def test_lastfm_weighs_users_by_their_items(report: Any, tmp_path: Path) -> None:
    scores = {"hit@10": [1.0, 0.0], "ndcg@10": [0.5, 0.0], "nll": [1.0, 2.0], "tokens": [3, 1]}
    facts = {"settings": SETTINGS | {"kind": "next_item"}, "seconds": {"training": {"pilot": 1.0}}}
    arms = {"pilot": scores | {"strength": 0.0, "validation": [0, 0]}}
    write(tmp_path / "quality" / "lastfm" / "best_seed0_copilots.json", facts | {"arms": arms})
    found = [cell.split()[0] for cell in cells(report.SECTIONS["lastfm"](tmp_path), "Pilot")[:3]]
    assert found == ["0.7500", "0.3750", "1.2500"]


def test_the_theorem_is_shown_with_where_the_error_falls(report: Any, tmp_path: Path) -> None:
    names = ("e_pilot", "s_pilot", "e_copilot", "s_copilot", "lambda_zero")
    of_split = dict(zip(names, (0.9, 0.2, 0.8, 0.1, 1.25), strict=True)) | {"holds": True}
    measured = {"strengths": [0.0, 0.5, 1.0, 1.5], "brier": [0.8, 0.7, 0.75, 0.85], "seeds": [0, 1]}
    quantities = {"validation": of_split, "held_out": of_split | {"holds": False}}
    write(tmp_path / "quality" / "theorem_lastfm.json", measured | {"quantities": quantities})
    text = report.SECTIONS["theorem"](tmp_path)
    assert cells(text, "validation") == ["0.9000", "0.2000", "0.8000", "0.1000", "1.2500", "yes"]
    assert cells(text, "held out")[-1] == "no"
    assert "0.8000 at λ = 0, falls for every λ measured from 0.5 to 1 and is least, 0.7000, at 0.5" in text
    assert "2 seeds." in text
    assert "lastfm.yaml --data LastFM.txt --out runs/quality --seeds 0 1`" in text


def test_the_overview_holds_the_pilots_scores_and_what_others_add_in_what_time(report: Any, tmp_path: Path) -> None:
    scores = {"brier": [0.2] * 4, "tokens": [5] * 4}
    for seed in range(2):
        write_mawps(tmp_path, seed, pilot=arm([0] * 4, **scores), pair=arm([1] * 4, [0.1] * 4, [5] * 4, strength=0.5))
    rival = {"seconds": {"training": {"pilot": 150.0}}, "arms": {"extra_compute_latest": arm([0] * 4, **scores)}}
    write(tmp_path / "quality" / "mawps" / "best_seed1_extra_compute_latest.json", rival | {"extra": 0.5})
    text = report.overview(tmp_path)
    assert cells(text, "") == ["Pilot", *sys.modules["report_overview"].COLUMNS]
    assert cells(text, "**MAWPS, 3 epochs** (2 seeds)") == ["", "", "1.20 ×", "", "", "", "1.50 ×, 1 seed", ""]
    assert cells(text, "Brier score ↓") == [
        "0.2000",
        "",
        "**-0.1000 [-0.1000, -0.1000]**",
        "",
        "",
        "",
        "+0.0000 [+0.0000, +0.0000]",
        "",
    ]
    assert report.overview(tmp_path / "empty") == "Not measured yet."


def test_the_overview_shows_a_second_run_beside_the_first_with_its_copilot_by_cross_entropy(
    report: Any, tmp_path: Path
) -> None:
    scores = {"brier": [0.2] * 4, "tokens": [5] * 4}
    pilot, other = arm([0] * 4, **scores), arm([1] * 4, [0.1] * 4, [5] * 4)
    write_mawps(tmp_path, 0, pilot=pilot)
    write_mawps(tmp_path, 0, name="combined_mawps", pilot=pilot, latest_ce_slow=other)
    rival = {"seconds": {"training": {"pilot": 120.0}}, "arms": {"extra_compute_latest_ce_slow": other}, "extra": 0.2}
    write(tmp_path / "quality" / "combined_mawps" / "best_seed0_extra_compute_latest_ce_slow.json", rival)
    text = report.overview(tmp_path)
    columns = cells(text, "")
    times = dict(zip(columns, cells(text, "**MAWPS, second run, 3 epochs** (1 seed)"), strict=True))
    assert {name: time for name, time in times.items() if time} == {
        "+ Copilot, cross-entropy": "1.20 ×",
        "trained still longer": "1.20 ×",
    }
    assert text.index("**MAWPS, 3 epochs**") < text.index("**MAWPS, second run, 3 epochs**")
    assert "TASK.yaml --data DATA --out runs/quality`" in text


def write_summary(folder: Path) -> None:
    """T5: the first run has the default and a training of its time, the second others, the best without a rival."""

    def scored(brier: float, of_validation: float) -> dict[str, Any]:
        return arm([1] * 4, [brier] * 4, [5] * 4) | {"validation": [of_validation, 1.0]}

    pilot = scored(0.2, 0.2)
    first = {"pilot": pilot, "pair": scored(0.1, 0.1)}
    better, best_without_rival, worse = scored(0.05, 0.06), scored(0.04, 0.05), scored(0.03, 0.15)
    second = {"pilot": pilot, "latest_ce_slow": better, "recent": worse, "latest": best_without_rival}
    seconds = {"training": {"pilot": 100.0, "pair": 20.0, "recent": 50.0, "latest": 90.0, "latest_ce_slow": 50.0}}
    settings = {"kind": "equations", "points": {"short": {"epochs": 10}}}
    for name, arms in (("equations", first), ("combined_equations", second)):
        facts = {"settings": settings, "seconds": seconds, "arms": arms}
        write(folder / "quality" / name / "short_seed0_copilots.json", facts)
    for name, part, extra in (
        ("equations", "extra_compute", 0.2),
        ("combined_equations", "extra_compute_recent", 0.51),
    ):
        rival = {"seconds": {"training": {"pilot": 150.0}}, "arms": {part: scored(0.3, 0.3)}}
        write(folder / "quality" / name / f"short_seed0_{part}.json", rival | {"extra": extra, "settings": settings})


def test_the_summary_sets_the_best_copilot_on_validation_data_beside_the_rival_of_its_time(
    report: Any, tmp_path: Path
) -> None:
    write_summary(tmp_path)
    text = report.SECTIONS["summary"](tmp_path)
    found = cells(text, "**MAWPS, small T5, 10 epochs**<br>Brier score ↓, 1 seed")
    assert found == [
        "0.2000",
        "",
        "**-0.1000 [-0.1000, -0.1000]**<br>1.20 ×",
        "**+0.1000 [+0.1000, +0.1000]**<br>1.20 ×",
        '**-0.1500 [-0.1500, -0.1500]**<br>1.50 ×<br>"Latest", cross-entropy, a third of the rate',
        "**+0.1000 [+0.1000, +0.1000]**<br>1.51 ×",
        "",
    ]
    assert report.SECTIONS["summary"](tmp_path / "empty") == "Not measured yet."


def test_the_verdicts_compare_copilots_with_the_same_pilot_trained_as_long(report: Any, tmp_path: Path) -> None:
    write_summary(tmp_path)
    text = report.SECTIONS["verdicts"](tmp_path)
    score, answers, best_score, _ = cells(
        text, "**MAWPS, small T5, 10 epochs**<br>Brier score ↓, exact match, % ↑, 1 seed"
    )
    assert (score, best_score) == ("ahead **-0.2000 [-0.2000, -0.2000]**", "ahead **-0.2500 [-0.2500, -0.2500]**")
    assert answers.startswith("level +0.0")
    # The rival of another run is one as long as the Pilot came out the same there.
    equations, combined = (tmp_path / "quality" / name for name in ("equations", "combined_equations"))
    (combined / "short_seed0_extra_compute_recent.json").rename(equations / "short_seed0_extra_compute_recent.json")
    row = "**MAWPS, small T5, 10 epochs**<br>Brier score ↓, exact match, % ↑, 1 seed"
    assert cells(report.SECTIONS["verdicts"](tmp_path), row)[2] == best_score
    other = json.loads((equations / "short_seed0_copilots.json").read_text())
    other["arms"]["pilot"]["nll"][0] += 1e-5
    write(equations / "short_seed0_copilots.json", other)
    assert cells(report.SECTIONS["verdicts"](tmp_path), row)[2:] == ["", ""]
    assert report.SECTIONS["verdicts"](tmp_path / "empty") == "Not measured yet."


@pytest.mark.parametrize("metric", ["EXACT", "BRIER"])
def test_a_verdict_follows_the_direction_in_which_a_metric_is_better(report: Any, metric: str) -> None:
    summary = sys.modules["report_summary"]
    scores = [{"seed": 0, "exact": [x] * 4, "brier": [x] * 4, "nll": [x] * 4, "tokens": [5] * 4} for x in (0.25, 0.75)]
    low, high = (summary.Shown("", [score], scores) for score in scores)
    found = [summary.verdict(getattr(summary, metric), *of, seeds=2) for of in ((high, low), (low, high))]
    assert [text.split(" ")[0] for text in found] == (["ahead", "behind"] if metric == "EXACT" else ["behind", "ahead"])
    assert all(text.endswith(" (1 seed)") for text in found)


@pytest.mark.parametrize(("given", "shown"), [(0.47, "1.47 ×"), (0.40, "1.51 ×")])
def test_a_rival_named_for_an_arm_is_shown_only_if_it_was_trained_about_as_long(
    report: Any, tmp_path: Path, given: float, shown: str
) -> None:
    write_summary(tmp_path)
    first = tmp_path / "quality" / "combined_equations" / "short_seed0_extra_compute_recent.json"
    facts = json.loads(first.read_text()) | {"extra": given}
    write(first.with_name("short_seed0_extra_compute_latest_ce_slow.json"), facts)
    found = cells(report.SECTIONS["summary"](tmp_path), "**MAWPS, small T5, 10 epochs**<br>Brier score ↓, 1 seed")
    assert found[5].endswith(f"<br>{shown}")


def test_a_row_of_nll_sets_the_best_copilot_by_nll_on_validation_data_beside_its_rival(
    report: Any, tmp_path: Path
) -> None:
    def scored(nll: float, validation: list[float]) -> dict[str, Any]:
        return {"nll": [nll] * 4, "tokens": [5] * 4, "strength": 0.0, "validation": validation}

    by_brier, by_nll = scored(2.5, [0.1, 2.5]), scored(2.25, [0.3, 2.25])
    arms = {"pilot": scored(3.0, [0.2, 3.0]), "latest": by_brier, "latest_slow": by_nll}
    seconds = {"training": {"pilot": 100.0, "latest": 50.0, "latest_slow": 50.0}}
    facts = {"settings": SETTINGS | {"kind": "next_item"}, "seconds": seconds, "arms": arms}
    write(tmp_path / "quality" / "lastfm" / "best_seed0_copilots.json", facts)
    rival = {"seconds": seconds, "arms": {"extra_compute_latest": scored(2.75, [0.2, 2.75])}, "extra": 0.5}
    write(tmp_path / "quality" / "lastfm" / "best_seed0_extra_compute_latest.json", rival)
    found = cells(report.SECTIONS["summary"](tmp_path), "**LastFM, 3 epochs**<br>NLL ↓, 1 seed")
    assert [cell.split(" ")[0] for cell in found] == ["3.0000", "", "", "", "**-0.7500", "**-0.2500", ""]


def test_the_pictured_summary_shows_differences_in_per_cent(report: Any, tmp_path: Path) -> None:
    write_summary(tmp_path)
    (axes,) = report.draw_summary(tmp_path).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MAWPS, small T5, 10 epochs\n(Brier)"]
    marks = [line.get_xdata()[0] for line in axes.lines[1:] if len(line.get_xdata()) == 1]
    assert marks == pytest.approx([-50, 50, -75, 50])


def test_a_pilots_precision_is_named_where_it_was_recorded(report: Any, tmp_path: Path) -> None:
    one = arm([0, 1], brier=[0.1, 0.2], tokens=[2, 2])
    for seed in range(2):
        write_mawps(tmp_path, seed, pilot=one)
    path = tmp_path / "quality" / "mawps" / "best_seed1_copilots.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pilot_dtype": "bfloat16"}))
    place = "cpu (AVX2), 2 threads, torch 2.13.0, transformers 5.23.0"
    commit = "commit 0123456789"
    assert f"on {place}, {commit}; {place}, Pilot in bfloat16, {commit}." in report.SECTIONS["mawps"](tmp_path)


def test_a_point_that_a_file_got_later_is_shown(report: Any, tmp_path: Path) -> None:
    scores = {"brier": [0.1, 0.2], "tokens": [2, 2]}
    one = arm([0, 1], **scores)
    write_mawps(tmp_path, 0, pilot=one, pair=one)
    first = json.loads((tmp_path / "quality" / "mawps" / "best_seed0_copilots.json").read_text())
    points = {"early": {"epochs": 1}} | SETTINGS["points"]
    later = first | {"settings": SETTINGS | {"points": points}}
    write(tmp_path / "quality" / "mawps" / "early_seed0_copilots.json", later)
    text = report.SECTIONS["mawps"](tmp_path)
    assert 0 <= text.index("**Early: 1 epoch**") < text.index("**Best: 3 epochs**")


def test_a_figure_of_fewer_seeds_than_its_arm_says_so(report: Any, tmp_path: Path) -> None:
    scores = {"brier": [0.1, 0.2], "tokens": [2, 2]}
    write_mawps(tmp_path, 0, pilot=arm([0, 1], **scores), pair=arm([1, 1], **scores))
    silent = {name: value for name, value in arm([1, 1], **scores).items() if name != "answers, greedy"}
    write_mawps(tmp_path, 1, pilot=arm([0, 1], **scores), pair=silent)
    exact, answers, *_ = cells(report.SECTIONS["mawps"](tmp_path), "Pilot + Copilot<br>*does it help?*")
    assert "seed" not in exact
    assert answers.endswith(" (1 seed)")


def test_only_what_stands_between_markers_changes(report: Any, tmp_path: Path) -> None:
    text = "before\n<!-- mawps:begin -->\nold\n<!-- mawps:end -->\nafter\n"
    new = report.rewrite(text, tmp_path)
    assert new == "before\n<!-- mawps:begin -->\nNot measured yet.\n<!-- mawps:end -->\nafter\n"
    assert report.rewrite(new, tmp_path) == new


@pytest.mark.parametrize("text", ["<!-- mawps:begin -->", "<!-- mawps:end --> <!-- mawps:begin -->"])
def test_a_marker_without_its_partner_is_refused(report: Any, tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="mawps:begin"):
        report.rewrite(text, tmp_path)


def test_check_fails_until_a_page_is_rewritten(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- overhead:begin -->\n<!-- overhead:end -->\n")
    write_overhead(tmp_path / "results")
    monkeypatch.setattr(report, "PAGES", [readme])
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    assert report.main(["--check"]) == 1
    assert "python benchmarks/report.py" in capsys.readouterr().err
    assert "3 layers" not in readme.read_text()
    assert report.main([]) == 0
    assert "3 layers" in readme.read_text()
    assert report.main(["--check"]) == 0


PAGES = ["README.md", "benchmarks/README.md", "benchmarks/quality/FINDINGS.md", "benchmarks/quality/TABLES.md"]
SECTIONS = {page: re.findall(r"<!-- (\w+):begin -->", (ROOT / page).read_text(encoding="utf-8")) for page in PAGES}


def test_every_section_stands_on_its_page(report: Any) -> None:
    assert [page.relative_to(ROOT).as_posix() for page in report.PAGES] == PAGES
    readme, benchmarks, findings, tables = SECTIONS.values()
    assert sorted(readme) == ["kernels", "overhead", "summary"]
    assert (benchmarks, sorted(findings)) == (["ranges"], ["theorem", "verdicts"])
    assert sorted(tables) == sorted(report.SECTIONS.keys() - set(readme + benchmarks + findings))


# A test each: several processes may share them, as the bootstraps take a minute in all.
@pytest.mark.parametrize("name", [name for names in SECTIONS.values() for name in names])
def test_a_section_of_the_committed_pages_is_up_to_date(
    report: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(report, "SECTIONS", {name: report.SECTIONS[name]})
    assert report.main(["--check"]) == 0
