"""Between layers: one global target becomes a width for each layer.

`threshold` is the closed form (one price for all layers), `uniform` the same fraction everywhere,
`energies` turns layer damage into loss. Pure functions; no I/O.
"""
