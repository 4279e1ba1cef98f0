"""What everything else stands on: dtypes, dims and shapes, errors, flags, random-key arithmetic, atomic files."""
