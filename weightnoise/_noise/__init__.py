"""One noise: what it draws, whether it is on, and what a running forward has drawn.

Begin with `weight_noise`, the module that torch's parametrization calls. `draws` has the forms of a draw,
`control` what the open contexts say of it, `frames` what the running forwards have drawn, `checkpoints` what a
recomputation has to see again, `memory_recompute` noisy weights that the backward makes anew.

May touch: `laws`, `_random`, `_torch`. Promises: one draw for each forward of the owner, and in its recomputation;
a read while noise is off is the Parameter. It does not know how a noise got onto its module.
"""
