"""The report reads a run directory and says what it found, in one self-contained file."""

import json
import re

import numpy as np
import pytest

from flowjax.report import write_report


@pytest.fixture
def run_dir(tmp_path):
    from PIL import Image

    run = tmp_path / "digits"
    (run / "samples").mkdir(parents=True)
    (run / "config.json").write_text(
        json.dumps(
            {"config": {"note": "<script>"}, "data_fingerprint": "0", "class_counts": None, "versions": {}}
        )
    )
    lines = [
        {"step": s, "loss": 1 / s, "frechet_distance": 9.0 / s if s % 5 == 0 else None} for s in range(1, 21)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("final", "nearest"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(run / "samples" / f"{name}.png")
    evaluation = {
        "frechet_distance": 1.234,
        "num_samples": 500,
        "frechet_distance_of_real_rows": {"mean": 0.5, "std": 0.25},
        "features": "a classifier",
        "memorised_fraction": {"1/3": 0.0, "2/3": 0.25},
        "nearest_distance_median": 2.0,
        "num_evaluations": 77,
        "target_curve": {
            "t": [0.0, 0.2, 0.4],
            "relative_variance": [1.0, 0.1, 0.001],
            "effective_sample_size": [1797.0, 4.0, 1.0],
        },
        "timings": {"target_share_of_step": 0.031},
        "versions": {"jax": "0"},
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    return run


def test_the_page_opens_with_the_answer_and_needs_nothing_else(run_dir):
    page = write_report(run_dir).read_text()
    lead = re.search(r'<p class="lead">(.*?)</p>', page)
    assert lead is not None
    assert "1.23" in lead[1]
    assert "500 samples (as many real rows score 0.5 ± 0.25)" in lead[1]
    assert "a classifier" in lead[1]
    assert "0.0% of the samples are memorised" in lead[1]
    assert "From t = 0.40 on" in page
    assert "3.1% of a training step" in page
    assert page.count("prefers-color-scheme: dark") == 1 + 3  # the style sheet and three figures
    for reference in re.findall(r'(?:src|href|srcset)="([^"]*)"', page):
        assert reference.startswith("data:")
    assert "<script>" not in page


def test_a_run_without_evaluation_says_so(run_dir):
    (run_dir / "evaluation.json").unlink()
    assert "Not evaluated yet" in write_report(run_dir).read_text()


def test_not_a_run_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
