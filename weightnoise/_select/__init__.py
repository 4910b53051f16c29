"""From a spec and a model to the parameters that get noise.

Begin with `resolve`. `candidates` are the tensors that could carry noise, `patterns` what the keys of a mapping
fit, `choose` what a spec covers: one chooser, for parameters and for modules; `problems` are refusals.

May touch: what is below it; it looks at everything and changes nothing. Promises: every problem of a call in one
error, before a module is touched; time linear in the size of the model.
"""
