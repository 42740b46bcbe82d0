"""What is logged of a rollout, from the arrays that the objective gets: numpy, float64, over what counts alone."""

import numpy as np


def drift_figures(batch):
    """How far the policy is from the reference and from certainty, as TRL's `objective/kl` and `objective/entropy`.

        objective/kl       mean over responses of Σₜ log π(aₜ) − log π_ref(aₜ)
        objective/entropy  mean over responses of Σₜ −log π(aₜ)

    Both are estimates from the tokens that were drawn, nats a response.

    Args:
      batch: old_logp_BT, mask_BT and, for the first, ref_logp_BT; rows without a counted token are left out.
    """
    mask_BT = batch["mask_BT"] > 0
    rows = max(np.count_nonzero(mask_BT.any(1)), 1)
    logp, ref = (float(np.where(mask_BT, batch[name], 0.0).astype(np.float64).sum() / rows) if name in batch else None
                 for name in ("old_logp_BT", "ref_logp_BT"))
    return {"objective/entropy": -logp} | ({} if ref is None else {"objective/kl": logp - ref})


def value_figures(batch):
    """The returns, and how much of them the critic foresaw.

        explained_variance  1 − Var(R − V) / Var(R), over all tokens; 0 where the returns do not vary

    Args:
      batch: returns_BT, old_value_BT, mask_BT.
    """
    here_BT = batch["mask_BT"] > 0
    returns, value = (batch[name][here_BT].astype(np.float64) for name in ("returns_BT", "old_value_BT"))
    if not len(returns):
        return {"returns_mean": 0.0, "returns_std": 0.0, "explained_variance": 0.0}
    spread = returns.var()
    return {"returns_mean": float(returns.mean()), "returns_std": float(spread ** 0.5),
            "explained_variance": float(1.0 - (returns - value).var() / spread) if spread > 0 else 0.0}
