"""pytest-benchmark suites: ceilings, the subjects, growth, memory."""
