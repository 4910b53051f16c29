"""The command line: ``weightnoise plan``, ``sweep``, ``tolerance`` and ``demo``.

Begin with `main`. `parser` has the options, `load` gets the user's model and metric, `notation` the laws;
`journal` lets a measurement go on after an interruption, `demo` trains a classifier with and without noise.

May touch: everything that is public. Promises: an error of the user is one sentence and no traceback.
"""
