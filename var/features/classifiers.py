"""Classifiers on frozen features: nearest neighbors and a linear one, as scikit-learn has them.

M images, F length of a feature, C classes.
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError
from var.features.feature_file import FeatureTable
from var.utils.optional_packages import optional_packages

with optional_packages("features"):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

# Of a regression on standardized features, strongest regularization first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
ITERATIONS = 1000  # of a fit, at most; features of which many say the same take so many where little holds them back
HELD_OUT = 10  # one in so many training images chooses the strength
CHUNK = 1024  # images whose scores are held at once

# What must be the same of two files; in number types features differ by rounding only.
COMPARED = ("weights", "layers", "pool", "image_size", "width", "patches")


class Accuracy(NamedTuple):
    """Shares of the validation images in [0, 1]: class given the highest score, class among the five highest."""

    top1: float
    top5: float


class Regression(NamedTuple):
    """Accuracy of the linear classifier, and how it was chosen."""

    accuracy: Accuracy
    strength: float  # C of LogisticRegression: one over the weight of the regularization
    held_out: float  # top-1 on the part of the training set that chose it
    converged: bool  # whether the last fit needed fewer than ITERATIONS


def check_comparable(train: FeatureTable, validation: FeatureTable) -> None:
    """Raise InputError unless both are features of one model with the same classes, two of them at least."""
    difference = validation.settings.difference(train.settings, COMPARED)
    if difference is not None:
        ours, theirs = train.settings, validation.settings
        detail = f"{theirs.model}, not {ours.model}" if ours.weights != theirs.weights else difference
        raise InputError(f"the validation features are others than the training features: of {detail}")
    known = np.unique(train.labels).tolist()
    if len(known) < 2:
        raise InputError("the training features are all of one class: classification needs two or more")
    if absent := sorted(set(validation.labels.tolist()) - set(known)):
        named = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
        raise InputError(f"{len(absent)} labels of the validation features have no training features: {named}")
    for label in sorted(train.class_names.keys() & validation.class_names.keys()):
        if train.class_names[label] != validation.class_names[label]:
            raise InputError(
                f"label {label} is {train.class_names[label]!r} in training and {validation.class_names[label]!r} in "
                "validation: make both from folders with the same subfolders"
            )


def nearest_neighbors(train: FeatureTable, validation: FeatureTable, k: int = 20) -> Accuracy:
    """Classes by the votes of the k training features of highest cosine, each weighted by one over its distance.

    Only classes that have a vote count as named.

    Raises InputError: k below 1 or above the number of training features.
    """
    if not 1 <= k <= len(train.labels):
        raise InputError(f"k={k} must be in 1..{len(train.labels)}, the number of training features")
    # brute: the only one for cosines
    classifier = KNeighborsClassifier(k, weights="distance", metric="cosine", algorithm="brute")
    return _accuracy(classifier.fit(train.values, train.labels), validation.values, validation.labels)


def linear(train: FeatureTable, validation: FeatureTable) -> Regression:
    """Multinomial logistic regression on features standardized by the training set's means and deviations.

    Its strength is that of STRENGTHS with the highest top-1 on a held-out tenth of the training set, spread over the
    classes; of equals the strongest regularization. Every fit starts from the one before, the last is to all images.

    Raises InputError: too few training images to hold some out.
    """
    chosen = held_out_rows(train.labels)
    kept, kept_out = train.labels[~chosen], train.labels[chosen]
    if len(np.unique(kept)) < 2 or not len(kept_out):
        raise InputError(f"{len(train.labels)} training features are too few to hold out one in {HELD_OUT}: add more")
    scaler = StandardScaler().fit(train.values)
    values = scaler.transform(train.values)
    inside, outside = values[~chosen], values[chosen]
    classifier = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    reached = []
    for strength in STRENGTHS:
        _fit(classifier.set_params(C=strength), inside, kept)
        reached.append(_accuracy(classifier, outside, kept_out).top1)
    best = int(np.argmax(reached))
    del inside, outside
    if len(np.unique(kept)) < len(np.unique(train.labels)):  # a class was held out whole: there is one more to fit now
        classifier = LogisticRegression(max_iter=ITERATIONS)
    _fit(classifier.set_params(C=STRENGTHS[best]), values, train.labels)
    return Regression(
        accuracy=_accuracy(classifier, scaler.transform(validation.values), validation.labels),
        strength=STRENGTHS[best],
        held_out=reached[best],
        converged=bool(classifier.n_iter_.max() < ITERATIONS),
    )


def held_out_rows(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(M,) -> (M,): true for one in HELD_OUT, drawn by a fixed seed, every class giving its share."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    chosen = np.zeros(len(labels), np.bool_)
    chosen[by_class[HELD_OUT // 2 :: HELD_OUT]] = True
    return chosen


def _fit(classifier: LogisticRegression, values: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Regression.converged says it
        classifier.fit(values, labels)


def _accuracy(
    classifier: KNeighborsClassifier | LogisticRegression, values: NDArray[np.float32], labels: NDArray[np.int64]
) -> Accuracy:
    """Labels that the classifier was not fitted to count as wrong."""
    hits = np.zeros(5, np.int64)
    for first in range(0, len(labels), CHUNK):
        scores = classifier.predict_proba(values[first : first + CHUNK])  # (CHUNK, C)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        voted = np.take_along_axis(scores, best, axis=1) > 0
        right = (classifier.classes_[best] == labels[first : first + CHUNK, None]) & voted
        hits[: right.shape[1]] += right.sum(axis=0)
    return Accuracy(float(hits[0] / len(labels)), float(hits.sum() / len(labels)))
