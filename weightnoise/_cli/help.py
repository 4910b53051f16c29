"""What the help of the commands says."""

from __future__ import annotations

ABOUT = """\
Noise on the weights of any PyTorch model.

  weightnoise demo        what training with noise buys, on real digits, in half a minute
  weightnoise plan        which parameters of a model of yours a spec would put noise on, and how much
  weightnoise sweep       how a model of yours holds up as the noise grows: a table, a report, a figure
  weightnoise tolerance   how much noise it can take: the largest level at which it reaches a target
  weightnoise report      a report that was written: shown, converted, drawn; those of many jobs as one

Each has a page of its own: weightnoise sweep --help"""

OBJECTS = """\
MODULE:NAME is what `from MODULE import NAME` would import; MODULE may be a file of the current directory,
without its .py. A model is a torch.nn.Module, or a function (or class) that returns one when it is called
without arguments: build it there and load its checkpoint. It runs your code. torch is seeded before."""

NOTATION = """\
A law is written as in Python, and nothing of it is executed: Gaussian(0.1, relative_to="absmax"),
StuckAt(zero=0.01), a number for Gaussian, a list for laws one after the other, and a dict from patterns on
names to laws: {"encoder.*": Gaussian(0.02), "head.*": None}. JSON as of spec_to_config, or the name of a
.json or .yaml file with it, do as well. These import nothing: they may name laws of this library, modules of
torch.nn, functions of torch.nn.functional, and module classes and laws (dataclasses with draw and apply) of
modules that the command has imported for the model, the metric or --allow; functions of yours only with --allow.
Quote it for the shell: '...'."""

EXITS = """\
Exit codes: 0 success, 1 failure (also of your code), 2 wrong usage, 130 interrupted."""

PLAN = f"""\
Show what add_weight_noise would do to a model: which parameters get noise, of which law and which standard
deviation in units of the weight, and which stay clean. With --at, what add_activation_noise would do: which
modules get noise on their outputs or inputs.

{OBJECTS}

{NOTATION}"""

PLAN_EXAMPLES = f"""\
Examples:
  weightnoise plan model:make_model --spec 0.01
  weightnoise plan model:make_model --spec '{{"class:torch.nn.ReLU": Gaussian(0.1)}}' --at output
  weightnoise plan torchvision.models:resnet18 --spec '{{"fc.*": None, "*": Gaussian(0.05, relative_to="absmax")}}'

{EXITS}"""

SWEEP = f"""\
Measure a model under noise: at each level a number of seeded draws ("chips"), each held for all that the
metric does. Draw k has the same random numbers at every level and under every law, so that laws compare in
pairs. Prints mean and standard error.

A level multiplies the strength of the law: with Gaussian(1.0, relative_to="absmax") the levels are standard
deviations as fractions of the largest weight of each layer; with ProgrammingNoise() they are multiples of the
noise of the device; with StuckAt(zero=1.0) they are shares of the weights. With --vary OPTION a level is the value
of that option, in each law that has it: --vary time --law 'ProgrammingNoise()' --levels 0,25,hour=3600. Instead of
a law, --law takes MODULE:FUNCTION, a function from a level to a law. The levels of both are any numbers, names, or
values as in Python such as None, True or (64,64), each with a name before it if you like: 'whole=None,(64,64)'.

{OBJECTS}

The metric is a function that takes the model and returns a number, or a dict of numbers by name. It puts the
model in eval mode, and evaluates it on data of its choice:

  # model.py
  def make_model():
      model = Net(); model.load_state_dict(torch.load("net.pt")); return model

  @torch.no_grad()
  def accuracy(model):
      return (model.eval()(x).argmax(dim=1) == y).double().mean().item()

{NOTATION}

A sweep with --out keeps what it has measured in that file, about once a second. Interrupted, it goes on from
there when the same command is given again, and ends with the same numbers to the last bit. Other options,
another model (its weights are compared), a changed metric (its code is), and another version of torch or
weightnoise are refused, and named. Whether what the metric calls and its data are the same is not checked. More
--draws or another --threshold go on from what the file holds, in shards too. Two sweeps that run at once have a
file each. `weightnoise report` shows what is in the file of a sweep that goes on or was interrupted."""

SWEEP_EXAMPLES = f"""\
Examples:
  weightnoise sweep model:make_model --metric model:accuracy --levels 0,0.05,0.1,0.2 \\
      --law 'Gaussian(1.0, relative_to="absmax")' --law 'StuckAt(zero=1.0)' --out report.json --plot plot.png
  weightnoise sweep model:make_model --metric model:accuracy --levels 0.1 \\
      --law 'Gaussian(1.0, relative_to="absmax")' --by-parameter --plot sensitivity.png
  weightnoise sweep model:make_model --metric model:accuracy --vary time --levels 0,25,3600,86400 \\
      --law 'ProgrammingNoise()' --plot drift.png --log-axis --axis 'seconds after programming'

In Python: weightnoise.RobustnessReport.from_json(open("report.json").read()).

{EXITS}"""

TOLERANCE = f"""\
Find the largest level of noise at which the mean of the metric, a quantile of it, or a share of the draws still
reaches a target, with an interval. Levels are doubled until the target is missed, and the last step is bisected;
each is measured under the same draws. A level multiplies the strength of the law, as in a sweep.

{OBJECTS}

{NOTATION}

With --out an interrupted search goes on when the same command is given again, as a sweep does."""

TOLERANCE_EXAMPLES = f"""\
Examples:
  weightnoise tolerance model:make_model --metric model:accuracy --at-least 0.9 \\
      --law 'Gaussian(1.0, relative_to="absmax")'
  weightnoise tolerance model:make_model --metric model:accuracy --at-least 0.9 --yield 0.95 --draws 100 \\
      --law 'StuckAt(zero=1.0)' --out tolerance.json

{EXITS}"""

REPORT = """\
Show a report that a sweep has written, and write it as JSON, CSV (a line for each draw), markdown or one HTML
page, by the ending of --out. A sweep that is not finished is shown as far as it has come, with how many draws of
how many are measured. Several reports are put together: those of the shards of one sweep, or of other seeds. A
draw that is in two of them counts once. Reports of another metric, law, model, level or version are refused, with
what differs. Nothing of yours is run. `weightnoise merge` is the same command."""

REPORT_EXAMPLES = f"""\
Examples:
  weightnoise report report.json --threshold 0.9
  weightnoise report report.json --out report.html --log-axis --axis 'seconds after programming'
  weightnoise merge report-1.json report-2.json --out report.json

{EXITS}"""
