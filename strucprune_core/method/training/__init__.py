"""Training of what pruning left: a layer alone (`recovery`), or the model (`distillation`)."""
