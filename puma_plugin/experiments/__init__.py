"""The engine behind the command line: train, evaluate, compare methods and report."""
