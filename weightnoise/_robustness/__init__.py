"""How a model holds up: a metric under many held draws of noise, and the report.

Begin with `evaluate`. `plan` is what is asked, `cells` one law at one level, `running` measures them here and
`executors` elsewhere; `collect` makes a `report` of it, `tables` prints that. `tolerance` searches for a level,
`layers` looks at parameters.

May touch: the verbs. Promises: the model comes back as it was, also after an error; draw k is the same
at every level, in any process.
"""
