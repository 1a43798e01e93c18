"""Other ways to compute the same: the forms that this package is measured against."""
