"""Numbers: where they come from, what seeds them, and the generator in C that makes most of them.

Begin with `draws`, which everything that is random goes through. `seeds` has keys and seeds, `keyed` numbers in
torch that are a function of a key, `philox` the fast generator for CPU tensors, `triton` the same on a GPU,
`csrc` its kernels. `marks` tells whether a tensor has changed.

May touch: torch's generators, `_torch`. Promises: `torch.manual_seed` decides every number; a number from a key
depends on the key and its place alone; no pointer leaves Python unchecked.
"""
