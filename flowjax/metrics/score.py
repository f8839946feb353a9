"""All measures of samples against one reference, with everything that a number means nothing without.

network = flowjax.metrics.features.EfficientNetLite0()
reference = flowjax.metrics.Reference.of(dataset.images, network, name="cifar10 train")
score = flowjax.metrics.SampleScore.against(reference)
for batch in batches_of_samples:
    score = score.update(batch)
print(flowjax.metrics.merge_processes(score).compute())
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from .._choices import check_choice
from .feature_set import FeatureSet
from .frechet import FrechetStatistics
from .kernel import kernel_distance
from .manifold import density_coverage, precision_recall
from .neighbours import Neighbours, memorised_fraction, nearest_distances, nearest_neighbours
from .reference import Reference

MEASURES = ("frechet", "kernel", "precision-recall", "density-coverage", "memorised")
PUBLISHED_COUNT = 50_000
"""Samples that published Fréchet inception distances are taken from."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Numbers, and what they are of.

    Attributes:
        values: number by name; `memorised_fraction` is of the reference, in the features' distance.
        network: the feature network.
        preprocessing: what it does to pictures first.
        num_samples: samples measured.
        reference: name of the pictures compared with.
        num_reference: how many those are.
        reference_content: hash of them.
        published_network: whether the features are those of published Fréchet inception distances.
        notes: what to know before comparing these numbers with others.
    """

    values: dict[str, float]
    network: str
    preprocessing: str
    num_samples: int
    reference: str
    num_reference: int
    reference_content: str
    published_network: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"notes": list(self.notes)}

    def __str__(self) -> str:
        """One line a number, under what they are of."""
        spelled = {name: name.replace("_", " ").replace("frechet", "Fréchet") for name in self.values}
        lines = [
            f"{self.num_samples} samples against {self.reference}: {self.num_reference} pictures, content "
            f"{self.reference_content[:8]}",
            f"features: {self.network}",
            f"pictures: {self.preprocessing}",
            *(f"  {spelled[name]}: {value:.4g}" for name, value in self.values.items()),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class SampleScore:
    """Samples seen so far, as features beside their reference; immutable, mergeable in any order.

    Attributes:
        reference: what the samples are compared with, and the feature space.
        features: of the samples.
    """

    reference: Reference
    features: FeatureSet

    @classmethod
    def against(cls, reference: Reference) -> "SampleScore":
        """No sample yet."""
        return cls(reference, FeatureSet.empty(reference.features.dim))

    def update(self, images: Any) -> "SampleScore":
        """The score with these samples added, [m, *event] as the reference's network takes them."""
        features = self.features.update(self.reference.network.features(images))
        return dataclasses.replace(self, features=features)

    def merge(self, other: "SampleScore") -> "SampleScore":
        """The score of both sets of samples together.

        Raises:
            ValueError: scores against another reference, or in other features.
        """
        mine, its = (
            (score.reference.content, score.reference.network.name, score.reference.network.preprocessing)
            for score in (self, other)
        )
        if mine != its:
            raise ValueError(f"scores against different references cannot be merged: {mine} and {its}")
        return dataclasses.replace(self, features=self.features.merge(other.features))

    def nearest(self, k: int = 1) -> Neighbours:
        """The k nearest pictures of the reference for every sample, in the features' distance: rows and distances."""
        return nearest_neighbours(self.features.values, self.reference.features.values, k)

    def compute(self, measures: Iterable[str] = MEASURES) -> Scores:
        """The numbers.

        Args:
            measures: any of "frechet", "kernel", "precision-recall", "density-coverage", "memorised". All but the
                first cost samples·reference·dim operations or more.

        Raises:
            ValueError: an unknown measure, or too few samples or reference pictures for one.
        """
        measures = tuple(measures)
        for name in measures:
            check_choice("measure", name, MEASURES)
        samples, reference = self.features, self.reference.features
        values: dict[str, float] = {}
        if "frechet" in measures:
            seen = FrechetStatistics.empty(samples.dim)
            for part in samples.parts:
                seen = seen.update(part)
            values["frechet_distance"] = seen.frechet_distance(self.reference.frechet)
        if "kernel" in measures:
            estimate = kernel_distance(samples, reference)
            values["kernel_distance"] = estimate.value
            values["kernel_distance_standard_error"] = estimate.standard_error
        if "precision-recall" in measures:
            values |= precision_recall(samples, reference)._asdict()
        if "density-coverage" in measures:
            values |= density_coverage(samples, reference)._asdict()
        if "memorised" in measures:
            found = nearest_distances(samples.values, reference.values)
            for name, ratio in (("1/3", 1 / 3), ("2/3", 2 / 3)):
                values[f"memorised_fraction_{name}"] = memorised_fraction(found.nearest, found.second, ratio)
        network = self.reference.network
        published = bool(getattr(network, "published", False))
        return Scores(
            values,
            network.name,
            network.preprocessing,
            samples.count,
            self.reference.name,
            reference.count,
            self.reference.content,
            published,
            tuple(self._notes(published)),
        )

    def _notes(self, published: bool):
        if not published:
            yield "no FID: published figures are made of other features and cannot be compared with these"
        elif self.features.count != PUBLISHED_COUNT:
            yield f"published FIDs are of {PUBLISHED_COUNT} samples; with {self.features.count} they come out different"
        if self.features.count <= self.features.dim:
            yield (
                f"{self.features.count} samples for {self.features.dim} features: the Fréchet distance is biased "
                "upwards; compare equal numbers only"
            )
