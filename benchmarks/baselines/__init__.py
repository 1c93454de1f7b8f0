"""Other ways to prune, written from their papers: what `benchmarks.rivals` compares with.

All of them hold a transformers model whole in memory, in float32. One method a file; `sites` says
what can be removed and removes it, `selection` turns scores into kept structures, `statistics` runs
the model layer by layer. Shapes: n tokens, m inputs of the consumer (down or output projection),
d hidden, W (d x m) the consumer's weight, X (n x m) its inputs, X_j and W_j their columns.
"""
