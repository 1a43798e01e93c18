"""From settings to images: where they lie, how they are split, and how they become a network's input."""
