"""Whether a reward model means its scores, and whether it only likes long answers."""

import numpy as np

from jaxalign.evaluate.statistics import bootstrap_ratio, bootstrap_sums, wilson

CONFIDENCE = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # edges of the bins
# By how many times the preferred answer is as long as the other one: upper edges.
RELATIVE_LENGTH = {"under half": 0.5, "shorter": 0.9, "alike": 1.1, "longer": 2.0, "over twice": np.inf}
LENGTH_RATIO = {"up to 1.1": 1.1, "1.1 to 1.5": 1.5, "1.5 to 2": 2.0, "over 2": np.inf}  # longer answer over shorter


def calibration(differences, prompts):
    """How often the answer with the higher score is the preferred one, by how sure the model is of it.

        p = σ(|r₁ − r₂|)        Bradley–Terry's probability that people prefer the higher-scored answer

    Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3): Σ_bins share · |observed − mean p|. It is
    above 0 by chance even for a calibrated model; the fewer pairs, the more.

    Args:
      differences: of each judged pair the preferred answer's score minus the other's.
      prompts: the number of each pair's prompt; pairs of one prompt are drawn together for the intervals.

    Returns:
      {"calibration_error": {"value", "n", "ci95"}, "calibration": {"0.6 to 0.7": {"predicted", "observed": {…}}, …}},
      of the bins that hold a pair.
    """
    differences, prompts = np.asarray(differences, np.float64), np.asarray(prompts)
    confidence = 1 / (1 + np.exp(-np.abs(differences)))
    right = 0.5 * (1 + np.sign(differences))
    place = np.clip(np.searchsorted(CONFIDENCE, confidence, side="right") - 1, 0, len(CONFIDENCE) - 2)
    gap = (place[:, None] == np.arange(len(CONFIDENCE) - 1)) * (right - confidence)[:, None]
    ones = np.ones((len(gap), 1))
    parts = _by_prompt(np.hstack([gap, ones]), prompts)
    value, low, high = bootstrap_sums(parts, lambda sums: np.abs(sums[:, :-1]).sum(1) / sums[:, -1])
    bins = {}
    for n, (lower, upper) in enumerate(zip(CONFIDENCE, CONFIDENCE[1:])):
        inside = place == n
        if inside.any():
            bins[f"{lower:g} to {upper:g}"] = {"predicted": float(confidence[inside].mean()),
                                               "observed": share(right[inside], prompts[inside])}
    return {"calibration_error": {"value": value, "n": len(gap), "ci95": (low, high)}, "calibration": bins}


def by_length(differences, lengths, other_lengths, prompts):
    """Accuracy by how long the preferred answer is beside the other, and how often the longer one wins.

    A model that scores length is right where the preferred answer is the longer one and wrong where it is the shorter.
    The second figure says it without hindsight: of pairs whose lengths differ so much, the share in which people
    preferred the longer answer (observed), and the model's mean probability of it (predicted).

    Args:
      differences, prompts: as in `calibration`.
      lengths: tokens of the preferred answer.
      other_lengths: tokens of the other one.

    Returns:
      {"accuracy_by_length": {"under half": {"value", "n", "ci95"}, …},
       "longer_preferred": {"1.5 to 2": {"predicted", "observed": {…}}, …}}, of the buckets that hold a pair.
    """
    differences, prompts = np.asarray(differences, np.float64), np.asarray(prompts)
    lengths, other_lengths = np.asarray(lengths, np.float64), np.asarray(other_lengths, np.float64)
    right = 0.5 * (1 + np.sign(differences))
    accuracy = {name: share(right[inside], prompts[inside])
                for name, inside in _buckets(lengths / other_lengths, RELATIVE_LENGTH)}
    sign = np.sign(lengths - other_lengths)
    predicted = 1 / (1 + np.exp(-sign * differences))
    ratio = np.maximum(lengths, other_lengths) / np.minimum(lengths, other_lengths)
    ratio[sign == 0] = np.nan  # neither is the longer
    longer = {name: {"predicted": float(predicted[inside].mean()),
                     "observed": share((sign[inside] > 0).astype(float), prompts[inside])}
              for name, inside in _buckets(ratio, LENGTH_RATIO)}
    return {"accuracy_by_length": accuracy, "longer_preferred": longer}


def share(hits, prompts):
    """{"value", "n", "ci95"} of a mean of hits in [0, 1]: Wilson's interval, or by prompt where one has several."""
    n = len(hits)
    if len(set(prompts.tolist())) == n:
        return {"value": float(hits.sum()) / n, "n": n, "ci95": wilson(float(hits.sum()), n)}
    parts = _by_prompt(np.stack([hits, np.ones(n)], axis=1), prompts)
    value, low, high = bootstrap_ratio(parts[:, 0], parts[:, 1])
    return {"value": value, "n": n, "ci95": (low, high)}


def _by_prompt(parts, prompts):
    """Sums of the rows that share a prompt."""
    _, number = np.unique(prompts, return_inverse=True)
    sums = np.zeros((number.max() + 1, parts.shape[1]))
    np.add.at(sums, number, parts)
    return sums


def _buckets(values, edges):
    """(name, which values are in it) of those that hold one; NaN is in none."""
    lower = 0.0
    for name, upper in edges.items():
        inside = (values > lower) & (values <= upper)
        lower = upper
        if inside.any():
            yield name, inside
