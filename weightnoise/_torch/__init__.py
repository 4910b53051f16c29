"""The border to torch: every name that torch does not publish, and the layers and modules as torch has them.

Begin with `modules`, the walk over a model. No other folder uses a private name of torch, so this is
the folder to look at when torch changes; a test asks for each name and fails plainly.

May touch: torch. Promises: no noise here, and no state.
"""
