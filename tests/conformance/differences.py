"""Where ours and theirs differ on purpose. The rows are made so that nothing else may."""

# What; ours; theirs; why, and how it is compared all the same.
DIFFERENCES = [
    ("group_relative, scale std", "the population's standard deviation, at least 1e-6",
     "the sample's, plus 1e-4 (trl) or 1e-6 (verl)",
     "A constant added to the deviation shrinks the advantages of groups that hardly differ; n or n − 1 is a constant "
     "factor. Ours is multiplied by √((n − 1)/n) · s/(s + theirs)."),
    ("whiten", "the population's variance", "the sample's (verl)",
     "A constant factor near 1. Ours is multiplied by √((n − 1)/n)."),
    ("gae", "advantages as they are, any mask", "whitened (verl); one sequence without a mask (rlax)",
     "Whitening is a function of its own. Compared after `whiten`; with rlax each response's own tokens alone."),
    ("dpo, nll_coefficient", "−log π(y⁺)/|y⁺|, then the mean over pairs", "the mean over all chosen tokens (trl, sft)",
     "arXiv:2404.19733, eq. 1, divides each pair by its own length. trl gets one pair at a time."),
    ("dpo, smoothing", "conservative DPO", "trl's DPO has none; its `robust` is another loss",
     "Compared with trl's CPO, which smooths, given log-ratios for its log-probabilities."),
    ("pairwise_ranking", "the mean of a ranking's pairs", "their sum (rax)",
     "arXiv:2203.02155, eq. 1, divides by the number of pairs. rax's sum is divided."),
    ("plackett_luce, ties", "the mean over the orders that the ranks allow", "a tie broken at random (rax)",
     "Without noise. rax gets every order."),
    ("grpo, KL term", "k3 as it is", "k3 times the ratio, by default (trl)",
     "arXiv:2402.03300, eq. 4. trl gets use_bias_correction_kl=False."),
    ("grpo, aggregation sequence", "a response without a counted token is left out (so is verl's)",
     "it counts as 0 (trl)", "It says nothing, and would dilute the others. No draw has one."),
    ("grpo, aggregation token", "over the tokens of one optimizer step", "over the rollout's, rescaled (trl, dapo)",
     "One step a rollout: the same."),
    ("policy_loss", "as printed", "bad tokens also clipped at a ratio of 3, log-ratios at ±20 (verl)",
     "arXiv:1707.06347, eq. 7. verl's clip is set where no token comes."),
    ("value_loss", "½ of the squared error", "½ (verl); 1 (arXiv:1707.06347, eq. 9)", "As the public implementations."),
    ("bradley_terry, margin_B", "scaled by margin_scale", "unscaled (trl)", "margin_scale=1."),
    ("cross_entropy, z_loss", "as a term", "none of these has it", "Compared with float64 of the paper's equation."),
]
