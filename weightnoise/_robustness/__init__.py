"""How a model holds up: a metric under many held draws of noise, and the report.

Begin with `evaluate`. `metric` is the user's function and what it may not disturb, `report` what comes out,
`vectorized` many draws at once, `plots` and `progress` what a person looks at.

May touch: the verbs. Promises: the model comes back as it was, also after an error; draw k is the same
at every level.
"""
