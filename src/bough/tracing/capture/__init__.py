"""A call of the model as a stream of ops on stand-ins, with traced integers in the places of those of modules."""
