"""Data sets as resident tensors. Cheap to import: what is heavy is imported when a data set is loaded."""
