"""The pruning method on tensors, without files or network. docs/method.md is its guide.

The frame is StructPrune (Song, Bai and Zhao 2025, arXiv 2510.03246; its method is section 3,
"Global Structured Pruning"). The abstract claims four things, and each has a module here:

    the global problem splits into one problem for each module   allocation/threshold.py (the price)
    ADMM separates reconstruction from structure                 layer/admm.py
    the mask has a closed form, an explicit rule for each layer  allocation/threshold.py
    an energy view gives layers' shares as a softmax             allocation/softmax.py

We implement these claims in our own notation, so modules cite the claim and the section, not
equation numbers. We differ in three ways, and each module says why:

- Layers share nothing but the parameter budget. So its multiplier, one number, is all that couples
  them, and layers are solved in any order.
- Optimal Brain Surgeon ranks channels (`layer/damage_curve`), not an activation norm as in Wanda.
- Memory is bounded below the size of a layer (`linalg/matrices`). A layer grows faster than
  sqrt N, so holding one layer is not O(sqrt N).

Shapes, in all modules: d output dimensions of a layer, f its input columns (FFN channels, or heads
times head size), n tokens, k columns that stay. W0 (d x f) holds the dense weights, W the pruned
ones. A (n x f) holds the layer's input activations, G (f x f) their Gram matrix.
"""
