"""The command line: ``weightnoise plan``, ``sweep``, ``tolerance``, ``report``, ``merge`` and ``demo``.

Begin with `main`, and for a command that measures with `sweep`. `parser` has the options, `load` gets the user's
model and metric, `notation` the laws; `journal` writes what was measured, and lets it go on after an interruption;
`report` prints it; `demo` trains a classifier with and without noise.

May touch: everything that is public. Promises: an error of the user is one sentence and no traceback.
"""
