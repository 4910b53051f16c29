"""Everything that needs a GPU, behind one command: ``python -m tests.gpu``."""
