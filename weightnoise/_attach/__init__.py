"""How noise gets onto a module, and off it again.

Begin with `attach`; `find` is how others get at the noise. `noisy_class` makes the class that equal modules share,
`forward` the forward whose reads see one draw, `stack` is the parametrization list
whose Parameter stays in its place, `hook` is noise on activations; `per_example`, `embedding` and `recurrent` are
layers whose forward does more than read a weight.

May touch: `_noise` and what is below it, and, alone in the package, `torch.nn.utils.parametrize`. Promises: the
Parameter never moves; removal is exact; a call that fails changes nothing. It never chooses a law and never draws.
"""
