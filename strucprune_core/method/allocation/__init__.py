"""Between layers: one global budget becomes a width for each layer.

`threshold` is StructPrune's closed-form rule and the default, `softmax` its energy rule, `uniform`
the baseline. `energies` measures what a layer's damage costs, `budget` holds the common limits.
`rule` chooses between the three.
"""
