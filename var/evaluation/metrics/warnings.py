"""What makes numbers of pictures doubtful, in the words that commands warn with; the same for samples and rFID."""

from collections.abc import Iterator

from var.evaluation.metrics.extractors import INCEPTION, Extractor

PUBLISHED = 50_000  # pictures that published numbers are of


def doubts_of_count(name: str, count: int, extractor: Extractor, fewest: int = PUBLISHED) -> Iterator[str]:
    """Of a Frechet distance.

    Args:
        name: of the pictures.
        count: of them.
        extractor: of the features.
        fewest: pictures whose numbers still compare with published ones.
    """
    if count <= extractor.dimension:
        yield (
            f"{name}: {count} pictures are fewer than {extractor.dimension + 1}, one more than the features have "
            f"numbers: their covariance is singular and the Frechet distance too large"
        )
    if count < fewest:
        yield (
            f"{name}: with fewer than {fewest:,} pictures ({count}) no number is comparable with published ones, which "
            f"are of {PUBLISHED:,}"
        )


def doubts_of_features(extractor: Extractor) -> Iterator[str]:
    """Of all numbers."""
    if extractor.name != INCEPTION:
        yield f"features are those of {extractor.name}, not Inception's: comparable only with numbers made so"
