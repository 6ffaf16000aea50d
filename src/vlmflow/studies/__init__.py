"""Many samples: what is asked of a model over a data set, stored and summed up."""
