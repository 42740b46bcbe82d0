"""Sizes of a miniature world that is written in a moment."""

TINY_WORLD = dict(
    pretrain_characters=20_000, dev_documents=20, grpo=40,
    sft=dict(fact=60, explanation=20, followup=30, nonexistent=20, unsafe=20, lookalike=20, arithmetic=20,
             smalltalk=10),
    align=dict(fact=30, explanation=10, followup=20, nonexistent=20, unsafe=20, lookalike=20, smalltalk=4),
    align_dev=dict(fact=6, explanation=4, followup=4, nonexistent=4, unsafe=4, lookalike=4, smalltalk=2),
    evaluation=dict(fact=10, fact_asked=6, explanation=6, followup=6, nonexistent=6, unsafe=6, lookalike=6,
                    arithmetic=6, smalltalk=4))
