"""What a stage that starts from a checkpoint costs: figures on what was learned before, beside those of its own data."""

from jaxalign import config as configs
from jaxalign.data.intake import check_sources

OLD = "old/"  # before the names of figures on what was learned before; the same without it are of the stage's dev data
FIGURES = {"nll": "nats a token", "bits_per_byte": "bits a byte", "accuracy": "next token right"}


def old_domain(config, parent):
    """Where to look for what a stage may forget: `config.data.old`, or else the dev data of the stage that it starts
    from, but for those which are its own dev data too.

    Args:
      config: a stage's.
      parent: `read_meta` of `config.init_from`, None where that is empty.
    Returns:
      (sources, the group of settings that says how they are read, why there are none: "" where none are missed).
    """
    if parent is None or not config.forgetting:
        return [], config.data, ""
    if config.data.old:
        return list(config.data.old), config.data, ""
    began = configs.from_json(parent[1]["config"])
    how = began.get("data") or {}
    measured, own = (check_sources(data) if data else [] for data in (list(how.get("dev", ())), list(config.data.dev)))
    if not measured:
        return [], config.data, (f"{config.init_from}, a checkpoint of the stage {began.get('stage')!r}, names no dev "
                                 "data of its own")
    old = [source for source in measured if source not in own]
    return old, how, "" if old else f"the dev data are those of {config.init_from}"


def told(before, after):
    """Lines about the two domains, none where the old one was not measured before and after.

    Args:
      before, after: dev figures, those of the old domain under "old/".
    """
    if not all(f"{OLD}nll" in figures for figures in (before, after)):
        return []
    return [f"{domain} domain: " + ", ".join(
        f"{words} {before[at + name]:.4g} → {after[at + name]:.4g}" for name, words in FIGURES.items()
        if at + name in before and at + name in after) for domain, at in (("old", OLD), ("new", "")) if at + "nll" in after]
