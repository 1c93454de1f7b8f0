"""Inside one layer: which channels go (`damage_curve`) and what the rest become (`ridge`).

Pure functions of tensors; no I/O. Shapes used throughout: d hidden, f FFN width, n tokens,
K the kept channels (count k). W (d x f) is the down projection, G (f x f) the Gram matrix of its
input activations.
"""
