"""What a run or a comparison is asked to do: dataclasses, and how they are filled, changed and checked."""
