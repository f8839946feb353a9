"""The GPU's benchmark runs to its table, on whatever device there is, before anybody has minutes of one to lose."""

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_a_small_run(monkeypatch):
    monkeypatch.setattr(gpu, "PASSES", ((200, 40, 9),))
    monkeypatch.setattr(gpu, "LARGEST", ())
    monkeypatch.setattr(gpu, "PRODUCTS", ((8, 200, 20),))
    monkeypatch.setattr(gpu, "BLOCKS", ((64, 200), (8, 200, 20)))
    result = gpu.run(rounds=1)
    header, rows = gpu.table(result)
    assert all(len(row) == len(header) for row in rows)
    names = [row[1] for row in rows]
    assert {"pallas_gpu, velocity", "dense, velocity", "field, float16x3, uint8 rows"} <= set(names)
    for each in result["passes"]:
        assert max(each["largest_relative_error"].values()) < 1e-4
        assert max(each["largest_error_over_bound"].values()) <= 1
