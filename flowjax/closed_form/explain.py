"""What an evaluation did: `field.explain(x, t)`, a report to print."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How queries were evaluated; print it for a summary. Arrays are NumPy, of the queries' batch shape.

    Attributes:
        method: "dense", "screened" or "streamed".
        num_points: points that a query sees, flipped copies included.
        dense: [*batch] bool, evaluated by a pass over all rows.
        columns: [*batch] int32, coordinates a row that its screening pass used; 0 where there was none.
        survivors: [*batch] int32, points that pass could not rule out (as far as they were pooled).
        evaluated: [*batch] int32, points evaluated exactly by screening; 0 for a query that went to the dense pass.
        relative_bound: [*batch] certified ‖velocity − û‖/‖velocity‖.
    """

    method: str
    num_points: int
    dense: np.ndarray
    columns: np.ndarray
    survivors: np.ndarray
    evaluated: np.ndarray
    relative_bound: np.ndarray

    def __str__(self) -> str:
        bound = np.asarray(self.relative_bound, np.float64)
        lines = [
            f"method {self.method!r}, {bound.size} queries, {self.num_points} points; certified relative error "
            f"{np.median(bound):.1e} (median), {bound.max(initial=0):.1e} (largest)"
        ]
        if self.method == "screened":
            kept = ~self.dense
            lines.append(f"{int(self.dense.sum())} by the dense pass, {int(kept.sum())} by screening")
            for columns in np.unique(self.columns[kept]):
                chosen = kept & (self.columns == columns)
                lines.append(
                    f"  {int(chosen.sum())} with {columns} coordinates a row: "
                    f"{np.median(self.survivors[chosen]):.0f} rows left (median, largest "
                    f"{self.survivors[chosen].max()}), {np.median(self.evaluated[chosen]):.0f} evaluated exactly "
                    f"(largest {self.evaluated[chosen].max()})"
                )
        return "\n".join(lines)
