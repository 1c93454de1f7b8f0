"""Inside one layer: which channels go, and what the weights of the others become.

`damage_curve` orders the channels (Optimal Brain Surgeon), `group_damage_curve` the attention
heads; both use `elimination`. `ridge` solves the kept weights again. `admm` chooses channels by
StructPrune's split of reconstruction and structure; `fixed_support` and `groups` are its parts.
"""
