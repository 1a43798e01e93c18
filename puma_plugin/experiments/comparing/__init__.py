"""Many runs: the rows of a comparison, its jobs, and what comes of them."""
