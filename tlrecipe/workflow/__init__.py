"""The main path, step by step: check, run, resume, evaluate. Python calls it; the command line prints it."""
