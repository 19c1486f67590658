"""Find, decode, store and split the images of a data set."""
