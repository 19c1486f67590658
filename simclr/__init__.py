"""SimCLR: a Config in, numbers and weights out."""
