"""Training of what pruning left: one layer alone (`recovery`), or the whole model (`distillation`).

Both go beyond StructPrune, whose abstract describes no training. We offer them because they restore
most of the lost quality, and hold one layer at a time (docs/sparsity.md has the measurements).
"""
