"""What is measured: one workload per subject, for speed, memory and correctness alike."""

import importlib

from benchmarks.subjects.workload import Subject


def load_subject(name: str) -> Subject:
    """Import one of ``SUBJECTS``; each needs other parts of the package, so one that is broken does not stop others."""
    subject: Subject = importlib.import_module(f"benchmarks.subjects.{name}").SUBJECT
    return subject
