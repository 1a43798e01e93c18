"""pytest-benchmark suites, one file per subject."""
